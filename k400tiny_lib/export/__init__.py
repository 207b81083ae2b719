"""The ONNX graph, its proof of equality, smaller variants, its scores."""
