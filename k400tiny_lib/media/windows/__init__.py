"""Windows of a long video, read in one pass."""
