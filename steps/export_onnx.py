"""Export a model to ONNX, prove it equal to PyTorch, register it, see if it is the best so far.

mlflow run . -e export_onnx --env-manager local -P checkpoint=best.pt
mlflow run . -e export_onnx --env-manager local -P weights=R2Plus1D_18_Weights.KINETICS400_V1
mlflow run . -e export_onnx --env-manager local -P checkpoint=best.pt -P data_path=frames \\
    -P annotations=annotations.json -P quantize=int8
"""

from k400tiny_lib.config import Config
from k400tiny_lib.workflow.command import step_command


@step_command("export_onnx")
def export_onnx(config: Config) -> None:
    """Build the graph, compare it with the eager model, log and register what passed."""
    import mlflow
    import pandas as pd

    from k400tiny_lib.config import NONE
    from k400tiny_lib.errors import UserError
    from k400tiny_lib.export import classifier as models
    from k400tiny_lib.export import parity, scoring
    from k400tiny_lib.export.onnx_graph import (
        FramesToProbabilities,
        describe,
        export_graph,
        frames_free,
    )
    from k400tiny_lib.export.test_clips import clip_frames
    from k400tiny_lib.export.variants import choose
    from k400tiny_lib.registry import registry
    from k400tiny_lib.registry.contest import Contest
    from k400tiny_lib.registry.model_card import model_card
    from k400tiny_lib.registry.video_model import register_video_classifier
    from k400tiny_lib.tracking.evaluation_log import evaluation_folder, git_commit
    from k400tiny_lib.tracking.runs import MODEL_VERSION_TAG, local_copy, local_inputs

    if config.weights != NONE:
        classifier = models.from_weights(config)
    else:
        classifier = models.from_checkpoint(local_copy(config.checkpoint, "checkpoint"))
    if config.annotations != NONE:
        config = local_inputs(config, "data_path", "annotations")
    frames = clip_frames(config, classifier.clip_len)
    unusable = frames.unusable(classifier.class_names)
    if unusable and config.quantize != NONE:
        raise UserError(f"quantize: {unusable}. Needed: test clips to judge {config.quantize} on.")

    eager, views = classifier.eager(config.views_in_graph), config.views_in_graph
    temperature, table = 1.0, None
    if config.evaluation != NONE and not unusable:
        folder = local_copy(evaluation_folder(config.evaluation), "evaluation")
        found = scoring.read_evaluation(folder, frames, eager)
        if isinstance(found, str):
            print(f"evaluation: not used, {found}")
        else:
            temperature, table = found.temperature, found.table
            eager = classifier.eager(views, temperature)

    size = (classifier.resize_size, classifier.crop_size)
    module = FramesToProbabilities(classifier.model, *size, views, temperature).eval()
    proto = export_graph(module, classifier.clip_len, config.opset, classifier.metadata)
    if views == 1 and not frames_free(proto):
        print(f"frames: {classifier.architecture} exports with {classifier.clip_len} frames only")
    session, clips = parity.open_session(proto), frames.for_parity()
    comparisons = parity.compare(session, eager, clips, frames_free(proto))
    mlflow.log_table(pd.DataFrame(comparisons), "parity.json")
    difference = parity.require_parity(comparisons, config.tolerance)
    onnx_ms, torch_ms = parity.latencies_ms(session, eager, clips[0])
    mlflow.log_metrics(
        {
            "parity_max_abs_diff": difference,
            "onnx_latency_ms": onnx_ms,
            "torch_latency_ms": torch_ms,
        }
    )

    if table is None and not unusable:
        table = frames.predictions(scoring.predictor(session))
    quantize = NONE
    if table is not None and config.quantize != NONE:
        source = export_graph(
            module, classifier.clip_len, config.opset, classifier.metadata, sheets=False
        )
        choice = choose(config.quantize, proto, source, table, frames, config.max_accuracy_drop)
        variants = pd.DataFrame(choice.variants)
        mlflow.log_table(variants, "variants.json")
        print(variants.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
        proto, table = choice.proto, choice.table
        quantize = config.quantize if choice.quantized else NONE
    metadata = classifier.metadata | {
        "views_in_graph": views,
        "frames_free": frames_free(proto),
        "temperature": temperature,
        "quantize": quantize,
        "commit": git_commit(),
    }
    if table is not None:
        metadata |= scoring.facts_of(table, frames, classifier.geometry)
        mlflow.log_text(table.to_csv(index=False), registry.PREDICTIONS)
    describe(proto, metadata)

    name = config.registered_model_name
    model_uri = registry.log_onnx(proto, metadata)
    version, verdict = registry.register(
        model_uri,
        name,
        registry.version_tags(metadata, difference),
        config.promote,
        Contest(name, frames, table, unusable).against,
        model_card(name, metadata, difference),
    )
    register_video_classifier(model_uri, version, config.video_model_name)
    mlflow.set_tag(MODEL_VERSION_TAG, f"{name}/{version.version}")
    print(
        f"models:/{name}/{version.version} is {verdict.text}; largest difference from PyTorch "
        f"{difference:.1e}; {onnx_ms:.0f} ms a clip (PyTorch {torch_ms:.0f} ms)"
    )


if __name__ == "__main__":
    export_onnx()
