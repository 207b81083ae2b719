"""Making a version champion by hand: both models or neither, and never in silence."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from k400tiny_lib.config import resolve
from k400tiny_lib.errors import UserError
from k400tiny_lib.registry import rollback, video_model
from k400tiny_lib.registry.promotion import champion_of, make_champion, versions_of
from k400tiny_lib.registry.registry import log_onnx
from k400tiny_lib.registry.rollback import Champion, promote_by_hand
from k400tiny_lib.registry.video_model import follow_champion, register_video_classifier
from tests.helpers.export import METADATA, toy_graph
from tests.helpers.store import copy_store, make_store, tracking

NAME, VIDEO = "toy", "toy-video"


@dataclass(frozen=True)
class Registry:
    """A store and its artifacts, and copies of both with three versions of both models."""

    folder: Path
    client: MlflowClient

    def restore(self) -> None:
        """Begin again with the three versions: a copy is faster than three exports."""
        copy_store(self.folder / "three", self.folder)
        shutil.rmtree(self.folder / "artifacts")
        shutil.copytree(self.folder / "three" / "artifacts", self.folder / "artifacts")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """For all tests here; the third versions are champions."""
    folder = tmp_path_factory.mktemp("registry")
    with tracking(make_store(folder)):
        client = MlflowClient()
        client.create_experiment("rollback", f"{folder}/artifacts")
        mlflow.set_experiment("rollback")
        for _ in range(3):
            export()
        assert champions() == ("3", "3")
        shutil.copytree(folder / "artifacts", folder / "three" / "artifacts")
        copy_store(folder, folder / "three")
        yield Registry(folder, client)


@pytest.fixture
def empty(registry: Registry) -> MlflowClient:
    for model in registry.client.search_registered_models():
        registry.client.delete_registered_model(model.name)
    return registry.client


@pytest.fixture
def three(registry: Registry) -> MlflowClient:
    registry.restore()
    return registry.client


def export(name: str = NAME, video: str = VIDEO, tags: dict[str, str] | None = None) -> None:
    """What an export whose version is promoted leaves in the registry."""
    with mlflow.start_run():
        uri = log_onnx(toy_graph(), dict(METADATA))
        version = mlflow.register_model(uri, name, tags=tags)
        make_champion(name, str(version.version), champion_of(name))
        register_video_classifier(uri, version, video)


def by_hand(version: str, **names: str) -> tuple[Champion, Champion]:
    names = {"registered_model_name": NAME} | names
    with mlflow.start_run():
        return promote_by_hand(resolve("promote", {"version": version} | names), wait_s=0)


def champions() -> tuple[str | None, str | None]:
    return champion_of(NAME), champion_of(VIDEO)


def folder_of(version: ModelVersion) -> Path:
    model = MlflowClient().get_logged_model(str(version.source).removeprefix("models:/"))
    return Path(model.artifact_location)


def test_one_command_takes_both_models_back_and_forth(three: MlflowClient) -> None:
    onnx, video = by_hand("1")
    assert champions() == ("1", "1")
    assert onnx.text == f"models:/{NAME}@champion is version 1 (before: version 3)"
    assert video.text == f"models:/{VIDEO}@champion is version 1 (before: version 3)"
    by_hand("previous")
    assert champions() == ("3", "3")
    by_hand("previous")
    assert champions() == ("1", "1")
    three.set_registered_model_alias(NAME, "challenger", "2")
    by_hand("challenger")
    assert champions() == ("2", "2")
    by_hand("2")  # again: nothing changes, and `previous` is still the one before
    by_hand("previous")
    assert champions() == ("1", "1")


def test_a_lost_sibling_is_made_again(three: MlflowClient) -> None:
    three.delete_model_version(VIDEO, "1")
    by_hand("1")
    assert champions() == ("1", "4")
    assert three.get_model_version(VIDEO, "4").tags["onnx_version"] == "1"
    assert mlflow.pyfunc.load_model(f"models:/{VIDEO}@champion") is not None
    shutil.rmtree(folder_of(three.get_model_version(VIDEO, "2")))
    by_hand("2")
    assert champions() == ("2", "5")
    [file] = folder_of(three.get_model_version(VIDEO, "3")).rglob("*.onnx")
    file.write_bytes(file.read_bytes()[:100])
    by_hand("3")
    assert champions() == ("3", "6")
    by_hand("1")
    assert champions() == ("1", "4")


def test_the_video_model_is_found_by_the_versions_in_it(empty: MlflowClient) -> None:
    export(video="other")
    export(video="other")
    onnx, video = by_hand("1")
    assert (onnx.name, video.name, champion_of("other")) == (NAME, "other", "1")
    assert champion_of("k400tiny-video-classifier") is None
    export(video="third")
    with pytest.raises(UserError, match=r"^video_model_name: other and third hold"):
        by_hand("1")
    by_hand("1", video_model_name="third")
    assert champion_of("third") == "2"


def test_the_default_names_are_those_of_the_architecture_that_there_is(empty: MlflowClient) -> None:
    with pytest.raises(
        UserError, match=r"^registered_model_name: there is no k400tiny-r2plus1d_18"
    ):
        by_hand("1", registered_model_name="auto")
    export("k400tiny-s3d", "k400tiny-video-classifier-s3d", {"architecture": "s3d"})
    empty.delete_registered_model("k400tiny-video-classifier-s3d")
    onnx, video = by_hand("1", registered_model_name="auto")
    assert (onnx.name, video.name) == ("k400tiny-s3d", "k400tiny-video-classifier-s3d")


def remove_files(client: MlflowClient, version: str) -> None:
    shutil.rmtree(folder_of(client.get_model_version(NAME, version)))


def truncate_onnx(client: MlflowClient, version: str) -> None:
    [file] = folder_of(client.get_model_version(NAME, version)).glob("*.onnx")
    file.write_bytes(file.read_bytes()[:100])


def test_what_cannot_be_champion_is_refused_in_a_line_and_both_stay(three: MlflowClient) -> None:
    remove_files(three, "1")
    truncate_onnx(three, "2")
    for version, names, message in (
        ("9", {}, r"version: toy has no version 9. .*versions \(3, 2, 1\)"),
        ("9" * 30, {}, "version: toy has no version 9"),
        ("nix", {}, r"version: toy has no alias nix. .*\(champion, previous\)"),
        ("-1", {}, "version: toy has no alias -1"),
        ("0", {}, "version: toy has no version 0"),
        ("3", {"registered_model_name": "nix"}, "registered_model_name: there is no .* nix"),
        ("3", {"video_model_name": "nix"}, "video_model_name: there is no .* nix"),
        ("1", {}, r"version: models:/toy/1: its files are gone. Needed: "),
        ("2", {}, r"version: .* cannot be opened \("),
    ):
        with pytest.raises(UserError, match=f"^{message}") as caught:
            by_hand(version, **names)
        assert str(caught.value).count("Needed:") <= 1
        assert not re.search(r"\.\.$|\.\.? Needed", str(caught.value).replace(". Needed", ""))
        assert champions() == ("3", "3")


@pytest.mark.parametrize("error", [MlflowException("lost"), KeyboardInterrupt()])
def test_where_the_second_model_cannot_be_changed_the_first_is_changed_back(
    three: MlflowClient, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(*names: str) -> None:
        assert champions() == ("1", "3")
        raise error

    monkeypatch.setattr(rollback, "follow_champion", fails)
    with pytest.raises(type(error)):
        by_hand("1")
    assert champions() == ("3", "3")


def test_an_export_at_the_same_moment_is_not_hidden(
    three: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*names: str) -> None:
        make_champion(NAME, "2", "1")
        follow_champion(*names)

    monkeypatch.setattr(rollback, "follow_champion", overtaken)
    with pytest.raises(UserError, match=r"^version: an export made version 2 of toy champion"):
        by_hand("1")
    assert champions() == ("2", "2")


def test_an_export_says_what_the_video_champion_lacks_or_makes_it(
    three: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    three.delete_model_version(VIDEO, "1")
    make_champion(NAME, "1", "3")
    run_id = three.get_model_version(NAME, "1").run_id
    with mlflow.start_run():
        three.update_run(run_id, "RUNNING")
        follow_champion(NAME, VIDEO)
        assert f"run {run_id} is about to register" in capsys.readouterr().out
        assert champions() == ("1", "3")
        three.set_terminated(run_id, "FAILED")
        follow_champion(NAME, VIDEO)
        assert "had nothing of the champion, version 1; made again" in capsys.readouterr().out
        assert champions() == ("1", "4")
        shutil.rmtree(folder_of(three.get_model_version(VIDEO, "4")))
        follow_champion(NAME, VIDEO)
        assert champions() == ("1", "5")
    # An export goes on where an older champion has lost its files.
    remove_files(three, "1")
    three.delete_model_version(VIDEO, "5")
    with mlflow.start_run():
        uri = log_onnx(toy_graph(), dict(METADATA))
        register_video_classifier(uri, mlflow.register_model(uri, NAME), VIDEO)
    assert "its champion stays as it is: " in capsys.readouterr().out


def test_names_with_quotes_of_an_older_registry_are_served_like_others(empty: MlflowClient) -> None:
    for name in ("o'brien", 'the "best"', "both ' and \"", "50% \\"):
        for _ in range(2):
            export(name, f"{name} video")
        assert [str(v.version) for v in versions_of(name)] == ["1", "2"]
        assert (champion_of(name), champion_of(f"{name} video")) == ("2", "2")
        by_hand("1", registered_model_name=name)
        assert (champion_of(name), champion_of(f"{name} video")) == ("1", "1")


def test_a_version_of_the_video_model_describes_itself(empty: MlflowClient) -> None:
    tags = {"test_acc1": "97.5", "architecture": "r2plus1d_18", "k400tiny.promotion": "champion"}
    export(tags=tags)
    version = empty.get_model_version(VIDEO, "1")
    assert version.tags["test_acc1"] == "97.5"
    assert version.tags["onnx_model"] == NAME
    assert "k400tiny.promotion" not in version.tags
    card = version.description
    assert f"[models:/{NAME}/1](#/models/{NAME}/versions/1?" in card
    assert f"  -m models:/{VIDEO}/1\n" in card
    assert "sliding, growing, turning" in card
    # The files say nothing of where they were made, but for MLflow's own address of the store.
    text = (folder_of(version) / "MLmodel").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("artifact_path:")]
    for folder in (folder_of(version).parents[2], Path(video_model.__file__).parents[2]):
        assert not [line for line in lines if str(folder) in line]
    assert mlflow.models.get_model_info(f"models:/{VIDEO}/1").signature is not None
    assert mlflow.pyfunc.load_model(f"models:/{VIDEO}/1") is not None
