"""What lies beside the file: labels by line, and a test vector that tells runtimes apart."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from k400tiny_lib.export.companions import labels_text, make_frames, write_companions
from k400tiny_lib.export.parity import open_session, run_eager, run_onnx
from k400tiny_lib.models.loaded import Geometry
from tests.helpers.serving import GEOMETRY, METADATA, TinyNetwork, export_tiny


def test_a_line_is_a_class_whatever_the_labels_contain() -> None:
    names = [
        "a\nb",
        "",
        " c ",
        "d\r\ne",
        "f\u2028g",
        "Ünïcode 日本",
        "h\x0bi\x85j",
        "\udc80",
        "k\n",
    ]
    text = labels_text(names)
    lines = text.encode().decode("utf-8").splitlines()
    assert lines == ["a b", "", " c ", "d e", "f g", "Ünïcode 日本", "h i j", "?", "k"]
    assert text.encode().count(b"\n") == len(names)


def test_the_test_vector_is_what_pytorch_answers(tmp_path: Path) -> None:
    path = export_tiny(tmp_path / "tiny.onnx")
    write_companions(tmp_path, onnx.load(path), METADATA | {"resize_size": GEOMETRY.resize[0]})
    vector = np.load(tmp_path / "test_vector.npz")
    assert vector["frames"].dtype == np.uint8
    answered = run_eager(TinyNetwork(), GEOMETRY, torch.from_numpy(vector["frames"]))
    np.testing.assert_allclose(vector["probabilities"], answered, atol=5e-5)
    assert (tmp_path / "labels.txt").read_text() == "sliding\ngrowing\nturning\n"
    stored = run_onnx(open_session(onnx.load(path)), torch.from_numpy(vector["frames"]))
    np.testing.assert_array_equal(stored, vector["probabilities"])


@pytest.mark.parametrize("resize", [36, 128])
def test_the_test_vector_shows_a_runtime_that_does_not_smooth(resize: int) -> None:
    frames = torch.from_numpy(make_frames(4, resize))
    right, wrong = (
        run_eager(TinyNetwork(), Geometry(4, (resize,), resize - 4, antialias), frames)
        for antialias in (True, False)
    )
    assert np.abs(right - wrong).max() > 0.01


def test_the_test_vector_is_small(tmp_path: Path) -> None:
    """A tenth of a megabyte for R(2+1)D-18, of 7 MB that it unpacks to."""
    frames = make_frames(16, 128)
    assert len(frames) == 2
    assert not np.array_equal(*frames)
    np.savez_compressed(tmp_path / "a.npz", frames=frames)
    assert (tmp_path / "a.npz").stat().st_size < 150_000
