"""From the start of a process to its first label: seconds and memory of fresh processes."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import psutil

ROOT = Path(__file__).resolve().parents[1]


def fresh_process(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds that a command takes, and its peak resident memory in MB."""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": str(ROOT),
        # Compiled modules, as pip leaves them, whatever this environment forbids.
        "PYTHONPYCACHEPREFIX": str(folder / "pycache"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    environment.pop("OMP_NUM_THREADS", None)
    start = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # What the system keeps of a finished process counts the memory of the one that forked it.
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, process.memory_info().rss)
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed with status {process.returncode}")
    return seconds, peak / 1e6


def start_rows(onnx_file: Path, clip: Path, rounds: int) -> list[tuple[str, str, str]]:
    """Seconds and peak memory of fresh processes, the first of each not counted."""
    eager = (
        "import torch; from pathlib import Path; from benchmarks.inference import PlainModel\n"
        "from torchvision.models.video import r2plus1d_18\n"
        f"PlainModel(r2plus1d_18().eval(), [Path({str(clip)!r})]).label(1)"
    )
    ours = (
        "from pathlib import Path\n"
        "from k400tiny_lib.serving.onnx_classifier import open_classifier\n"
        "from k400tiny_lib.serving.predict import label_inputs\n"
        f"label_inputs(open_classifier(Path({str(onnx_file)!r})), [Path({str(clip)!r})], 1, 5)"
    )
    predict = ["-m", "steps.predict", "--input", str(clip), "--model_uri", str(onnx_file)]
    commands = {
        "reference, imports and all": ["-c", eager],
        "our library alone": ["-c", ours],
        "`predict`, with its MLflow run": predict,
        "of which `import mlflow`": ["-c", "import mlflow"],
    }
    with tempfile.TemporaryDirectory() as folder:
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, arguments in commands.items():
                taken = fresh_process(arguments, Path(folder))
                if number:
                    costs[name].append(taken)
    return [
        (name, f"{median(s for s, _ in taken):.2f}", f"{median(mb for _, mb in taken):.0f}")
        for name, taken in costs.items()
    ]
