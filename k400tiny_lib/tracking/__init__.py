"""The layer over MLflow: runs of steps, their inputs, metrics and artifacts."""
