"""How fast clips are loaded: a plain reference loader, `frame_cache=none` and `packed`.

    python -m benchmarks.data_loading --data ../shared/data/k400tiny_images

All sides read the same clips in one run, in turns; medians are printed and written to
`benchmarks/results/`, in a file named by the processor.
"""

import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from benchmarks.common import Headline, in_turns, markdown, write_result
from k400tiny_lib.config import AUTO
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.frame_cache import CachedFrames, write_cache
from k400tiny_lib.data.loading.loader import batches, worker_count
from k400tiny_lib.data.loading.readers import ImageFiles
from k400tiny_lib.media.frames import decode_frame, frame_files
from k400tiny_lib.media.sampling import uniform_indices
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.system import available_cores, cpu_name

CLIP_LEN, RESIZE, CROP = 16, 128, 112
BATCH = 8


class PlainClips(Dataset[Tensor]):
    """The reference loader: decode every frame, then select those of the clip."""

    def __init__(self, clips: Sequence[Clip], data_path: Path) -> None:
        self.clips, self.data_path = clips, data_path

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> Tensor:
        files = frame_files(self.data_path / self.clips[position].video)
        frames = [cv2.imread(str(file), cv2.IMREAD_COLOR_RGB) for file in files]
        video = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2)  # (T, H, W, C) -> (T, C, ..)
        video = video[uniform_indices(len(video), CLIP_LEN)].float() / 255
        video = F.center_crop(F.resize(video, [RESIZE], antialias=True), [CROP, CROP])
        design = ARCHITECTURES["r2plus1d_18"]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (design.mean, design.std))
        video = (video - mean) / std
        clip: Tensor = video.transpose(0, 1).contiguous()  # (T, C, H, W) -> (C, T, H, W)
        return clip


class BareDecoder(Dataset[int]):
    """An upper bound for any loader: decode the frames of a clip and drop them."""

    def __init__(
        self, clips: Sequence[Clip], data_path: Path, flags: int, num_frames: int = CLIP_LEN
    ) -> None:
        self.clips, self.data_path, self.flags = clips, data_path, flags
        self.num_frames = num_frames

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> int:
        clip = self.clips[position]
        files = frame_files(self.data_path / clip.video)
        for index in uniform_indices(clip.num_frames, self.num_frames).tolist():
            cv2.imdecode(np.fromfile(files[index], np.uint8), self.flags)
        return 0


def dataset(clips: Sequence[Clip], read: Any) -> ClipDataset:
    """What training reads, without augmentation: uint8 (C, T, crop, crop)."""
    return ClipDataset(clips, read, clip_len=CLIP_LEN, crop_size=CROP, training=True)


def one_by_one(data: Any, repeats: int = 1) -> float:
    """Milliseconds per clip in this process."""
    start = time.perf_counter()
    for position in range(len(data) * repeats):
        data[position % len(data)]
    return 1000 * (time.perf_counter() - start) / (len(data) * repeats)


def in_batches(data: Any, num_workers: int, repeats: int = 1) -> float:
    """Milliseconds per clip in batches, the start of worker processes not counted."""
    order = [position % len(data) for position in range(len(data) * repeats)]
    loader: Any = DataLoader(data, BATCH, sampler=order, num_workers=num_workers)
    counted, start = 0, 0.0
    for number, batch in enumerate(batches(loader)):
        if number == num_workers:  # each worker has delivered, and works on its second batch
            start = time.perf_counter()
        elif number > num_workers:
            counted += len(batch[0] if isinstance(batch, list) else batch)
    return 1000 * (time.perf_counter() - start) / counted


def decoder_rows(files: Sequence[Path], rounds: int) -> list[tuple[str, str]]:
    """Milliseconds per frame of the decoders at hand."""
    encoded = [np.fromfile(file, np.uint8) for file in files]

    def timed(decode: Callable[[Any], object]) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            for data in encoded:
                decode(data)
            return 1000 * (time.perf_counter() - start) / len(encoded)

        return run

    sides = {
        f"OpenCV {cv2.__version__}": timed(lambda e: cv2.imdecode(e, cv2.IMREAD_COLOR_RGB)),
        "OpenCV, half scale": timed(lambda e: cv2.imdecode(e, cv2.IMREAD_REDUCED_COLOR_2)),
        f"torchvision {version('torchvision')}": timed(
            lambda e: decode_image(torch.from_numpy(e), ImageReadMode.RGB)
        ),
    }
    try:
        import simplejpeg  # type: ignore[import-not-found, import-untyped, unused-ignore]

        name = f"simplejpeg {version('simplejpeg')}"
        sides[name] = timed(lambda e: simplejpeg.decode_jpeg(e, "RGB"))
    except ImportError:
        pass
    return [(name, f"{ms:.3f}") for name, ms in in_turns(sides, rounds).items()]


def cache_rates(annotations: Annotations, data_path: Path, rounds: int) -> tuple[float, float]:
    """Milliseconds per clip on all cores: (writing the cache, decoding the same frames only)."""
    clips = list(annotations.clips)
    cores = available_cores()

    def write() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            write_cache(annotations, data_path, RESIZE, Path(folder, "cache"), cores)
            return 1000 * (time.perf_counter() - start) / len(clips)

    def decode() -> float:
        bare = BareDecoder(clips, data_path, cv2.IMREAD_COLOR_RGB, clips[0].num_frames)
        loader: Any = DataLoader(bare, None, num_workers=cores)
        start = time.perf_counter()
        for _ in loader:
            pass
        return 1000 * (time.perf_counter() - start) / len(clips)

    times = in_turns({"write": write, "decode": decode}, rounds)
    return times["write"], times["decode"]


def peak_megabytes(make: Callable[[], Any]) -> float:
    """Peak memory of a fresh fork that reads all clips once, without pages of mapped files.

    Those belong to the system's cache, which drops them when memory runs out.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()

    def child() -> None:
        data = make()
        peak = 0
        for position in range(len(data)):
            data[position]
            peak = max(peak, anonymous_kilobytes())
        sender.send(peak / 1024)

    process = context.Process(target=child)
    process.start()
    peak = float(receiver.recv())
    process.join()
    return peak


def anonymous_kilobytes() -> int:
    """Resident memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def report(
    data_path: Path, num_clips: int, workers: int, rounds: int
) -> tuple[str, list[Headline]]:
    """Measure everything; returns the text of the results file and the headlines."""
    folders = sorted(path for path in data_path.iterdir() if path.is_dir())[:num_clips]
    clips = [Clip(path.name, (0, len(frame_files(path)) - 1), 0, path.name) for path in folders]
    annotations = Annotations({"a": 0}, {"train": clips, "val": [], "test": []}, "benchmark")
    files = ImageFiles(data_path, RESIZE)
    quarter = clips[: len(clips) // 4]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        write_cache(annotations, data_path, RESIZE, cache, available_cores())
        size = sum(path.stat().st_size for path in cache.glob("*.safetensors")) / len(clips)
        packed = CachedFrames(cache)
        memory = [
            [name, *(f"{peak_megabytes(partial(dataset, c, read)):.0f}" for c in (quarter, clips))]
            for name, read in (("none", files), ("packed", packed))
        ]
        sides: dict[str, Any] = {
            "reference: all frames decoded, floats": PlainClips(clips, data_path),
            "bare decoder, the clip's frames": BareDecoder(clips, data_path, cv2.IMREAD_COLOR_RGB),
            "bare decoder at half scale": BareDecoder(clips, data_path, cv2.IMREAD_REDUCED_COLOR_2),
            "none": dataset(clips, files),
            "packed": dataset(clips, packed),
        }
        alone = in_turns(
            {
                name: partial(one_by_one, data, 20 if name == "packed" else 1)
                for name, data in sides.items()
            },
            rounds,
        )
        sides["packed, sent by worker processes"] = sides["packed"]
        batched = in_turns(
            {
                name: partial(
                    in_batches,
                    data,
                    worker_count(AUTO, 1, data) if name == "packed" else workers,
                    40 if "packed" in name else 2,
                )
                for name, data in sides.items()
                if "bare" not in name
            },
            rounds,
        )
    writing_ms, decoding_ms = cache_rates(annotations, data_path, rounds)

    plain, bare = list(alone)[:2]

    def rate(milliseconds: float) -> str:
        return f"{1000 / milliseconds:.0f}"

    rows = []
    for name in sides:
        one, batch = [""] * 4, [""] * 2
        if name in alone:
            ms = alone[name]
            one = [f"{ms:.2f}", rate(ms), f"{alone[plain] / ms:.1f}", f"{alone[bare] / ms:.2f}"]
        if name in batched:
            batch = [rate(batched[name]), f"{batched[plain] / batched[name]:.1f}"]
        rows.append([name, *one, *batch])
    jpeg = sum(file.stat().st_size for path in folders for file in frame_files(path)) / len(clips)
    height, width = decode_frame(frame_files(folders[0])[0]).shape[:2]
    headlines = [
        Headline(
            f"loading clips, {words}",
            f"{rate(batched[name])} clips/s",
            f"all frames decoded, floats: {rate(batched[plain])} clips/s",
            f"{batched[plain] / batched[name]:.1f}",
        )
        for name, words in (("none", "from image files"), ("packed", "from the frame cache"))
    ]
    text = "\n\n".join(
        [
            "# Loading clips",
            f"{cpu_name()}, {available_cores()} cores, load average {os.getloadavg()[0]:.1f} at "
            f"the end; Python {platform.python_version()}, PyTorch {torch.__version__}, OpenCV "
            f"{cv2.__version__}, safetensors {version('safetensors')}. {len(clips)} clips of "
            f"{clips[0].num_frames} frames {width}x{height}, {jpeg / 1e6:.2f} MB of JPEG a clip; "
            f"{CLIP_LEN} frames, short side {RESIZE}, crop {CROP}. Medians of {rounds} rounds in "
            "turns.",
            "## Loader",
            f"Alone: one process, one thread. In batches: batches of {BATCH}, {workers} worker(s); "
            "`packed` has a thread that reads ahead instead, as `num_workers=auto` chooses. "
            "The reference hands over normalized floats; `none` and `packed` hand over uint8, "
            'which the device normalizes. "x bare" is the share of the bare decoder\'s rate.',
            markdown(
                (
                    "",
                    "ms a clip",
                    "clips/s",
                    "x reference",
                    "x bare",
                    "clips/s in batches",
                    "x reference in batches",
                ),
                rows,
            ),
            "## Frame cache",
            markdown(
                ("", ""),
                [
                    ("bytes a clip", f"{size:,.0f} ({size / jpeg:.1f} times its JPEGs)"),
                    ("writing on all cores", f"{rate(writing_ms)} clips/s"),
                    ("decoding alone on all cores", f"{rate(decoding_ms)} clips/s"),
                    ("writing's share of the decoder's rate", f"{decoding_ms / writing_ms:.2f}"),
                ],
            ),
            "## Peak memory of a loader process (MB)",
            markdown(("", f"{len(quarter)} clips", f"{len(clips)} clips"), memory),
            "## Decoders (ms a frame, one thread)",
            markdown(("", "ms"), decoder_rows(frame_files(folders[0]), rounds)),
        ]
    )
    return text, headlines


@click.command()
@click.option("--data", required=True, help="Directory of frame folders.")
@click.option("--clips", default=80, help="Clips to read, at most.")
@click.option("--workers", default=2, help="Loader processes.")
@click.option("--rounds", default=5, help="Rounds, of which medians are taken.")
def main(data: str, clips: int, workers: int, rounds: int) -> None:
    """Measure, print and write the table."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    write_result("data_loading", cpu_name(), *report(Path(data), clips, workers, rounds))


if __name__ == "__main__":
    main()
