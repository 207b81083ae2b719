"""Every clip predicted without its source, and the labels that this contradicts."""
