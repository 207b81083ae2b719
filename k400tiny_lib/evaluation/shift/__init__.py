"""Clips unlike those of training: changed light and frames, unknown classes."""
