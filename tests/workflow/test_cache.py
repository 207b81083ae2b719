"""Steps are re-used for the same code, parameters and content, and for nothing else."""

import os
import shutil
from pathlib import Path

import mlflow
import pytest

from k400tiny_lib.config import Config
from k400tiny_lib.tracking.runs import step_run, tag_cache_key
from k400tiny_lib.workflow import cache
from k400tiny_lib.workflow.cache import cache_key, find_finished


@pytest.fixture
def config(tiny_data: tuple[Path, Path], tmp_path: Path) -> Config:
    frames = shutil.copytree(tiny_data[0], tmp_path / "frames")
    csv = shutil.copy(tiny_data[1], tmp_path / "labels.csv")
    annotations = tmp_path / "annotations.json"
    annotations.write_text("{}")
    return Config(data_path=str(frames), gt_csv=str(csv), annotations=str(annotations))


def test_content_of_a_frame_counts_and_its_time_and_place_do_not(
    config: Config, tmp_path: Path
) -> None:
    key = cache_key("prepare_data", config)
    frame = next(Path(config.data_path).glob("*/frame00.jpg"))
    os.utime(frame, (0, 0))
    assert cache_key("prepare_data", config) == key
    moved = Path(config.data_path).rename(tmp_path / "elsewhere")
    assert cache_key("prepare_data", config.replace(data_path=str(moved))) == key
    frame = next(moved.glob("*/frame00.jpg"))
    frame.write_bytes(frame.read_bytes() + b"\0")
    assert cache_key("prepare_data", config.replace(data_path=str(moved))) != key


def test_the_ground_truth_and_the_annotations_count(config: Config) -> None:
    prepare, train = cache_key("prepare_data", config), cache_key("train", config)
    with Path(config.gt_csv).open("a") as file:
        file.write("\n")
    assert cache_key("prepare_data", config) != prepare
    assert cache_key("train", config) == train
    Path(config.annotations).write_text('{"train": []}')
    assert cache_key("train", config) != train


def test_a_parameter_counts_in_the_steps_that_take_it_and_speed_in_none(config: Config) -> None:
    longer = config.replace(num_epochs=config.num_epochs + 1)
    assert cache_key("train", longer) != cache_key("train", config)
    assert cache_key("prepare_data", longer) == cache_key("prepare_data", config)
    faster = config.replace(num_workers=7, print_interval=3)
    assert cache_key("train", faster) == cache_key("train", config)


def test_a_directory_to_resume_from_counts_by_its_checkpoints(
    config: Config, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    resumed = config.replace(resume=str(checkpoints))
    empty = cache_key("train", resumed)
    (checkpoints / "last.pt").write_bytes(b"weights")
    assert cache_key("train", resumed) != empty
    assert cache_key("train", resumed) == cache_key("train", resumed)


def test_uncommitted_code_counts(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    for pattern in ("k400tiny_lib", "steps"):
        shutil.copytree(cache.ROOT / pattern, project / pattern)
    shutil.copy(cache.ROOT / "requirements.txt", project)
    here = cache_key("train", config)
    monkeypatch.setattr(cache, "ROOT", project)
    assert cache_key("train", config) == here
    with (project / "k400tiny_lib" / "errors.py").open("a") as file:
        file.write("# changed\n")
    assert cache_key("train", config) != here


def test_only_a_finished_run_whose_result_exists_is_found(store: str, config: Config) -> None:
    key = cache_key("train", config)

    def attempt(log_result: bool, fail: bool) -> str:
        try:
            with step_run("train", config) as run:
                tag_cache_key(key)
                if log_result:
                    mlflow.log_text("weights", "checkpoints/best.pt")
                if fail:
                    raise RuntimeError
        except RuntimeError:
            pass
        return str(run.info.run_id)

    attempt(log_result=True, fail=True)
    attempt(log_result=False, fail=False)
    assert find_finished("train", key, "0") is None
    good = attempt(log_result=True, fail=False)
    finished = find_finished("train", key, "0")
    assert finished is not None
    assert finished.info.run_id == good
    assert find_finished("evaluate", key, "0") is None
    assert find_finished("train", key[::-1], "0") is None
