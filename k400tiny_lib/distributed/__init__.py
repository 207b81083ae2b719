"""torchrun and its processes."""
