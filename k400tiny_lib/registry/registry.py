"""Logs an export and registers it: a version with signature, tags, description and aliases."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.config.model_names import name_models
from k400tiny_lib.export.companions import write_companions
from k400tiny_lib.export.exporter import Exported
from k400tiny_lib.export.onnx_graph import INPUT, OUTPUT, frames_free
from k400tiny_lib.export.parity import ParityCase
from k400tiny_lib.registry.model_card import model_card
from k400tiny_lib.registry.promotion import (
    PREDICTIONS,
    TEST_DIGEST_TAG,
    Promotion,
    PromotionDecision,
    make_challenger,
    promote,
)
from k400tiny_lib.registry.video_log import installed
from k400tiny_lib.registry.video_model import register_video_classifier
from k400tiny_lib.tracking.evaluation_log import evaluation_folder
from k400tiny_lib.tracking.models import register_logged
from k400tiny_lib.tracking.runs import (
    MODEL_VERSION_TAG,
    VIDEO_VERSION_TAG,
    local_copy,
    local_inputs,
)

MODEL_NAME = "model"
COMPANIONS = "export"  # folder of the run's artifacts with the labels and the test vector
DECISION_TAG = "k400tiny.promotion"  # of a version: how its promotion was decided
_MODEL_TAGS = ("architecture", "quantize", "training_run_id", "commit", "temperature", "protocol")
_SCORE_TAGS = ("test_acc1", "test_acc1_interval", "test_loss", "data_digest", TEST_DIGEST_TAG)


def export_inputs(config: Config) -> Config:
    """The parameters of export_onnx with local paths in place of URIs.

    Raises:
        UserError: if one of the inputs is not there.
    """
    data = () if config.annotations == NONE else ("data_path", "annotations")
    config = local_inputs(config, "checkpoint", *data)
    if config.evaluation == NONE:
        return config
    folder = local_copy(evaluation_folder(config.evaluation), "evaluation")
    return config.replace(evaluation=str(folder))


def log_parity(cases: Sequence[ParityCase]) -> None:
    """Log the cases of the parity check to the active run, whether they pass or not."""
    mlflow.log_table(pd.DataFrame(cases), "parity.json")
    mlflow.log_metric("parity_max_abs_diff", max(case.max_abs_diff for case in cases))


def log_export(exported: Exported) -> None:
    """Log the metrics, the tables and a variant that was not chosen to the active run."""
    latencies = {"onnx_latency_ms": exported.onnx_ms, "torch_latency_ms": exported.torch_ms}
    mlflow.log_metrics(latencies)
    if exported.choice.variants:
        mlflow.log_table(pd.DataFrame(exported.choice.variants), "variants.json")
    if (rejected := exported.choice.rejected) is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{rejected.name}.onnx")
            onnx.save(rejected.proto, path)
            mlflow.log_artifact(str(path), "variants")
    if exported.choice.predictions is not None:
        mlflow.log_text(exported.choice.predictions.to_csv(index=False), PREDICTIONS)


def register_export(exported: Exported, config: Config) -> tuple[ModelVersion, PromotionDecision]:
    """Log and register the model of an export and its video classifier; decide who is champion.

    Args:
        exported: a graph that passed the parity check.
        config: the names of the two registered models, and `promote`.

    Returns:
        The version, with alias `challenger`, and whether it is `champion` now, and why.
    """
    metadata, choice = exported.metadata, exported.choice
    config = name_models(config, str(metadata["architecture"]))
    name = config.registered_model_name
    model_uri = log_onnx(choice.proto, metadata)
    registered, decision = register(
        model_uri,
        Promotion(config.promote, name, exported.clips, choice.predictions, exported.not_scored),
        version_tags(metadata, exported.parity),
        lambda version: model_card(name, version, metadata, exported.parity),
    )
    video = register_video_classifier(model_uri, registered, config.video_model_name)
    versions = {MODEL_VERSION_TAG: registered, VIDEO_VERSION_TAG: video}
    mlflow.set_tags({tag: f"{v.name}/{v.version}" for tag, v in versions.items()})
    return registered, decision


def log_onnx(proto: onnx.ModelProto, metadata: Mapping[str, Any]) -> str:
    """Log a graph to the active run as one file, with signature; returns the model's URI.

    Its labels and its test vector are artifacts of the run, and extra files of the model.

    Args:
        proto: from `export_graph`; MLflow changes it.
        metadata: as written into it.
    """
    views = metadata.get("views_in_graph", 1)
    num_frames = -1 if frames_free(proto) else views * metadata["clip_len"]
    frames, probabilities = (-1, num_frames, -1, -1, 3), (-1, len(metadata["class_names"]))
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), frames, INPUT)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), probabilities, OUTPUT)]),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_companions(Path(folder), proto, metadata)
        mlflow.log_artifacts(folder, COMPANIONS)
        info = mlflow.onnx.log_model(
            onnx_model=proto,
            name=MODEL_NAME,
            signature=signature,
            save_as_external_data=False,
            extra_files=[str(path) for path in sorted(Path(folder).iterdir())],
            # Without this MLflow asks for CUDA first and warns where there is none.
            onnx_execution_providers=["CPUExecutionProvider"],
            # Without this MLflow loads the model once more to find the requirements.
            pip_requirements=installed("mlflow", "onnxruntime", "onnx", "numpy"),
            metadata={key: json.dumps(value) for key, value in metadata.items()},
        )
    return str(info.model_uri)


def version_tags(metadata: Mapping[str, Any], parity: float) -> dict[str, str]:
    """The tags of a version, by which the registry can be searched."""
    names = [n for n in _MODEL_TAGS + _SCORE_TAGS if metadata.get(n) not in (None, "")]
    return {n: str(metadata[n]) for n in names} | {"parity_max_abs_diff": f"{parity:.3g}"}


def register(
    model_uri: str,
    promotion: Promotion,
    tags: Mapping[str, str],
    card: Callable[[str], str] = lambda version: "",
    wait_s: float = 1.0,
) -> tuple[ModelVersion, PromotionDecision]:
    """Register a logged model that passed the parity check and decide who is champion.

    Args:
        model_uri: from `log_onnx`.
        promotion: the rule, with the name of the registered model, which is created where it does
            not exist.
        tags: of the version.
        card: makes the description of a version from its number: markdown, at most 5000
            characters.
        wait_s: see `promote`.

    Returns:
        The version, with alias `challenger`, and whether it is `champion` now, and why.
    """
    client, name = MlflowClient(), promotion.name
    registered = register_logged(model_uri, name, tags)
    make_challenger(name)
    decision = PromotionDecision(False, "interrupted before it was compared")
    try:
        if description := card(str(registered.version)):
            client.update_model_version(name, registered.version, description)
        decision = promote(str(registered.version), promotion, wait_s)
    finally:
        client.set_model_version_tag(name, registered.version, DECISION_TAG, decision.text)
    return registered, decision
