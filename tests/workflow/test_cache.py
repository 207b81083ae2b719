"""Steps are re-used for the same code, parameters and content, and for nothing else."""

import os
import shutil
from pathlib import Path

import fsspec
import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from k400tiny_lib.config import PARAMETERS, Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.registry.registry import log_onnx
from k400tiny_lib.tracking.models import logged_model_id
from k400tiny_lib.tracking.runs import step_run, tag_cache_key
from k400tiny_lib.workflow import cache
from k400tiny_lib.workflow.cache import cache_key, find_finished
from tests.conftest import write_clip
from tests.helpers.export import METADATA, toy_graph


def register_toy(name: str) -> ModelVersion:
    """A version of a tiny model, logged in the active run or one of its own."""
    with mlflow.start_run(nested=True):
        return mlflow.register_model(log_onnx(toy_graph(), METADATA), name)


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


INPUTS = ("annotations", "checkpoint", "load_model", "resume", "evaluation", "compare_with")
STEP_OF = {"annotations": "train", "load_model": "train", "resume": "train"} | {
    "checkpoint": "evaluate",
    "compare_with": "evaluate",
    "evaluation": "export_onnx",
}


def test_every_text_parameter_of_the_chain_is_an_input_or_known_to_be_none() -> None:
    """A new parameter that names a file must be declared as an input, or its content is missed."""
    texts = {n for n, p in PARAMETERS.items() if p.allowed == "text" and p.affects_result}
    inputs = {*INPUTS, "unknown_path"}
    assert {n for n, p in PARAMETERS.items() if p.is_input} == inputs
    assert texts - inputs == {
        *("recipe", "input", "data_path", "gt_csv", "group_by", "weights", "no_flip_classes"),
        *("model_uri", "search"),
    }


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_an_input_counts_by_its_content_wherever_it_is(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = f"{scheme}{tmp_path}/{name}" if scheme != "memory://" else f"memory://{name}-{scheme}"
    files = fsspec.core.url_to_fs(folder)[0]

    def write(text: str) -> None:
        for file in ("file.csv", "predictions.csv", "calibration.json"):
            with fsspec.open(f"{folder}/{file}", "w") as target:
                target.write(text)
        files.invalidate_cache()

    write("one")
    uri = folder if name == "evaluation" else f"{folder}/file.csv"
    given = config.replace(**{name: uri})
    first = cache_key(STEP_OF[name], given)
    assert cache_key(STEP_OF[name], given) == first
    write("another")
    assert cache_key(STEP_OF[name], given) != first


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_unknown_clips_count_by_their_content_wherever_they_are(
    config: Config, tmp_path: Path, scheme: str
) -> None:
    folder = f"{scheme}{tmp_path}/unknown"

    def write(name: str, seed: int) -> None:
        write_clip(tmp_path / f"{name}{seed}", seed)
        for file in (tmp_path / f"{name}{seed}").iterdir():
            with fsspec.open(f"{folder}/{name}/{file.name}", "wb", auto_mkdir=True) as target:
                target.write(file.read_bytes())
        fsspec.core.url_to_fs(folder)[0].invalidate_cache()

    write("jump", 1)
    given = config.replace(unknown_path=folder)
    first = cache_key("evaluate", given)
    assert cache_key("evaluate", config) != first == cache_key("evaluate", given)
    write("jump", 2)
    second = cache_key("evaluate", given)
    assert second != first
    write("run", 1)
    assert cache_key("evaluate", given) not in (first, second)


def test_linked_unknown_clips_count_and_files_that_are_no_clips_do_not(
    config: Config, tmp_path: Path
) -> None:
    write_clip(tmp_path / "elsewhere", 1)
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "jump").symlink_to(tmp_path / "elsewhere")
    given = config.replace(unknown_path=str(tmp_path / "unknown"))
    first = cache_key("evaluate", given)
    (tmp_path / "unknown" / "notes.txt").write_text("text")
    assert cache_key("evaluate", given) == first
    (tmp_path / "elsewhere" / "frame00.jpg").write_bytes(b"another picture")
    assert cache_key("evaluate", given) != first


def test_an_artifact_of_a_run_counts_by_its_uri_and_is_not_fetched(config: Config) -> None:
    first, second = (config.replace(checkpoint=f"runs:/{n * 32}/best.pt") for n in "ab")
    assert cache_key("evaluate", first) == cache_key("evaluate", first)
    assert cache_key("evaluate", first) != cache_key("evaluate", second)


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("compare_with", "@champion"),
        ("compare_with", "/latest"),
        ("load_model", "@champion/model.onnx"),
    ],
)
def test_an_alias_counts_as_the_version_that_it_means_now(
    store: str, config: Config, name: str, alias: str
) -> None:
    client, step = MlflowClient(), STEP_OF[name]
    aliased = config.replace(**{name: f"models:/toy{alias}"})
    with pytest.raises(UserError, match=f"^{name}: models:/toy"):
        cache_key(step, aliased)
    keys = []
    for _ in range(2):
        version = register_toy("toy").version
        client.set_registered_model_alias("toy", "champion", version)
        keys += [cache_key(step, aliased), cache_key(step, aliased)]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    numbered = config.replace(**{name: f"models:/toy/{version}{alias[9:]}"})
    if "latest" not in alias:
        assert cache_key(step, numbered) == keys[3]
    client.set_registered_model_alias("toy", "champion", "1")
    if "latest" not in alias:
        assert cache_key(step, aliased) == keys[0]


def test_a_directory_to_resume_automatically_counts_by_its_checkpoints(
    config: Config, tmp_path: Path
) -> None:
    auto = config.replace(resume="auto", checkpoint_dir=str(tmp_path / "ck"))
    from_scratch = cache_key("train", config)
    assert cache_key("train", auto) == from_scratch  # there is nothing to resume
    (tmp_path / "ck").mkdir()
    keys = []
    for text in ("one", "another"):
        (tmp_path / "ck" / "last.pt").write_text(text)
        keys.append(cache_key("train", auto))
    assert len({from_scratch, *keys}) == 3
    # A directory named by the run holds no other training.
    assert cache_key("train", auto.replace(checkpoint_dir="auto")) == from_scratch


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


ARTIFACTS = {
    "prepare_data": ("annotations/annotations.json", "annotations/data_report.json"),
    "train": ("checkpoints/best.pt",),
    "evaluate": (
        "evaluation/predictions.csv",
        "evaluation/per_class.csv",
        "evaluation/calibration.json",
        "evaluation/report.html",
    ),
}


@pytest.mark.parametrize("step", ARTIFACTS)
def test_only_a_finished_run_whose_artifacts_exist_is_found(
    store: str, config: Config, step: str
) -> None:
    key = "0" * 32

    def attempt(artifacts: tuple[str, ...], fail: bool) -> str:
        try:
            with step_run(step, config) as run:
                tag_cache_key(key)
                for path in artifacts:
                    mlflow.log_text("content", path)
                if fail:
                    raise RuntimeError
        except RuntimeError:
            pass
        return str(run.info.run_id)

    attempt(ARTIFACTS[step], fail=True)
    for missing in ARTIFACTS[step]:
        attempt(tuple(path for path in ARTIFACTS[step] if path != missing), fail=False)
    assert find_finished(step, key, "0") is None
    good = attempt(ARTIFACTS[step], fail=False)
    finished = find_finished(step, key, "0")
    assert finished is not None
    assert finished.info.run_id == good
    assert find_finished("export_onnx", key, "0") is None
    assert find_finished(step, "1" * 32, "0") is None
    shutil.rmtree(Path("mlruns"))  # a clean-up by hand, a life cycle of a bucket
    assert find_finished(step, key, "0") is None


@pytest.mark.parametrize("gone", ["model", "video", "version", "nothing"])
def test_an_export_is_re_used_only_if_the_files_of_both_its_models_exist(
    store: str, config: Config, gone: str
) -> None:
    key = "0" * 32
    with step_run("export_onnx", config):
        tag_cache_key(key)
        versions = {"model": register_toy("toy"), "video": register_toy("toy-video")}
        tags = {"model": "k400tiny.model_version", "video": "k400tiny.video_model_version"}
        mlflow.set_tags({tags[n]: f"{v.name}/{v.version}" for n, v in versions.items()})
    assert find_finished("export_onnx", key, "0") is not None
    if gone in versions:
        [file] = Path("mlruns").rglob(f"{logged_model_id(versions[gone])}/artifacts/*.onnx")
        file.unlink()
    elif gone == "version":
        MlflowClient().delete_model_version("toy", "1")
    assert (find_finished("export_onnx", key, "0") is None) == (gone != "nothing")
