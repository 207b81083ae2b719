"""Label clips with a registered model: a frame folder, a video, or a directory of either.

mlflow run . -e predict --env-manager local -P input=video.mp4
"""

from k400tiny_lib.config import Config
from k400tiny_lib.workflow.command import step_command


@step_command("predict")
def predict(config: Config) -> None:
    """Open the model, label every input, keep and show each result; name what has no label."""
    import sys

    from k400tiny_lib.errors import UserError
    from k400tiny_lib.serving.inputs import find_inputs
    from k400tiny_lib.serving.labeling import label_all
    from k400tiny_lib.serving.timeline.spans import Windows
    from k400tiny_lib.tracking.models import open_registered
    from k400tiny_lib.tracking.runs import kept_artifacts, local_copy

    inputs = find_inputs(local_copy(config.input, "input"))
    print(inputs.describe(), end="", file=sys.stderr)
    model = open_registered(
        config.model_uri, config.registered_model_name, config.num_threads, config.device
    )
    stride = config.stride_seconds or config.window_seconds / 2
    with kept_artifacts("predictions") as folder:
        outcome = label_all(
            model,
            inputs,
            folder,
            batch_size=config.batch_size,
            top_k=config.top_k,
            max_bad_frames=config.max_bad_frames,
            windows=Windows(config.window_seconds, stride) if config.window_seconds else None,
            annotate=config.annotate,
        )
    if not outcome.num_labeled:
        raise UserError(f"input: nothing in {config.input} could be labeled (see above).")
    if problem := inputs.problem(outcome.num_failed):
        raise UserError(f"input: {problem} (see above).")


if __name__ == "__main__":
    predict()
