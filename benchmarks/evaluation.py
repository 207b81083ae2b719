"""The cost of an evaluation compared with its forward passes alone.

python -m benchmarks.evaluation --data_path frames --annotations annotations.json

Side by side, in turns: scoring clips from their files (decode, resize, crop, forward, average), and
only the forward passes of the same clips, ready in memory. One process and its loader. The weights
are random, which costs the same.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import torchvision

from benchmarks.common import Headline, write_result
from k400tiny_lib.data.annotations import Clip, read_annotations
from k400tiny_lib.evaluation.predictions import predict_clips
from k400tiny_lib.evaluation.views import ViewDataset, ViewProtocol
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import build_model, model_input
from k400tiny_lib.system import cpu_name

GEOMETRY = Geometry(clip_len=16, resize=(128,), crop_size=112)


@torch.inference_mode()
def forward_seconds(model: torch.nn.Module, clips: torch.Tensor, batch_size: int) -> float:
    """Seconds of the forward passes alone, float32 (N, C, T, H, W)."""
    start = time.perf_counter()
    for batch in clips.split(batch_size):
        model(batch)
    return time.perf_counter() - start


def evaluation_seconds(
    model: torch.nn.Module, clips: list[Clip], data_path: Path, batch_size: int, num_workers: int
) -> float:
    """Seconds from files to predictions."""
    start = time.perf_counter()
    predict_clips(
        model,
        clips,
        range(len(clips)),
        data_path,
        GEOMETRY,
        ViewProtocol(1, 1),
        batch_size=batch_size,
        num_workers=num_workers,
        device=torch.device("cpu"),
    )
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--num_clips", type=int, default=24)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    clips = list(read_annotations(arguments.annotations).clips)[: arguments.num_clips]
    model = build_model("r2plus1d_18", 400).eval()
    dataset = ViewDataset(clips, arguments.data_path, GEOMETRY, ViewProtocol(1, 1))
    inputs = model_input(model, torch.cat([dataset[number][0] for number in range(len(clips))]))
    forward_seconds(model, inputs[: arguments.batch_size], arguments.batch_size)  # warm-up
    pairs = [
        (
            forward_seconds(model, inputs, arguments.batch_size),
            evaluation_seconds(
                model, clips, arguments.data_path, arguments.batch_size, arguments.num_workers
            ),
        )
        for _ in range(arguments.rounds)
    ]
    forward, evaluation = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(whole / part for part, whole in pairs)
    cpu = cpu_name()
    text = f"""# Evaluation against its forward passes

{cpu}, {torch.get_num_threads()} threads, {arguments.num_workers} loader process(es);
torch {torch.__version__}, torchvision {torchvision.__version__}.
{len(clips)} clips, R(2+1)D-18 at 16 x 112 x 112, batch {arguments.batch_size}, medians of
{arguments.rounds} rounds in turns.

| | seconds a clip |
|---|---|
| forward passes of clips ready in memory | {forward / len(clips):.3f} |
| evaluation from files | {evaluation / len(clips):.3f} |
| ratio (median of the rounds; the target is at most 1.1) | {ratio:.3f} |
"""
    headline = Headline(
        "evaluation from files",
        f"{len(clips) / evaluation:.2f} clips/s",
        f"forward passes alone: {len(clips) / forward:.2f} clips/s",
        f"{1 / ratio:.2f}",
    )
    write_result("evaluation", cpu, text, [headline])


if __name__ == "__main__":
    main()
