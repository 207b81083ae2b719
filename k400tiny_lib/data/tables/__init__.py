"""Ground truth in any dialect: separators, columns, names of files, segments."""
