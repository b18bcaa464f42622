"""Where a dataset comes from: a folder of class folders, or a named dataset."""
