"""Evaluation and the exported graph on a GPU: the predictions of the CPU."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.evaluation import worker
from k400tiny_lib.evaluation.predictions import predict_clips, probabilities_of
from k400tiny_lib.evaluation.views import ViewProtocol
from k400tiny_lib.models.loaded import load_model
from tests.helpers.evaluation import write_annotated_clips, write_checkpoint
from tests.helpers.training import CPU

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Annotations]:
    """The parameters of an evaluation and its clips."""
    folder = tmp_path_factory.mktemp("evaluated")
    data_path, annotations_file, annotations = write_annotated_clips(folder)
    settings = Config(
        data_path=str(data_path),
        annotations=str(annotations_file),
        checkpoint=str(write_checkpoint(folder / "best.pt", name="r2plus1d_18")),
        batch_size=3,
        num_workers=0,
        num_clips=2,
    )
    return settings, annotations


def test_predictions_are_those_of_the_cpu(
    device: torch.device, evaluated: tuple[Config, Annotations]
) -> None:
    settings, annotations = evaluated
    clips = annotations.splits["test"]
    tables = []
    for where in (torch.device("cpu"), device):
        loaded = load_model(settings)
        with torch.inference_mode():
            table = predict_clips(
                loaded.model.to(where),
                clips,
                range(len(clips)),
                Path(settings.data_path),
                loaded.geometry,
                ViewProtocol(2, 1),
                batch_size=3,
                num_workers=1,
                device=where,
            )
        tables.append(table)
    cpu, found = map(probabilities_of, tables)
    assert cpu.std(0).max() > 0.01  # the clips are not all alike
    np.testing.assert_allclose(found, cpu, atol=1e-4)


def test_the_worker_of_evaluate_writes_the_tables_of_the_cpu(
    process: Process, evaluated: tuple[Config, Annotations]
) -> None:
    settings, annotations = evaluated
    results = [
        worker.predict_splits(
            settings.replace(robustness=True), annotations, partial(worker.run, process=where)
        )
        for where in (CPU, process)
    ]
    (cpu, corrupted), (found, also_corrupted) = results
    for split in cpu:
        assert found[split]["video"].tolist() == cpu[split]["video"].tolist()
        np.testing.assert_allclose(
            probabilities_of(found[split]), probabilities_of(cpu[split]), atol=1e-4
        )
    assert corrupted is not None
    assert also_corrupted is not None
    assert corrupted.columns.tolist() == also_corrupted.columns.tolist()


def test_the_exported_graph_gives_the_answers_of_the_cpu_on_cuda(
    device: torch.device, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from k400tiny_lib.serving.onnx_classifier import open_classifier
    from tests.helpers.export import build, clips, graph_of

    on_gpu = device.type == "cuda"
    if on_gpu and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime offers no CUDA: onnxruntime-gpu does")
    (tmp_path / "model.onnx").write_bytes(graph_of(build()))
    frames = torch.stack(clips(3)).numpy()
    cpu, found = (
        open_classifier(tmp_path / "model.onnx", device=name).predict(frames)
        for name in ("cpu", device.type)
    )
    np.testing.assert_allclose(found, cpu, atol=1e-3)
