"""Where a data set comes from: a folder of class folders, or a named data set."""
