"""`predict` writes each result when it is there, and one input's failure is its own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph
from k400tiny_lib.media.sampling import view_indices
from k400tiny_lib.serving import predict
from k400tiny_lib.serving.inputs import find_inputs
from k400tiny_lib.serving.labeling import Outcome, label_all
from k400tiny_lib.serving.onnx_classifier import open_classifier
from k400tiny_lib.serving.output.tables import GrowingFile, input_cell, label_cell
from k400tiny_lib.serving.predict import label_inputs, read_clip, read_frames
from tests.helpers.gray_model import CLASSES, GrayModel, gray_model
from tests.helpers.serving import GEOMETRY, METADATA, TinyNetwork
from tests.helpers.videos import bare_decode, write_video


def clips(root: Path, count: int) -> Path:
    for number in range(count):
        write_video(root / f"{number}.mp4", 3, (32, 32))
    return root


def label(root: Path, folder: Path, model: Any = None, **more: Any) -> Outcome:
    folder.mkdir(exist_ok=True)
    options = {"top_k": 2, "batch_size": 2, "max_bad_frames": 0.1} | more
    return label_all(model or gray_model(), find_inputs(root), folder, **options)


class Failing(GrayModel):
    """Fails on one call."""

    error: BaseException = RuntimeError()
    fails_at = 0
    calls = 0

    def predict(self, frames: Any) -> Any:
        type(self).calls += 1
        if type(self).calls == type(self).fails_at:
            raise type(self).error
        return super().predict(frames)


def failing(fails_at: int, error: BaseException) -> Any:
    kind = type("FailingOnce", (Failing,), {"fails_at": fails_at, "error": error, "calls": 0})
    return kind(None, CLASSES, 4)


def inputs_of(folder: Path) -> list[str]:
    return list(dict.fromkeys(pd.read_csv(folder / "predictions.csv")["input"]))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_an_interruption_leaves_what_was_labeled_before(
    tmp_path: Path, error: BaseException
) -> None:
    root = clips(tmp_path / "in", 9)
    with pytest.raises(type(error)):
        label(root, tmp_path / "out", failing(3, error))
    assert inputs_of(tmp_path / "out") == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]


def test_results_are_on_disk_before_the_next_input_is_labeled(tmp_path: Path) -> None:
    class Watching(GrayModel):
        def predict(self, frames: Any) -> Any:
            table = tmp_path / "out" / "predictions.csv"
            sizes.append(len(table.read_text().splitlines()) if table.exists() else 0)
            return super().predict(frames)

    sizes: list[int] = []
    label(clips(tmp_path / "in", 5), tmp_path / "out", Watching(None, CLASSES, 4), batch_size=1)  # type: ignore[arg-type]
    assert sizes == [0, 3, 5, 7, 9]


ORT = onnxruntime.capi.onnxruntime_pybind11_state


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ORT.RuntimeException(
                "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while "
                "running MatMul node.\nStatus Message: ..."
            ),
            "Non-zero status code returned while running MatMul node",
        ),
        (ORT.Fail("bad allocation"), "there is not enough memory"),
        (MemoryError(), "there is not enough memory"),
        (UserError("frames: float32. Needed: uint8."), "frames: float32. Needed: uint8"),
    ],
)
def test_a_clip_on_which_the_model_fails_is_one_line_and_the_others_go_on(
    tmp_path: Path, error: Exception, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Picky(GrayModel):
        def predict(self, frames: Any) -> Any:
            if any(frame.max() > 100 for frame in frames):
                raise error
            return super().predict(frames)

    root = clips(tmp_path / "in", 6)
    write_video(root / "3.mp4", 7, (32, 48))  # gray up to 120
    assert label(root, tmp_path / "out", Picky(None, CLASSES, 4), batch_size=4) == (5, 1)  # type: ignore[arg-type]
    assert inputs_of(tmp_path / "out") == ["0.mp4", "1.mp4", "2.mp4", "4.mp4", "5.mp4"]
    line = f"{root}/3.mp4: the model fails on frames of 336x336 ({reason})."
    assert (tmp_path / "out" / "skipped.txt").read_text() == f"{line}\n"
    assert capsys.readouterr().err.count(f"skipped: {line}") == 1


@pytest.mark.parametrize("error", [MemoryError(), ValueError("odd\nlines"), OSError(5, "EIO")])
def test_a_clip_whose_reading_fails_is_one_line_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    read = predict.read_clip

    def broken(path: Path, *args: Any) -> Any:
        if path.name == "1.mp4":
            raise error
        return read(path, *args)

    monkeypatch.setattr(predict, "read_clip", broken)
    assert label(clips(tmp_path / "in", 3), tmp_path / "out") == (2, 1)
    [line] = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert "1.mp4 cannot be read: " in line


def test_answers_below_the_confidence_threshold_are_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = clips(tmp_path / "in", 1)
    for threshold, known in ((0.0, True), (0.8, True), (0.81, False)):
        folder = tmp_path / str(threshold)
        label(root, folder, gray_model(threshold))
        table = pd.read_csv(folder / "predictions.csv")
        assert list(table.columns) == ["input", "rank", "label", "probability", "known"]
        assert list(table["known"]) == [known] * 2
        assert ("0.mp4  unknown (below 0.810)" in capsys.readouterr().out) is not known


def test_the_console_stays_readable_whatever_the_number_of_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = predict.Clip(np.zeros((4, 8, 8, 3), np.uint8))
    monkeypatch.setattr(predict, "read_clip", lambda *args: clip)
    root = tmp_path / "in"
    root.mkdir()
    for number in range(500):
        (root / f"{number}.mp4").touch()
    label(root, tmp_path / "out", gray_model(0.9))
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 20 * 3 + 2
    assert shown[-1] == "500 inputs labeled: dark 500; 500 of them unknown"
    assert len(inputs_of(tmp_path / "out")) == 500


def test_names_and_labels_are_no_formulas(tmp_path: Path) -> None:
    names = ["=1+2.mp4", "+1.mp4", "-1.mp4", "@x.mp4", "\tx.mp4", "＝1.mp4", "a=1.mp4", "d/=1.mp4"]
    for name in names:
        write_video(tmp_path / "in" / name, 3, (32, 32))
    label(tmp_path / "in", tmp_path / "out", gray_model(class_names=["=cmd()", "-1", "x"]), top_k=3)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    for cell in (*table["input"], *table["label"]):
        assert not cell.startswith(tuple("=+@\t＝")) or cell == "-1"
    # Each is still the path of its file, and a number is still a number.
    assert {(tmp_path / "in" / cell).name for cell in table["input"]} == {
        name.rpartition("/")[2] for name in names
    }
    assert set(table["label"]) == {"'=cmd()", "-1", "x"}
    assert [input_cell(n) for n in ("a=1", "=a", "-a")] == ["a=1", "./=a", "./-a"]
    assert [label_cell(n) for n in ("+5%", "-2.5", "-a", "a-b")] == ["+5%", "-2.5", "'-a", "a-b"]


def test_a_table_can_take_rows_back(tmp_path: Path) -> None:
    with GrowingFile(tmp_path / "x.csv", "ü", "b") as file:
        assert file.size() == 0
        file.write_rows([("ß", 1)])
        size = file.size()
        file.write_rows([(2, 2), (3, 3)])
        file.cut(size)
        file.write_rows([(4, 4)])
        assert (tmp_path / "x.csv").read_text() == "ü,b\nß,1\n4,4\n"
        file.cut(0)
        file.write_rows([(5, 5)])
    assert (tmp_path / "x.csv").read_text() == "ü,b\n5,5\n"
    with GrowingFile(tmp_path / "none.csv", "a") as file:
        file.cut(0)
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize("views", [1, 2])
def test_frames_fit_the_model_with_any_number_of_views(tmp_path: Path, views: int) -> None:
    module = FramesToProbabilities(TinyNetwork(), GEOMETRY, views).eval()
    metadata = METADATA | {"views_in_graph": views}
    file = tmp_path / "model.onnx"
    file.write_bytes(export_graph(module, 18, metadata).SerializeToString())
    write_video(tmp_path / "one.mp4", 12)
    session = onnxruntime.InferenceSession(str(file))
    stored = session.get_modelmeta().custom_metadata_map
    frames = read_frames(str(tmp_path / "one.mp4"), stored)
    expected = bare_decode(tmp_path / "one.mp4")[view_indices(12, 4, views).ravel()]
    np.testing.assert_array_equal(frames, expected)
    [probabilities] = session.run(None, {"frames": frames[None]})
    table = label_inputs(open_classifier(file), [tmp_path / "one.mp4"], 1, 3).table
    names = json.loads(stored["class_names"])
    assert [names[i] for i in np.argsort(-probabilities[0])] == list(table["label"])
    # MLflow's metadata, and numbers in place of texts.
    assert (read_frames(tmp_path / "one.mp4", metadata) == frames).all()


def test_a_clip_is_named_by_a_text_or_a_path(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", 5)
    assert read_clip(str(tmp_path / "one.mp4"), 3).frames.shape == (3, 336, 336, 3)
    for name, reason in {"none.mp4": "No such file", ".": "no .jpg or .png frames"}.items():
        with pytest.raises(UserError, match=reason):
            read_clip(str(tmp_path / name), 3)
    with pytest.raises(UserError, match=r"^metadata: no clip_len"):
        read_frames(tmp_path / "one.mp4", {})
