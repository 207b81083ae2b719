"""The rendered sample: the same bytes for a seed, never half a clip, motion as the only clue."""

from pathlib import Path

import pandas as pd
import pytest

from k400tiny_lib.data.sources.rendered import (
    CLASSES,
    GROUND_TRUTH_FILE,
    IMAGES_FOLDER,
    render_sample,
)
from k400tiny_lib.media.frames import data_digest

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


def test_a_seed_gives_the_same_bytes_on_any_number_of_processes(
    rendered: Path, tmp_path: Path
) -> None:
    render_sample(tmp_path, seed=3, workers=2, **SMALL)
    assert data_digest(tmp_path / IMAGES_FOLDER) == data_digest(rendered / IMAGES_FOLDER)
    other = tmp_path / "other"
    render_sample(other, seed=4, workers=1, **SMALL)
    assert data_digest(other / IMAGES_FOLDER) != data_digest(rendered / IMAGES_FOLDER)


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
