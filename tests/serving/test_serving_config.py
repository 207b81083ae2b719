"""A wrong configuration stops the server at its start, with the key in one line."""

from pathlib import Path
from typing import Any

import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.serving.serving_config import DEFAULTS, checked_config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_frames", "abc"),
        ("max_frames", None),
        ("max_frames", 1),
        ("max_frames", 10.5),
        ("max_videos", None),
        ("max_videos", True),
        ("max_videos", 0),
        ("max_pixels", -1),
        ("max_total_pixels", [1]),
        ("max_megabytes", 0),
        ("max_megabytes", float("nan")),
        ("max_seconds", 0),
        ("max_seconds", "soon"),
        ("max_bad_frames", 1.1),
        ("device", "gpu"),
        ("device", ["cpu"]),
        ("num_threads", 0),
        ("num_threads", -3),
        ("num_threads", "4"),
        ("video_root", "/nowhere"),
        ("video_root", 5),
        ("video_root", "a\0b"),
        ("video_root", __file__),
        ("max_frame", 100),
    ],
)
def test_what_is_not_allowed_is_refused_with_its_key_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^{name}: .*Needed: ") as caught:
        checked_config({name: value})
    assert "\n" not in str(caught.value)


def test_the_rest_has_its_defaults(tmp_path: Path) -> None:
    given = {"video_root": str(tmp_path), "num_threads": 2, "max_megabytes": 0.5, "max_seconds": 9}
    assert checked_config(given) == DEFAULTS | given


def test_a_request_ends_before_the_server_gives_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked_config({})["max_seconds"] == pytest.approx(40)
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "300")
    assert checked_config({})["max_seconds"] == pytest.approx(200)


def test_a_key_that_mlflow_drops_stops_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_MODEL_CONFIG", '{"max_frame": 100}')
    assert checked_config({}).keys() == DEFAULTS.keys()  # a notebook, which does not read it
    monkeypatch.setenv("__pyfunc_model_path__", "/model")
    with pytest.raises(UserError, match=r"^max_frame: no such key"):
        checked_config({})
