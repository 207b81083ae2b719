"""Small data, real paths: clips of 6 frames at 48 x 40 px, a tracking store of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

from tests.helpers.leaks import changes, process_state

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as training sets it for its workers
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the test files run side by side, one per core

# The same examples each time, for a failure to be one of the change at hand; with K400TINY_EXAMPLES
# (how many) they are new ones, to search for faults.
settings.register_profile("steady", derandomize=True)
if "K400TINY_EXAMPLES" not in os.environ:
    settings.load_profile("steady")

cv2.setNumThreads(1)  # as loading sets it: its threads do not survive a fork

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"
# Begun first, for the processes to end together: a file that takes a minute, begun last, is waited
# for by all others.
LONGEST = (
    "tests/e2e/test_main.py",
    "tests/export/test_export_step.py",
    "tests/distributed/",
    "tests/models/test_architectures.py",
    "tests/serving/test_serving.py",
    "tests/test_extending.py",
    "tests/training/",
    "tests/registry/",
    "tests/evaluation/",
)
LABELS = ("sliding", "growing", "turning")
NUM_FRAMES = 6


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    rank = {name: number for number, name in enumerate(LONGEST)}

    def begins(item: pytest.Item) -> int:
        return next((rank[name] for name in LONGEST if item.nodeid.startswith(name)), len(rank))

    items.sort(key=begins)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_changed() -> Iterator[None]:
    """Each file leaves its process as it was: the order of files, which varies, has no effect."""
    before = process_state()
    yield
    changed = changes(before, process_state())
    assert not changed


def write_clip(
    folder: Path, seed: int, num_frames: int = NUM_FRAMES, size: tuple[int, int] = (40, 48)
) -> None:
    """Frames of smooth noise, height x width = size."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(num_frames):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"frame{number:02d}.jpg"), cv2.resize(coarse, size[::-1]))


def write_data(
    root: Path, sources_per_class: int = 4, clips_per_source: int = 2, num_frames: int = NUM_FRAMES
) -> tuple[Path, Path]:
    """Frame folders of three classes and their ground truth; returns (data_path, gt_csv)."""
    rows = []
    for number, label in enumerate(LABELS):
        for source in range(sources_per_class):
            for clip in range(clips_per_source):
                name = f"v{number}{source:02d}_{clip:06d}_{clip + 1:06d}"
                write_clip(root / "frames" / name, seed=len(rows), num_frames=num_frames)
                rows.append((name, f"v{number}{source:02d}", label))
    csv = root / "labels.csv"
    pd.DataFrame(rows, columns=["folder_name", "youtube_id", "label"]).to_csv(csv, index=False)
    return root / "frames", csv


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data that no test changes: (data_path, gt_csv)."""
    return write_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty tracking store, used by this process and the steps that it starts."""
    from tests.helpers.store import make_store, tracking

    monkeypatch.chdir(tmp_path)
    uri = make_store(tmp_path)
    with tracking(uri):
        yield uri


@pytest.fixture(scope="session")
def exported() -> bytes:
    """The graph of `tests.helpers.export.build()`, optimized as `export_model` does it."""
    from k400tiny_lib.models.architectures import ARCHITECTURES
    from tests.helpers.export import build, graph_of

    optimize = ARCHITECTURES["r2plus1d_18"].optimize_for_export
    assert optimize is not None
    return graph_of(optimize(build()))


@pytest.fixture(scope="session")
def exported_plain() -> bytes:
    """The graph of the same model without optimizations, from which variants are made."""
    from tests.helpers.export import build, graph_of

    return graph_of(build())
