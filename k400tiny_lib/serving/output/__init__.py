"""What `predict` shows and writes: lines on the console, tables."""
