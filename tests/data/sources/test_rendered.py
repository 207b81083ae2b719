"""The rendered sample: the same bytes for a seed, never half a clip, motion as the only clue."""

import subprocess
import sys
from pathlib import Path

import cv2
import pandas as pd
import pytest

from k400tiny_lib.config import Config
from k400tiny_lib.data.sources.drawing import CLASSES
from k400tiny_lib.data.sources.rendered import (
    FORMAT,
    GROUND_TRUTH_FILE,
    IMAGES_FOLDER,
    RenderedSample,
    render_sample,
)
from tests.conftest import REPOSITORY
from tests.helpers.frames import data_digest

# Mean gray levels of the first and the last frame, per FORMAT.
MEANS = {
    1: {
        "smp322efa76_000000_000010": (155.0, 132.7),
        "smp322efa76_000010_000020": (155.7, 126.9),
        "smpc55e3aa7_000000_000010": (136.9, 153.0),
        "smpc55e3aa7_000010_000020": (128.9, 151.7),
        "smpe29e6c95_000000_000010": (170.0, 169.1),
        "smpe29e6c95_000010_000020": (168.9, 169.0),
        "smpb0b773a2_000000_000010": (79.7, 79.4),
        "smpb0b773a2_000010_000020": (78.4, 78.2),
        "smp2248893a_000000_000010": (62.6, 63.2),
        "smp2248893a_000010_000020": (65.8, 64.9),
        "smp12e15258_000000_000010": (155.2, 154.9),
        "smp12e15258_000010_000020": (156.0, 155.7),
        "smpfe33cc8b_000000_000010": (70.4, 69.3),
        "smpfe33cc8b_000010_000020": (72.3, 72.7),
        "smpe6fcadb2_000000_000010": (74.0, 74.0),
        "smpe6fcadb2_000010_000020": (73.1, 74.0),
    }
}
SMALL = {"num_sources_per_class": 1, "clips_per_source": 2, "num_frames": 4, "size": 48}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    render_sample(root, seed=3, workers=1, **SMALL)
    return root


def test_it_has_the_layout_of_k400tiny(rendered: Path) -> None:
    table = pd.read_csv(rendered / GROUND_TRUTH_FILE, dtype=str)
    assert len(table) == 2 * len(CLASSES)
    assert set(table["label"]) == set(CLASSES)
    assert (table["youtube_id"].str.len() == 11).all()
    assert (table.groupby("youtube_id").size() == 2).all()
    for name in table["folder_name"]:
        frames = sorted(p.name for p in (rendered / IMAGES_FOLDER / name).iterdir())
        assert frames == [f"frame{i:02d}.jpg" for i in range(4)]


def test_a_format_keeps_its_pixels(rendered: Path) -> None:
    # Another processor may round a few pixels differently, so their bytes are not compared.
    means = {
        folder.name: tuple(
            float(cv2.imread(str(folder / f"frame{i:02d}.jpg")).mean()) for i in (0, 3)
        )
        for folder in (rendered / IMAGES_FOLDER).iterdir()
    }
    expected = MEANS[FORMAT]
    assert means.keys() == expected.keys()
    for name, values in expected.items():
        assert means[name] == pytest.approx(values, abs=0.1), f"raise FORMAT: {name}"


def test_the_directory_depends_on_format_and_seed(tmp_path: Path) -> None:
    config = Config(output_dir=str(tmp_path))
    directories = {RenderedSample(config.replace(seed=seed)).directory for seed in (0, 1)}
    assert len(directories) == 2
    assert all(f"v{FORMAT}" in str(path) for path in directories)


def test_a_seed_gives_the_same_bytes_on_any_number_of_processes(
    rendered: Path, tmp_path: Path
) -> None:
    render_sample(tmp_path, seed=3, workers=2, **SMALL)
    assert data_digest(tmp_path / IMAGES_FOLDER) == data_digest(rendered / IMAGES_FOLDER)
    other = tmp_path / "other"
    render_sample(other, seed=4, workers=1, **SMALL)
    assert data_digest(other / IMAGES_FOLDER) != data_digest(rendered / IMAGES_FOLDER)


def test_two_processes_that_render_at_once_both_succeed(rendered: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from k400tiny_lib.data.sources.rendered import render_sample
print("ready", flush=True)
input()
render_sample(Path({str(tmp_path)!r}), seed=3, workers=1, **{SMALL!r})
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert data_digest(tmp_path / IMAGES_FOLDER) == data_digest(rendered / IMAGES_FOLDER)


def test_rendering_resumes_and_leaves_existing_clips_alone(rendered: Path, tmp_path: Path) -> None:
    render_sample(tmp_path, seed=3, workers=1, **SMALL)
    first, second = sorted((tmp_path / IMAGES_FOLDER).iterdir())[:2]
    (first / "frame00.jpg").write_bytes(b"edited")
    for frame in second.iterdir():
        frame.unlink()
    second.rmdir()
    render_sample(tmp_path, seed=3, workers=1, **SMALL)
    assert (first / "frame00.jpg").read_bytes() == b"edited"
    again = rendered / IMAGES_FOLDER / second.name
    for frame in again.iterdir():
        assert (second / frame.name).read_bytes() == frame.read_bytes()


def test_classes_come_in_pairs_of_one_motion_and_its_reverse() -> None:
    motions = pd.DataFrame(CLASSES.values(), columns=["motion", "direction"])
    assert (motions.groupby("motion")["direction"].agg(["size", "sum"]) == [2, 0]).all(axis=None)
