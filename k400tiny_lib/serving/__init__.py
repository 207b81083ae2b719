"""The ONNX classifier, `predict` and the served model; without PyTorch."""
