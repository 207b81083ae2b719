"""The served video classifier gives the labels of `predict` and survives any request."""

import base64
import json
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from k400tiny_lib.registry.video_model import follow_champion, register_video_classifier
from k400tiny_lib.serving.predict import label_inputs, read_clip
from k400tiny_lib.tracking.models import open_registered
from tests.helpers.server import in_base64, post, request_for, serving
from tests.helpers.serving import CLASSES, CLIP_LEN, NAME, VIDEO_NAME, export_tiny, register_tiny
from tests.helpers.store import make_store, tracking
from tests.helpers.videos import write_video


@dataclass(frozen=True)
class Registered:
    """A folder with a store in which both models are champions, an .onnx file and a video."""

    folder: Path
    onnx_file: Path
    video: Path


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    folder = tmp_path_factory.mktemp("serving")
    content = Registered(folder, folder / "tiny.onnx", folder / "videos" / "x.mp4")
    export_tiny(content.onnx_file)
    write_video(content.video, num_frames=9)
    with chdir(folder), tracking(make_store(folder)):
        with mlflow.start_run():
            register_video_classifier(*register_tiny(content.onnx_file), VIDEO_NAME)
        yield content


@pytest.fixture(scope="module")
def address(registered: Registered) -> Iterator[str]:
    """Of `mlflow models serve`, started where the library is not to be found."""
    with serving(f"models:/{VIDEO_NAME}@champion", registered.folder) as server:
        yield server.address


def test_snippet_predict_and_server_give_the_same_labels_and_probabilities(
    registered: Registered, address: str
) -> None:
    table, failures, _ = label_inputs(open_registered("auto", NAME), [registered.video], 4, top_k=3)
    assert failures == []
    frames = read_clip(registered.video, CLIP_LEN).frames
    snippet = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    probabilities = snippet.predict({"frames": frames[None]})["probabilities"][0]
    assert [CLASSES[index] for index in np.argsort(-probabilities)] == list(table["label"])
    np.testing.assert_allclose(table["probability"], np.sort(probabilities)[::-1], atol=1e-4)
    text = in_base64(registered.video)
    status, answer = post(address, request_for(text, text, top_k=3))
    assert status == 200
    for served in answer["predictions"]:
        assert served["labels"] == list(table["label"])
        np.testing.assert_allclose(served["probabilities"], table["probability"], atol=1e-4)


def test_a_file_of_the_server_cannot_be_named(registered: Registered, address: str) -> None:
    body = json.dumps({"dataframe_records": [{"path": str(registered.video)}]}).encode()
    status, answer = post(address, body)
    assert status == 400
    assert "paths are refused here" in answer["message"]


_junk_text = st.one_of(
    st.text(max_size=50),
    st.binary(max_size=200).map(lambda data: base64.b64encode(data).decode()),
    st.sampled_from(["/etc/passwd", "file:///etc/passwd", "http://localhost/", "AAAA" * 1000]),
)
_junk_value = st.one_of(st.none(), st.integers(), st.floats(), st.booleans(), _junk_text)
_junk_json = st.recursive(
    _junk_value,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
_junk_rows = st.lists(
    st.dictionaries(st.sampled_from(["video", "path", "frames"]), _junk_json), max_size=20
)
_malformed = st.one_of(
    st.binary(max_size=100),
    _junk_json.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({}, optional={"dataframe_records": _junk_rows, "params": _junk_json}).map(
        lambda value: json.dumps(value).encode()
    ),
    st.tuples(
        st.sampled_from(["dataframe_records", "dataframe_split", "inputs", "instances"]), _junk_json
    ).map(lambda pair: json.dumps({pair[0]: pair[1]}).encode()),
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
)
@given(body=_malformed)
def _refuse(address: str, body: bytes) -> None:
    status, answer = post(address, body)
    assert 400 <= status < 500, (body, answer)
    assert answer["message"]
    assert "stack_trace" not in answer


def test_after_200_malformed_requests_the_next_good_one_is_answered(
    registered: Registered, address: str
) -> None:
    good = request_for(in_base64(registered.video))
    status, before = post(address, good)
    assert status == 200
    _refuse(address)
    status, after = post(address, good)
    assert status == 200
    assert after["predictions"][0]["labels"] == before["predictions"][0]["labels"]


def test_a_table_that_cannot_be_read_is_refused_without_a_stack_trace(address: str) -> None:
    for kind in ("text/csv", "application/vnd.apache.parquet"):
        status, answer = post(address, b'a,b\n"1', kind=kind)
        assert status == 400
        assert "stack_trace" not in answer
        assert "site-packages" not in json.dumps(answer)


def refusal(registered: Registered, row: dict[str, str], **config: Any) -> str:
    """What the model, loaded with a configuration, says to one row."""
    model = mlflow.pyfunc.load_model(f"models:/{VIDEO_NAME}@champion", model_config=config)
    with pytest.raises(MlflowException) as caught:
        model.predict(pd.DataFrame([row]))
    assert caught.value.get_http_status_code() == 400
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_video_beyond_a_limit_is_refused_with_the_limit(registered: Registered) -> None:
    row = {"video": in_base64(registered.video)}
    assert "has more than 8 frames" in refusal(registered, row, max_frames=8)
    assert "frames of 64x48. Needed: at most 3000" in refusal(registered, row, max_pixels=3000)
    assert "Needed: at most 0.001 MB" in refusal(registered, row, max_megabytes=0.001)


def test_content_that_is_no_video_is_refused_with_the_reason(
    registered: Registered, tmp_path: Path
) -> None:
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "has no video stream" in refusal(registered, {"video": in_base64(sound)})
    assert "cannot be decoded" in refusal(registered, {"video": "AAAA" * 10})
    assert "is empty" in refusal(registered, {"video": ""})
    assert "not base64" in refusal(registered, {"video": "no/base64!"})
    assert "`video` (base64) or `path`" in refusal(registered, {"video": "AAAA", "path": "x.mp4"})


def test_paths_are_taken_below_video_root_only(registered: Registered, tmp_path: Path) -> None:
    uri, root = f"models:/{VIDEO_NAME}@champion", registered.video.parent
    model = mlflow.pyfunc.load_model(uri, model_config={"video_root": str(root)})
    by_path = model.predict(pd.DataFrame({"path": ["x.mp4", str(registered.video)]}))
    by_bytes = model.predict(pd.DataFrame({"video": [in_base64(registered.video)]}))
    assert by_path["labels"].tolist() == by_bytes["labels"].tolist() * 2
    (tmp_path / "out.mp4").write_bytes(registered.video.read_bytes())
    (root / "link.mp4").symlink_to(tmp_path / "out.mp4")
    for name in (
        "../tiny.onnx",
        str(registered.onnx_file),
        "link.mp4",
        "nothing.mp4",
        "a\0b",
        "a" * 300,
        "",
    ):
        message = refusal(registered, {"path": name}, video_root=str(root))
        assert "below video_root" in message


def test_the_video_champion_follows_the_onnx_champion(registered: Registered) -> None:
    client = MlflowClient()
    with mlflow.start_run():
        second = register_video_classifier(*register_tiny(registered.onnx_file), VIDEO_NAME)
    assert client.get_model_version_by_alias(VIDEO_NAME, "champion").version == second.version
    first = client.get_model_version(VIDEO_NAME, "1").tags["onnx_version"]
    client.set_registered_model_alias(NAME, "champion", first)
    follow_champion(NAME, VIDEO_NAME)
    assert str(client.get_model_version_by_alias(VIDEO_NAME, "champion").version) == "1"
