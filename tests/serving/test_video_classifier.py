"""What the served model answers in a notebook: row by row, with code of its own."""

import json
import logging
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from onnx import TensorProto, helper

import k400tiny_lib
from k400tiny_lib.media.video import sample_video
from k400tiny_lib.registry.video_log import log_video_classifier
from k400tiny_lib.serving import video_classifier as imported_module
from tests.conftest import REPOSITORY
from tests.helpers.hostile_videos import many_pixels, ordinary, thin
from tests.helpers.server import in_base64
from tests.helpers.store import make_store, tracking

CLASSES = ["red", "green", "blue"]


def write_graph(path: Path, threshold: float = 0.0) -> None:
    """A graph that answers with the softmax of a clip's mean color."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    shapes: tuple[list[Any], list[Any]] = (["N", "T", "H", "W", 3], ["N", 3])
    graph = helper.make_graph(
        nodes,
        "mean color",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, shapes[0])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shapes[1])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    facts = {"class_names": CLASSES, "clip_len": 4, "confidence_threshold": threshold}
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, path)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The directory of the logged model."""
    folder = tmp_path_factory.mktemp("logged")
    write_graph(folder / "model.onnx", threshold=0.5)
    with tracking(make_store(folder)):
        experiment = mlflow.create_experiment("x", f"file:{folder}/store")
        with mlflow.start_run(experiment_id=experiment):
            logged = log_video_classifier(folder / "model.onnx")
        yield mlflow.artifacts.download_artifacts(logged, dst_path=str(folder / "copy"))


@pytest.fixture(scope="module")
def model(uri: str) -> Any:
    return mlflow.pyfunc.load_model(uri)


@pytest.fixture(scope="module")
def good() -> str:
    return in_base64(ordinary(8, (48, 64)))


def test_the_answer_has_the_index_of_the_table(model: Any, good: str) -> None:
    table = pd.DataFrame({"video": [good] * 8, "path": None, "number": range(8)})
    for rows in (
        table.loc[[7]],
        table[table["number"] > 5],
        table.set_index(pd.Index(["a", "b", "a", "b", "c", "c", "c", "d"])),
        table.set_index([[1] * 4 + [2] * 4, list("abcdabcd")]).iloc[2:5],
        table.iloc[::-1],
    ):
        answer = model.predict(rows)
        pd.testing.assert_index_equal(answer.index, rows.index)
        assigned = rows.assign(known=answer["known"], labels=answer["labels"])
        assert assigned["labels"].map(len).eq(3).all()


def test_a_bad_video_is_a_row_with_an_error_and_changes_no_other(model: Any, good: str) -> None:
    bad = [
        "no/base64!",
        in_base64(b"no video"),
        None,
        in_base64(ordinary()[:-3000]),
        in_base64(many_pixels(36_000)),
    ]
    [alone] = model.predict(pd.DataFrame({"video": [good]})).to_dict("records")
    videos = [good, *bad, good]
    answers = model.predict(pd.DataFrame({"video": videos})).to_dict("records")
    assert answers[0] == answers[-1] == alone
    assert alone["error"] == ""
    assert isinstance(alone["known"], bool)
    for answer in answers[1:-1]:
        assert (answer["labels"], answer["probabilities"], answer["known"]) == ([], [], False)
        assert (
            "Needed: " in answer["error"]
            or "truncated" in answer["error"]
            or "no video" in (answer["error"])
        )
        assert "\n" not in answer["error"]


def test_the_labels_are_those_of_the_graph_and_below_the_threshold_unknown(model: Any) -> None:
    known = []
    for content in (ordinary(8, (48, 64)), thin(64, 48), thin(16, 2000)):
        mean = sample_video(content, 4).frames.mean((0, 1, 2)) * 0.1
        expected = np.sort(np.exp(mean) / np.exp(mean).sum())[::-1]
        table = model.predict(pd.DataFrame({"video": [in_base64(content)]}), params={"top_k": 2})
        [answer] = table.to_dict("records")
        # The graph sums a million numbers up in float32.
        np.testing.assert_allclose(answer["probabilities"], expected[:2], atol=1e-3)
        assert answer["labels"] == [CLASSES[n] for n in np.argsort(-mean, kind="stable")[:2]]
        known.append((answer["known"], expected[0] >= 0.5))
    assert all(told == right for told, right in known)
    assert {right for _, right in known} == {True, False}
    assert list(table.columns) == ["labels", "probabilities", "known", "error"]


def test_nothing_but_bad_videos_is_refused_with_the_first_reason(model: Any) -> None:
    for videos, message in (
        (["?"], r"^video 1: not base64"),
        (["?", "!"], r"none of the 2 videos"),
    ):
        with pytest.raises(MlflowException, match=message) as caught:
            model.predict(pd.DataFrame({"video": videos}))
        assert caught.value.get_http_status_code() == 400
        assert "\n" not in caught.value.message


def test_bytes_are_taken_in_a_notebook(model: Any, good: str) -> None:
    content = ordinary(8, (48, 64))
    answers = model.predict(pd.DataFrame({"video": [good, content]}))
    assert answers.iloc[0].to_dict() == answers.iloc[1].to_dict()


def test_what_is_no_table_is_refused_in_one_line(model: Any, good: str) -> None:
    for value in ([good], pd.Series([good]), [[good]], pd.DataFrame({"x": [good]}), []):
        with pytest.raises(MlflowException, match="`video`") as caught:
            model.predict(value)
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 300


def test_an_error_of_the_server_is_one_line_without_its_paths(
    uri: str, good: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlflow.pyfunc.load_model(uri)
    classifier = model.unwrap_python_model()

    def fail(*arguments: Any) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] {uri}/model.onnx\nsecond line")

    monkeypatch.setattr(type(classifier.model), "predict", fail)
    with caplog.at_level(logging.ERROR), pytest.raises(MlflowException) as caught:
        model.predict(pd.DataFrame({"video": [good]}))
    assert caught.value.get_http_status_code() == 500
    assert caught.value.message == "The server failed on this video; its log says why."
    assert "stack" not in caught.value.serialize_as_json()
    assert "second line" in caplog.text


def test_a_message_about_a_file_does_not_say_where_video_root_is(
    uri: str, good: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "empty.mp4").touch()
    model = mlflow.pyfunc.load_model(uri, model_config={"video_root": str(tmp_path)})
    table = pd.DataFrame(
        {"video": [good, None, None, None], "path": [None, "bad.mp4", "empty.mp4", "gone.mp4"]}
    )
    errors = list(model.predict(table)["error"])
    assert errors[0] == ""
    for name, error in zip(("bad.mp4", "empty.mp4", "gone.mp4"), errors[1:], strict=True):
        assert name in error
        assert str(tmp_path) not in error


def test_a_wrong_configuration_is_refused_when_the_model_is_loaded(uri: str) -> None:
    for config in ({"max_frames": "abc"}, {"device": "gpu"}, {"video_root": "/nowhere"}):
        [name] = config
        with pytest.raises(MlflowException, match=rf"^model_config: {name}: ") as caught:
            mlflow.pyfunc.load_model(uri, model_config=config)
        assert "\n" not in caught.value.message


def test_the_limits_of_a_request_hold(uri: str, good: str) -> None:
    for config, message in (
        ({"max_total_pixels": 8 * 48 * 64 - 1}, "too many pixels"),
        ({"max_seconds": 0.0001}, "not ready in time"),
        ({"max_frames": 7}, "more than 7 frames"),
    ):
        model = mlflow.pyfunc.load_model(uri, model_config=config)
        with pytest.raises(MlflowException, match=message):
            model.predict(pd.DataFrame({"video": [good]}))
    model = mlflow.pyfunc.load_model(uri, model_config={"max_total_pixels": 8 * 48 * 64})
    model.predict(pd.DataFrame({"video": [good]}))


def changed_copy(uri: str, folder: Path, label: str) -> str:
    """Another version of the model, with a library that gives every video one label."""
    shutil.copytree(uri, folder)
    source = folder / "code" / "k400tiny_lib" / "serving" / "onnx_classifier.py"
    text = source.read_text()
    source.write_text(text.replace("return [(self.class_names[index]", f"return [({label!r}"))
    assert source.read_text() != text
    return str(folder)


def test_two_versions_in_one_process_have_their_own_code(
    uri: str, good: str, tmp_path: Path
) -> None:
    table, path = pd.DataFrame({"video": [good]}), list(sys.path)
    ours = {name: module for name, module in sys.modules.items() if name.startswith("k400tiny_lib")}
    third, fourth = (changed_copy(uri, tmp_path / name, name) for name in ("third", "fourth"))
    models = [mlflow.pyfunc.load_model(location) for location in (third, uri, fourth, third)]
    firsts = [model.predict(table)["labels"][0][0] for model in models]
    assert firsts[0] == firsts[3] == "third"
    assert firsts[1] in CLASSES
    assert firsts[2] == "fourth"
    # What was imported before is what it was.
    now = {name: module for name, module in sys.modules.items() if name.startswith("k400tiny_lib")}
    assert now == ours
    assert sys.path == path
    assert Path(k400tiny_lib.__file__).is_relative_to(REPOSITORY)
    assert not isinstance(models[1].unwrap_python_model(), imported_module.VideoClassifier)


def test_versions_can_be_loaded_while_others_answer(uri: str, good: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"video": [good]})
    other = changed_copy(uri, tmp_path / "other", "other")
    model, stop, answers = mlflow.pyfunc.load_model(uri), threading.Event(), set()

    def ask() -> None:
        while not stop.is_set():
            answers.add(model.predict(table)["labels"][0][0])

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(3):
        assert mlflow.pyfunc.load_model(other).predict(table)["labels"][0][0] == "other"
    stop.set()
    thread.join()
    assert answers <= set(CLASSES)


def test_the_files_of_the_model_name_no_directory_of_this_machine(
    uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json")
    for name in names:
        text = (Path(uri) / name).read_text()
        assert str(REPOSITORY) not in text
        assert str(tmp_path_factory.getbasetemp()) not in text
        assert not re.search(r"(file:|: /|'/)", text)


def test_the_logged_model_shows_its_classes_and_an_example_that_works(uri: str, model: Any) -> None:
    assert json.loads(model.metadata.metadata["class_names"]) == CLASSES
    table, params = model.input_example, model.metadata.load_input_example_params(uri)
    assert len((Path(uri) / "input_example.json").read_bytes()) < 6000
    [answer] = model.predict(table, params=params).to_dict("records")
    assert sorted(answer["labels"]) == sorted(CLASSES)
