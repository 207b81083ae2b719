"""Training steps of R(2+1)D-18: torchvision's stock model against the form that training uses.

    python -m benchmarks.training_step

Forward and backward of the same clips, the sides in turns in one process; medians are printed and
written to `benchmarks/results/`, in a file named by the hardware. `ours` is what
`channels_last=auto` and `amp=auto` choose: bf16 and 2D convolutions on a CPU that multiplies bf16
(AMX or avx512_bf16), torchvision's own form in float32 on another. On a GPU the stock model
in float32 is compared with what is added to it one by one: bf16, channels-last memory with 2D
convolutions, torch.compile; `ours` is all of it.
"""

import os
import platform
import time
from functools import cache, partial
from typing import Literal

import click
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import r2plus1d_18

from benchmarks.common import Headline, in_turns, markdown, write_result
from k400tiny_lib.models.conv2d import to_fast_layout
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.system import cpu_name
from k400tiny_lib.training.optim import amp_dtype

NUM_CLASSES = 400
Shape = tuple[int, int, int, int]  # clips, frames, height, width
CPU_SHAPES: list[Shape] = [(16, 8, 32, 32), (8, 8, 56, 56), (4, 16, 112, 112)]
GPU_SHAPES: list[Shape] = [(64, 8, 56, 56), (32, 16, 112, 112)]
STOCK = "torchvision, float32"
OURS = "ours"

# Dense TFLOP/s that NVIDIA's data sheets state: (TF32, bf16). PyTorch's convolutions take TF32 for
# float32 unless told otherwise.
_PEAKS = {"H200": (494.5, 989.0), "H100 80GB HBM3": (494.5, 989.0), "A100": (156.0, 312.0)}


def step(model: nn.Module, clips: torch.Tensor, targets: torch.Tensor, bf16: bool) -> None:
    """Forward and backward of one batch."""
    with torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=bf16):
        loss = cross_entropy(model(clips), targets)
    loss.backward()
    model.zero_grad()


def seconds(model: nn.Module, shape: Shape, device: torch.device, bf16: bool, steps: int) -> float:
    """Seconds of one step, the device's queue being empty before and after."""
    count, *size = shape
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(count, 3, *size, generator=generator).to(device)
    targets = (torch.arange(count) % NUM_CLASSES).to(device)
    step(model, clips, targets, bf16)  # after another side, caches are cold
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        step(model, clips, targets, bf16)
    _wait(device)
    return (time.perf_counter() - start) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops(shape: Shape) -> int:
    """Floating-point operations of one step (multiplications and additions count one each)."""
    model = r2plus1d_18(weights=None, num_classes=NUM_CLASSES)
    count, *size = shape
    with FlopCounterMode(display=False) as counter:
        step(model, torch.randn(1, 3, *size), torch.zeros(1, dtype=torch.int64), bf16=False)
    return count * int(counter.get_total_flops())


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product: what of the peak can be had."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> float:
        start = time.perf_counter()
        for _ in range(5):
            torch.mm(a, b)
        _wait(device)
        return (time.perf_counter() - start) / 5

    return float(2 * size**3 / in_turns({"product": product}, 5)["product"])


def stock(device: torch.device) -> nn.Module:
    """torchvision's model as it comes."""
    model: nn.Module = r2plus1d_18(weights=None, num_classes=NUM_CLASSES).to(device)
    return model


def ours(
    device: torch.device, channels_last: bool | Literal["auto"], compiled: bool = False
) -> nn.Module:
    """The model as `training.worker` makes it."""
    model = to_fast_layout(build_model("r2plus1d_18", NUM_CLASSES), device, channels_last)
    if compiled:
        model.compile()
    return model


def sides_on(device: torch.device) -> dict[str, tuple[nn.Module, bool]]:
    """Models by name, each with whether it runs in bf16."""
    if device.type == "cpu":
        return {
            STOCK: (stock(device), False),
            "channels-last, 2D convolutions": (ours(device, True), False),
            OURS: (fast := ours(device, "auto"), amp_dtype("auto", fast, device) is not None),
        }
    return {
        STOCK: (stock(device), False),
        "and bf16": (stock(device), True),
        "and channels-last, 2D convolutions": (ours(device, "auto"), True),
        OURS: (ours(device, "auto", compiled=True), True),
    }


@cache
def peak(device: torch.device, bf16: bool) -> tuple[float, str]:
    """Operations per second that the chip can do at best, and who says so."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for chip, peaks in _PEAKS.items():
        if chip in name:
            return peaks[bf16] * 1e12, "data sheet"
    return matmul_flops(device, torch.bfloat16 if bf16 else torch.float32), "large matrix product"


def table(shape: Shape, device: torch.device, rounds: int, steps: int) -> tuple[str, Headline]:
    """Measure all sides on one size of clips; returns the table and the headline."""
    torch.compiler.reset()  # a second size would be compiled for any size, which takes minutes
    sides = sides_on(device)
    found = in_turns(
        {
            name: partial(seconds, model, shape, device, bf16, steps)
            for name, (model, bf16) in sides.items()
        },
        rounds,
    )
    work = flops(shape)
    rows = []
    for name, (_, bf16) in sides.items():
        best, source = peak(device, bf16)
        rows.append(
            (
                name,
                f"{1000 * found[name]:.1f}",
                f"{shape[0] / found[name]:.2f}",
                f"{found[STOCK] / found[name]:.2f}",
                f"{work / found[name] / 1e12:.3f}",
                f"{work / found[name] / best:.0%} ({source})",
            )
        )
    header = ("", "ms a step", "clips/s", "x torchvision", "TFLOP/s", "share of the peak")
    count, frames, height, width = shape
    size = f"{count} clips of {frames} x {height} x {width}"
    headline = Headline(
        f"training step, {size}",
        f"{count / found[OURS]:.1f} clips/s",
        f"{STOCK}: {count / found[STOCK]:.1f} clips/s",
        f"{found[STOCK] / found[OURS]:.2f}",
    )
    return f"## {size}\n\n" + markdown(header, rows), headline


def hardware_of(device: torch.device) -> str:
    """The name of what computes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def report(device: torch.device, rounds: int, steps: int) -> tuple[str, list[Headline]]:
    """Measure everything; returns the text of the results file and the headlines."""
    shapes = GPU_SHAPES if device.type == "cuda" else CPU_SHAPES
    setting = (
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, TF32 in convolutions "
        f"{'on' if torch.backends.cudnn.allow_tf32 else 'off'}, cudnn.benchmark on"
        if device.type == "cuda"
        else f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the start"
    )
    head = (
        f"# Training steps of R(2+1)D-18\n\n{hardware_of(device)}, {setting}; Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}, torchvision "
        f"{torchvision.__version__}. Forward and backward, {NUM_CLASSES} classes; medians of "
        f"{rounds} rounds in turns, {steps} step(s) each after one to warm up."
    )
    measured = [table(shape, device, rounds, steps) for shape in shapes]
    return "\n\n".join([head, *(text for text, _ in measured)]), [line for _, line in measured]


@click.command()
@click.option("--rounds", default=5, help="Rounds, of which medians are taken.")
@click.option("--steps", default=0, help="Steps in a row; 0 for 20 on a GPU and 1 on a CPU.")
def main(rounds: int, steps: int) -> None:
    """Measure, print and write the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # The clips of training all have one size: cuDNN may try its kernels.
    torch.backends.cudnn.benchmark = True
    steps = steps or (20 if device.type == "cuda" else 1)
    write_result("training_step", hardware_of(device), *report(device, rounds, steps))


if __name__ == "__main__":
    main()
