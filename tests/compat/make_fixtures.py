"""Makes the files of `fixtures/` with the code of commit 71b16d0; today's code cannot run this.

    git worktree add /tmp/old 71b16d0
    cd /tmp/old
    PYTHONPATH=. python <this repository>/tests/compat/make_fixtures.py

71b16d0 is the last commit before modules moved into packages: its checkpoints and registered models
are what users have on their disks. The old code trains, exports and logs everything. Two things are
changed afterwards:

- Checkpoints of whole architectures have 37 and 125 MB, so each float tensor repeats its first 13
  values. Keys, shapes, types and magnitudes stay, and xz reduces the file to a hundredth or less.
  The BatchNorm statistics of best.pt are taken again, for clips to get through the new weights.
- The paths in MLmodel become those of some other machine.

`expected.json` holds what the old code then computes with these files. The module names in here are
those of 71b16d0 and must stay so when modules of today are renamed.
"""

# ruff: noqa: I001 (ruff counts as ours what exists today, and many of these modules do not)
import dataclasses
import json
import lzma
import os
import shutil
import signal
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import av
import k400tiny_lib
import mlflow
import numpy as np
import onnx
import torch
from inputs import LABELS, NUM_FRAMES, noise, write_data
from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.export import classifier as models
from k400tiny_lib.export.graph import FramesToProbabilities, describe, export_graph, frames_free
from k400tiny_lib.export.registry import log_onnx
from k400tiny_lib.export.session import open_classifier
from k400tiny_lib.export.video_registry import log_video_classifier
from k400tiny_lib.journal import read_entries
from k400tiny_lib.model import build_model, model_input
from k400tiny_lib.training import worker
from k400tiny_lib.training.checkpoint import model_of, read_checkpoint, write_atomically, write_last
from k400tiny_lib.training.distributed import Process
from k400tiny_lib.training.loop import Interrupted, Trainer
from k400tiny_lib.training.resuming import settle_resume
from k400tiny_lib.training.worker import Job
from torch import Tensor, nn

FIXTURES = Path(__file__).resolve().parent / "fixtures"
KEPT = 13  # no length of a row of a weight is a multiple of it, so that rows differ
CPU = Process(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"), restarts=0)
# Relative paths: nothing of the machine gets into the files.
SMALL: dict[str, Any] = {
    "data_path": "frames",
    "annotations": "annotations.json",
    "clip_len": 4,
    "resize_size": 36,
    "crop_size": 32,
    "batch_size": 4,
    "num_workers": 0,
    "warmup_epochs": 0.0,
    "seed": 7,
    "amp": "off",
    "channels_last": False,  # the same numbers on any CPU
}


def train(settled: Config, run_id: str, stop_after: tuple[int, int] | None = None) -> Path:
    """Train as a worker does, with a SIGTERM after (finished epochs, batch); returns the folder."""
    folder = Path(settled.checkpoint_dir)
    folder.mkdir(exist_ok=True)
    original = worker.fit

    def fit(trainer: Trainer, on_epoch: Any, on_update: Any) -> None:
        def update(trainer: Trainer) -> None:
            if (trainer.epoch, trainer.batch) == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            on_update(trainer)

        original(trainer, on_epoch, update)

    worker.fit = fit
    job = Job(settled, run_id, folder / f"journal-{run_id}.jsonl", folder / f"error-{run_id}.txt")
    try:
        worker.run(job, CPU)
    except Interrupted:
        assert stop_after is not None
    finally:
        worker.fit = original
    return folder


def repeat_first_values(content: Any) -> None:
    """Let each float tensor repeat its first values, in place: what shares memory still does."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple):
        for item in content:
            repeat_first_values(item)
    elif isinstance(content, Tensor) and content.is_floating_point() and content.numel() > KEPT:
        flat = content.view(-1)
        flat.copy_(flat[:KEPT].repeat(-(-len(flat) // KEPT))[: len(flat)])


def fit_statistics(content: dict[str, Any]) -> None:
    """Give BatchNorm the statistics of the repeated weights; with others no clip gets through.

    They repeat as well: rows of a weight that are KEPT apart are equal.
    """
    model, _ = model_of(content, "checkpoint")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 1.0
    clips = torch.stack([torch.from_numpy(noise(200 + number, 4, 32, 32)) for number in range(8)])
    with torch.no_grad():
        model.train()(model_input(model, clips.permute(0, 4, 1, 2, 3)))  # -> (N, C, T, H, W)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            content["model"][name].copy_(buffer)
    repeat_first_values(content["model"])


def pack(path: Path, name: str) -> None:
    """Store a file as xz."""
    with path.open("rb") as source, lzma.open(FIXTURES / name, "wb", preset=9) as target:
        shutil.copyfileobj(source, target)


def pack_folder(folder: Path, name: str) -> None:
    """Store the directory of a logged model as tar.xz, without owners, times and local paths."""
    description = folder / "MLmodel"
    text = description.read_text()
    for local in (Path.cwd(), Path(k400tiny_lib.__file__).resolve().parents[1]):
        text = text.replace(str(local), "/home/user/k400tiny")
    description.write_text(text)

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if "__pycache__" in member.name:
            return None
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(FIXTURES / name, "w:xz", preset=9) as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, arcname=path.name, filter=plain)


def make_best() -> dict[str, Any]:
    """best.pt of the default architecture, and the old code's probabilities of a clip."""
    folder = train(Config(**SMALL, checkpoint_dir="best", num_epochs=1), "run-of-best")
    content = read_checkpoint(folder / "best.pt", "checkpoint")
    repeat_first_values(content["model"])
    fit_statistics(content)
    write_atomically(content, folder / "best.pt")
    pack(folder / "best.pt", "best.pt.xz")
    classifier = models.from_checkpoint(folder / "best.pt")
    frames = torch.from_numpy(noise(100, num_frames=4))[None]
    return {
        "probabilities": classifier.eager(1)(frames)[0].tolist(),
        "metadata": classifier.metadata,
        "epoch": content["epoch"],
        "categories": content["categories"],
        "config": content["config"],
    }


def make_last() -> dict[str, Any]:
    """last.pt of a training that a signal has stopped within its second epoch, and how it ends."""
    config = Config(
        **SMALL, checkpoint_dir="last", num_epochs=2, model="x3d_s", ema_decay=0.5, lr=0.001
    )
    folder = train(config, "run-of-last", stop_after=(1, 1))
    content = read_checkpoint(folder / "last.pt", "resume")
    for part in ("model", "raw_model", "average", "optimizer", "processes"):
        repeat_first_values(content[part])
    write_last(content, folder)
    pack(folder / "last.pt", "last.pt.xz")
    continued = dataclasses.replace(config, resume=str(folder), checkpoint_dir="continued")
    after = train(settle_resume(continued)[0], "run-after")
    [*_, (entry, _)] = read_entries(after / "journal-run-after.jsonl")
    return {
        "run_id": content["run_id"],
        "finished_epochs": content["finished_epochs"],
        "batch": content["batch"],
        "updates": content["updates"],
        "journal_steps": [json.loads(line)["step"] for line in content["journal"].splitlines()],
        "metrics_of_epoch_2": {key: entry.metrics[key] for key in ("train_loss", "val_loss", "lr")},
    }


def slim_model() -> nn.Module:
    """R(2+1)D with the first of four stages: the nodes of the whole graph, of a fiftieth the size.

    BatchNorm stays as it is built, because folded into the weights it would spoil their repetition.
    """
    torch.manual_seed(0)
    model: Any = build_model("r2plus1d_18", len(LABELS))
    model.layer2, model.layer3, model.layer4 = nn.Identity(), nn.Identity(), nn.Identity()
    model.fc = nn.Linear(64, len(LABELS))
    with torch.no_grad():
        for parameter in model.parameters():
            repeat_first_values(parameter)
        model.fc.weight *= 3  # an untrained head hardly tells clips apart
    built: nn.Module = model.eval()
    return built


def logged_folder(uri: str) -> Path:
    """The directory of a logged model."""
    return Path(mlflow.artifacts.download_artifacts(uri))


def make_registered() -> dict[str, Any]:
    """Both registered models as MLflow logged them, and what they answer."""
    views, temperature = 2, 1.5
    model, names = slim_model(), list(LABELS)
    classifier = models.Classifier(model, "r2plus1d_18", 4, 36, 32, names, "run-of-best")
    module = FramesToProbabilities(classifier.model, 36, 32, views, temperature).eval()
    proto = export_graph(module, 4, 18, classifier.metadata)
    metadata = classifier.metadata | {
        "views_in_graph": views,
        "frames_free": frames_free(proto),
        "temperature": temperature,
        "quantize": "none",
        "commit": "71b16d0",
    }
    describe(proto, metadata)
    Path("model.onnx").write_bytes(proto.SerializeToString())
    frames = noise(101, num_frames=8)
    write_lossless_video(Path("video.mkv"), frames)
    shutil.copyfile("video.mkv", FIXTURES / "video.mkv")

    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    with mlflow.start_run():
        onnx_folder = logged_folder(log_onnx(onnx.load("model.onnx"), metadata))
        served_folder = logged_folder(log_video_classifier(Path("model.onnx")))
    opened = open_classifier(Path("model.onnx"), device="cpu")
    served = mlflow.pyfunc.load_model(str(served_folder), model_config={"video_root": "."})
    [answer] = served.predict([{"path": "video.mkv"}]).to_dict("records")
    expected = {
        "metadata": metadata,
        "probabilities": opened.predict(frames[None])[0].tolist(),
        "served": {key: list(answer[key]) for key in ("labels", "probabilities")},
    }
    pack_folder(onnx_folder, "onnx_model.tar.xz")
    pack_folder(served_folder, "video_classifier.tar.xz")
    return expected


def write_lossless_video(path: Path, frames: np.ndarray) -> None:
    """A video that decodes to the same pixels everywhere."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=12)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    """Make everything in an empty directory."""
    FIXTURES.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        clips = [
            Clip(name, (0, NUM_FRAMES - 1), target, name)
            for name, target in write_data(Path("frames"))
        ]
        splits = {"train": clips[:12], "val": clips[12:], "test": clips[12:]}
        annotations = Annotations({label: i for i, label in enumerate(LABELS)}, splits)
        Path("annotations.json").write_text(annotations.to_json())
        shutil.copyfile("annotations.json", FIXTURES / "annotations.json")
        expected = {"best": make_best(), "last": make_last(), "registered": make_registered()}
        (FIXTURES / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
