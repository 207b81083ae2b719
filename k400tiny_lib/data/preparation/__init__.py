"""From a source to annotations: decode, check, split, report."""
