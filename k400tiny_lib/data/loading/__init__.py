"""Clips as tensors: data set, loader, frame cache, transforms, augmentation."""
