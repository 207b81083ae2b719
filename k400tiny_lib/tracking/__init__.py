"""The thin layer over MLflow: a step's run, its inputs and outputs as artifacts."""
