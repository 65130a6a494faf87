"""The report's rendering: figures, tables and the page's template. Reads no files."""
