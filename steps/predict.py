"""Label clips with a registered model: a frame folder, a video, or a directory of either.

mlflow run . -e predict --env-manager local -P input=video.mp4
"""

from k400tiny_lib.config import Config
from k400tiny_lib.workflow.command import step_command


@step_command("predict")
def predict(config: Config) -> None:
    """Open the model, label every input, show and log the table; name what was not labeled."""
    import sys

    import mlflow

    from k400tiny_lib.errors import UserError
    from k400tiny_lib.serving.inputs import find_inputs
    from k400tiny_lib.serving.predict import label_inputs
    from k400tiny_lib.tracking.models import open_registered
    from k400tiny_lib.tracking.runs import local_copy

    inputs = find_inputs(local_copy(config.input, "input"))
    print(inputs.describe(), end="", file=sys.stderr)
    model = open_registered(
        config.model_uri, config.registered_model_name, config.num_threads, config.device
    )
    table, failures, notes = label_inputs(
        model,
        inputs.clips,
        config.batch_size,
        config.top_k,
        root=inputs.root,
        max_bad_frames=config.max_bad_frames,
    )
    if notes:
        mlflow.log_text("\n".join(notes) + "\n", "predictions/notes.txt")
    if skipped := inputs.skipped(failures):
        mlflow.log_text(skipped, "predictions/skipped.txt")
    if table.empty:
        raise UserError(f"input: nothing in {config.input} could be read.")
    mlflow.log_text(table.to_csv(index=False), "predictions/predictions.csv")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if problem := inputs.problem(failures):
        raise UserError(f"input: {problem} (see above).")


if __name__ == "__main__":
    predict()
