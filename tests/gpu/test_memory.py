"""A GPU whose memory is full: one line for people, from training and from evaluation."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from k400tiny_lib.config import Config
from k400tiny_lib.distributed.launch import Job
from k400tiny_lib.evaluation import worker as evaluation
from k400tiny_lib.training.worker import work
from tests.helpers.evaluation import write_annotated_clips, write_checkpoint
from tests.helpers.training import annotate, config, make_job

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("alone_in_torchrun")]


@pytest.fixture
def full(device: torch.device) -> Iterator[None]:
    """A GPU on which this process may use 150 MB: the weights fit, their gradients do not."""
    if device.type != "cuda":
        pytest.skip("there is no GPU")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(150e6 / total, device)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("full")
def test_a_training_that_does_not_fit_is_one_line(
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny_data[0], tmp_path, batch_size=16)
    job = make_job(settings, annotate(tiny_data[0]))
    assert work(job) == 2
    message = job.error.read_text()
    assert message.startswith("batch_size: 16 does not fit into memory (")
    assert "\n" not in message


@pytest.mark.usefixtures("full")
def test_an_evaluation_that_does_not_fit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_path, annotations, _ = write_annotated_clips(tmp_path, num_clips=3)
    settings = Config(
        data_path=str(data_path),
        annotations=str(annotations),
        checkpoint=str(write_checkpoint(tmp_path / "best.pt", name="r2plus1d_18")),
        batch_size=64,
        num_workers=0,
        num_clips=3,
    )
    (tmp_path / "job").mkdir()
    job = Job(settings, tmp_path / "job")
    job.write()
    torch.cuda.set_per_process_memory_fraction(
        100e6 / torch.cuda.get_device_properties(0).total_memory
    )
    monkeypatch.setattr(sys, "argv", ["worker", str(job.file)])
    with pytest.raises(SystemExit) as ended:
        evaluation.main()
    assert ended.value.code == 2
    message = job.error.read_text()
    assert message.startswith("batch_size: 64 views do not fit into the GPU's memory (")
    assert "\n" not in message
