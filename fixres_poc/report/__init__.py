"""From numbers to pages: text, tables, plots, HTML."""
