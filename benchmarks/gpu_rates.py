"""What a GPU is fed and what it answers: loading, a training epoch, inference and evaluation.

    python -m benchmarks.gpu_rates

Clips of noise in the layout of K400-Tiny (JPEG folders) are written to a temporary folder. Medians
of rounds in turns are printed and written to `benchmarks/results/`, in a file named by the GPU.
Without one it runs on the CPU, to try it: `--clips 8 --batches 1,2`.
"""

import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from torch import nn

from benchmarks.common import in_turns, markdown, write_result
from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.data.loading.frame_cache import resolve_frame_cache
from k400tiny_lib.data.loading.loader import batches
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.evaluation.predictions import predict_clips
from k400tiny_lib.evaluation.views import ViewProtocol
from k400tiny_lib.models.conv2d import to_fast_layout
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import build_model, model_input
from k400tiny_lib.system import available_cores, cpu_name
from k400tiny_lib.training.loop import train_epoch
from k400tiny_lib.training.worker import make_train_state

NUM_FRAMES, SIDE, CLASSES = 40, 336, 400
GEOMETRY = Geometry(16, (128,), 112)


def write_clips(folder: Path, count: int) -> Annotations:
    """Folders of smooth noise as JPEG frames, half of them for training."""

    def write(number: int) -> Clip:
        path = folder / f"clip{number:04d}"
        path.mkdir(parents=True)
        rng = np.random.default_rng(number)
        for frame in range(NUM_FRAMES):
            coarse = rng.integers(0, 256, (21, 21, 3), dtype=np.uint8)
            cv2.imwrite(str(path / f"{frame:03d}.jpg"), cv2.resize(coarse, (SIDE, SIDE)))
        return Clip(path.name, (0, NUM_FRAMES - 1), number % CLASSES, path.name)

    with ThreadPoolExecutor(available_cores()) as pool:
        clips = list(pool.map(write, range(count)))
    categories = {f"class {number}": number for number in range(CLASSES)}
    return Annotations(categories, {"train": clips, "val": clips[:1], "test": clips}, "noise")


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the device's queue being empty before and after."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def inference(device: torch.device, sizes: list[int], rounds: int) -> str:
    """Forward passes of pixels that are on the device already, by batch size."""
    sides: dict[str, tuple[nn.Module, torch.dtype | None]] = {}
    for name, channels_last, dtype, compiled in (
        ("torchvision, float32", False, None, False),
        ("and bf16", False, torch.bfloat16, False),
        ("and channels-last, 2D convolutions", True, torch.bfloat16, False),
        ("and compiled", True, torch.bfloat16, True),
    ):
        model = to_fast_layout(build_model("r2plus1d_18", CLASSES).eval(), device, channels_last)
        if compiled:
            model.compile()
        sides[name] = model, dtype

    @torch.inference_mode()
    def forward(model: nn.Module, dtype: torch.dtype | None, pixels: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            model(model_input(model, pixels))

    rows = []
    repeats = 10 if device.type == "cuda" else 1
    for size in sizes:
        shape = (size, 3, GEOMETRY.clip_len, GEOMETRY.crop_size, GEOMETRY.crop_size)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

        def timed(model: nn.Module, dtype: torch.dtype | None, pixels: torch.Tensor) -> float:
            forward(model, dtype, pixels)
            run = partial(forward, model, dtype, pixels)
            return seconds_of(lambda: [run() for _ in range(repeats)], device) / repeats

        found = in_turns(
            {name: partial(timed, *side, pixels) for name, side in sides.items()}, rounds
        )
        plain = next(iter(found.values()))
        rows += [
            (str(size), name, f"{1000 * s:.2f}", f"{size / s:.0f}", f"{plain / s:.2f}")
            for name, s in found.items()
        ]
    header = ("batch", "", "ms a batch", "clips/s", "x torchvision")
    return "## Inference, 16 x 112 x 112\n\n" + markdown(header, rows)


def onnx_inference(device: torch.device, sizes: list[int], rounds: int) -> str:
    """The exported graph in ONNX Runtime on CUDA, from frames on the CPU to probabilities."""
    title = "## The exported graph in ONNX Runtime on CUDA"
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # needed by the export
    except ImportError:
        return f"{title}\n\nNot measured: onnxruntime and onnxscript are not installed."
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return f"{title}\n\nNot measured: this onnxruntime offers no CUDA."
    from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph
    from k400tiny_lib.serving.onnx_classifier import open_classifier

    model = FramesToProbabilities(build_model("r2plus1d_18", CLASSES).eval(), GEOMETRY).eval()
    metadata: dict[str, Any] = {"class_names": list(map(str, range(CLASSES))), "clip_len": 16}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        file.write_bytes(export_graph(model, 18, metadata).SerializeToString())
        classifier = open_classifier(file, device="cuda")
        for size in sizes:
            frames = np.random.default_rng(0).integers(
                0, 256, (size, 16, SIDE, SIDE, 3), dtype=np.uint8
            )
            call = partial(classifier.predict, frames)
            found = in_turns({"onnx": partial(seconds_of, call, device)}, rounds)["onnx"]
            rows.append((str(size), f"{1000 * found:.1f}", f"{size / found:.0f}"))
    return f"{title}\n\n" + markdown(("batch", "ms a batch", "clips/s"), rows)


def training(
    annotations: Annotations, base: Config, process: Process, batch_size: int, rounds: int
) -> str:
    """An epoch of training from the frame cache and from JPEG files, and its parts alone."""
    rows = []
    for frame_cache in ("packed", "none"):
        config = base.replace(frame_cache=frame_cache, batch_size=batch_size, num_epochs=99)
        pack = resolve_frame_cache(config, annotations)
        state = make_train_state(config, annotations, process, pack)
        waited: list[float] = []

        def load(state: Any = state) -> float:
            count, start = 0, time.perf_counter()
            for clips, _, _ in batches(state.train_loader):
                count += len(clips.to(process.device, non_blocking=True))
            wait(process.device)
            return count / (time.perf_counter() - start)

        def train(state: Any = state, waited: list[float] = waited) -> float:
            state.batch, state.seconds, state.waiting = 0, 0.0, 0.0
            metrics = train_epoch(state, lambda state: None)
            waited.append(metrics["data_time_fraction"])
            return metrics["clips_per_second"]

        found = in_turns({"load": load, "train": train}, rounds)
        workers = state.train_loader.num_workers
        reader = f"{workers} processes" if workers else "a thread"
        rows.append(
            (
                frame_cache,
                reader,
                f"{found['load']:.0f}",
                f"{found['train']:.0f}",
                f"{sorted(waited[1:])[len(waited[1:]) // 2]:.0%}",
            )
        )
    header = ("frame_cache", "read by", "clips/s to the device", "clips/s trained", "waiting")
    return (
        f"## Training, 16 x 112 x 112, batch {batch_size}, augmentation {base.augmentation}\n\n"
        "The start of the loader's processes is part of every epoch.\n\n" + markdown(header, rows)
    )


def evaluation(
    annotations: Annotations, base: Config, device: torch.device, batch_size: int, rounds: int
) -> str:
    """Clips scored from their JPEG files in float32, against the forward passes alone."""
    model = build_model("r2plus1d_18", CLASSES).eval().to(device)
    clips = annotations.splits["test"]
    workers = min(8, available_cores())
    shape = (batch_size, 3, GEOMETRY.clip_len, GEOMETRY.crop_size, GEOMETRY.crop_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)

    def score() -> None:
        predict_clips(
            model,
            clips,
            range(len(clips)),
            Path(base.data_path),
            GEOMETRY,
            ViewProtocol(1, 1),
            batch_size=batch_size,
            num_workers=workers,
            device=device,
        )

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(-(-len(clips) // batch_size)):
            model(model_input(model, pixels.to(device)))

    sides = {"from files": score, "forward passes alone": forward}
    found = in_turns({name: partial(seconds_of, s, device) for name, s in sides.items()}, rounds)
    rows = [(name, f"{len(clips) / seconds:.0f}") for name, seconds in found.items()]
    return f"## Evaluation, float32, batch {batch_size}, {workers} loader processes\n\n" + markdown(
        ("", "clips/s"), rows
    )


@click.command()
@click.option("--clips", default=256, help="Clips of noise to write.")
@click.option("--batches", "sizes", default="1,8,64", help="Batch sizes of inference.")
@click.option("--rounds", default=3, help="Rounds, of which medians are taken.")
def main(clips: int, sizes: str, rounds: int) -> None:
    """Measure, print and write the tables."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    hardware = torch.cuda.get_device_name(device) if on_gpu else cpu_name()
    process = Process(rank=0, world_size=1, local_world_size=1, device=device, restarts=0)
    batch_sizes = [int(size) for size in sizes.split(",")]
    largest = batch_sizes[-1]
    with tempfile.TemporaryDirectory() as folder:
        annotations = write_clips(Path(folder, "clips"), clips)
        base = Config(
            data_path=f"{folder}/clips",
            cache_dir=f"{folder}/cache",
            print_interval=0,
            clip_len=GEOMETRY.clip_len,
            resize_size=GEOMETRY.resize[0],
            crop_size=GEOMETRY.crop_size,
        )
        parts: list[tuple[str, Callable[[], str]]] = [
            ("training", partial(training, annotations, base, process, largest // 2 or 1, rounds)),
            ("evaluation", partial(evaluation, annotations, base, device, largest, rounds)),
            ("inference", partial(inference, device, batch_sizes, rounds)),
            ("ONNX", partial(onnx_inference, device, batch_sizes, rounds)),
        ]
        text = (
            f"# Rates of R(2+1)D-18 on a GPU\n\n{hardware} with {cpu_name()}, {available_cores()} "
            f"cores; Python {platform.python_version()}, PyTorch {torch.__version__}. {clips} "
            f"clips of {NUM_FRAMES} JPEG frames {SIDE} x {SIDE}; medians of {rounds} rounds."
        )
        for name, part in parts:
            start = time.perf_counter()
            text += f"\n\n{part()}"
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
            write_result("gpu_rates", hardware, text)  # what there is, if the next one is stopped


if __name__ == "__main__":
    main()
