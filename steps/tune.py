"""Search for better parameters of training; the best become a recipe that main takes.

mlflow run . -e tune --env-manager local -P trials=20 -P search=lr,weight_decay
mlflow run . -e tune --env-manager local -P data_path=frames -P gt_csv=labels.csv \\
    -P recipe=small -P search=lr,augmentation -P storage=postgresql://host/studies
mlflow run . -e main --env-manager local -P recipe=runs:/<run id>/tuning/best.yaml
"""

from k400tiny_lib.config import Config
from k400tiny_lib.console import say_result
from k400tiny_lib.workflow.command import step_command


@step_command("tune")
def tune(config: Config) -> None:
    """Run the missing trials of a study as nested runs, and show the best."""
    from k400tiny_lib.tuning.tuning import tune_training

    say_result(tune_training(config))


if __name__ == "__main__":
    tune()
