"""The table of architectures, weights, checkpoints, the loader of models."""
