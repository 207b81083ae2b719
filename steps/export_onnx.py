"""Export a checkpoint to ONNX, prove it equal to PyTorch, register it.

mlflow run . -e export_onnx --env-manager local -P checkpoint=best.pt
mlflow run . -e export_onnx --env-manager local -P weights=R2Plus1D_18_Weights.KINETICS400_V1
"""

from k400tiny_lib.config import Config
from k400tiny_lib.workflow.command import step_command


@step_command("export_onnx")
def export_onnx(config: Config) -> None:
    """Build the graph, compare it with the eager model, log and register what passed."""
    import mlflow
    import pandas as pd

    from k400tiny_lib.config import NONE
    from k400tiny_lib.export.classifier import from_checkpoint, from_weights, parity_clips
    from k400tiny_lib.export.graph import FramesToProbabilities, export_graph
    from k400tiny_lib.export.parity import compare, latencies_ms, open_session, require_parity
    from k400tiny_lib.export.registry import log_onnx, register
    from k400tiny_lib.export.video_registry import register_video_classifier
    from k400tiny_lib.tracking.runs import (
        MODEL_VERSION_TAG,
        active_run_id,
        local_copy,
        local_inputs,
    )

    if config.weights != NONE:
        classifier = from_weights(config)
    else:
        classifier = from_checkpoint(local_copy(config.checkpoint, "checkpoint"))
    if config.annotations != NONE:
        config = local_inputs(config, "data_path", "annotations")
    clips = parity_clips(config, classifier.clip_len)

    model, resize, crop = classifier.model, classifier.resize_size, classifier.crop_size
    module = FramesToProbabilities(model, resize, crop).eval()
    proto = export_graph(module, classifier.clip_len, config.opset, classifier.metadata)
    session = open_session(proto)
    comparisons = compare(session, model, clips, resize, crop)
    mlflow.log_table(pd.DataFrame(comparisons), "parity.json")
    difference = require_parity(comparisons, config.tolerance)
    onnx_ms, torch_ms = latencies_ms(session, model, clips[0], resize, crop)
    mlflow.log_metrics(
        {
            "parity_max_abs_diff": difference,
            "onnx_latency_ms": onnx_ms,
            "torch_latency_ms": torch_ms,
        }
    )

    run_id = active_run_id()
    model_uri = log_onnx(proto, classifier.metadata)
    tags = {"parity_max_abs_diff": f"{difference:.3g}", "training_run_id": classifier.run_id}
    version, promoted = register(
        model_uri, config.registered_model_name, run_id, tags, config.promote
    )
    register_video_classifier(model_uri, version, config.video_model_name)
    mlflow.set_tag(MODEL_VERSION_TAG, f"{version.name}/{version.version}")
    alias = "champion" if promoted else "challenger"
    print(
        f"models:/{version.name}@{alias} is version {version.version}; largest difference from "
        f"PyTorch {difference:.1e}; {onnx_ms:.0f} ms a clip (PyTorch {torch_ms:.0f} ms)"
    )


if __name__ == "__main__":
    export_onnx()
