"""Frame folders and videos as pixels, and which frames; without PyTorch."""
