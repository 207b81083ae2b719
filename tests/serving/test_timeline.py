"""Long videos: the timeline, its picture, and the copy with the labels drawn in."""

import csv
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from k400tiny_lib.media.picture import Orientation
from k400tiny_lib.media.windows.reading import Window, WindowReader
from k400tiny_lib.serving.inputs import find_inputs
from k400tiny_lib.serving.labeling import Outcome, file_names, label_all
from k400tiny_lib.serving.timeline import annotation
from k400tiny_lib.serving.timeline.annotation import draw_strip
from k400tiny_lib.serving.timeline.picture import plot_timeline
from k400tiny_lib.serving.timeline.spans import Span, Windows, merge_windows
from tests.helpers.gray_model import CLASSES, gray_model
from tests.helpers.videos import encode, moving

NO_FRAMES = np.zeros((0, 0, 0, 3), np.uint8)


def gray_video(path: Path, grays: Sequence[int], size: tuple[int, int] = (48, 64)) -> Path:
    """One second, 25 frames, of each gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [np.full((*size, 3), gray, np.uint8) for gray in grays for _ in range(25)]
    encode(path, pictures, "libx264", pix_fmt="yuv420p" if size[0] % 2 == 0 else "yuv444p")
    return path


def label(path: Path, folder: Path, model: Any = None, **more: Any) -> Outcome:
    folder.mkdir(exist_ok=True)
    options = {"windows": Windows(1, 0.5), "top_k": 3, "batch_size": 4, "max_bad_frames": 0.1}
    return label_all(model or gray_model(), find_inputs(path), folder, **options | more)


def test_three_actions_give_a_timeline_of_three_in_order(tmp_path: Path) -> None:
    video = gray_video(tmp_path / "three.mp4", [240] * 3 + [150] * 2 + [10] * 4)
    assert label(video, tmp_path / "out") == (1, 0)
    table = pd.read_csv(tmp_path / "out" / "timeline.csv")
    assert list(table.columns) == ["input", "start", "end", "label", "probability", "known"]
    assert list(table["label"]) == ["light", "middle", "dark"]
    assert table["start"].iloc[0] == 0
    assert table["end"].iloc[-1] == 9
    assert list(table["start"][1:]) == list(table["end"][:-1])  # neither holes nor overlaps
    np.testing.assert_allclose(table["start"][1:], [3, 5], atol=0.5)
    np.testing.assert_allclose(table["probability"], 0.8, atol=1e-6)
    predictions = pd.read_csv(tmp_path / "out" / "predictions.csv")
    means = predictions.set_index("label")["probability"]
    assert means.sum() == pytest.approx(1, abs=1e-6)
    assert predictions["label"][0] == "dark"
    assert set(predictions["input"]) == {"three.mp4"}


def window(start: float, end: float) -> Window:
    return Window(start, end, NO_FRAMES)


def test_a_moment_belongs_to_the_window_with_the_nearest_middle() -> None:
    dark, light = np.float32([0.7, 0.2, 0.1]), np.float32([0.1, 0.3, 0.6])
    unsure = np.float32([0.4, 0.35, 0.25])
    model = gray_model(threshold=0.5)
    parts = [(window(n, n + 2), p) for n, p in enumerate([dark, dark, light, unsure, unsure])]
    parts.append((window(4.6, 6.6), dark))
    spans = list(merge_windows(parts, model))
    assert [(s.start, s.end, s.label, s.known) for s in spans] == [
        (0, 2.5, "dark", True),
        (2.5, 3.5, "light", True),
        (3.5, 5.3, "dark", False),  # the same label, but not known: not the same part
        (5.3, 6.6, "dark", True),
    ]
    np.testing.assert_allclose([s.probability for s in spans], [0.7, 0.6, 0.4, 0.7], atol=1e-6)
    assert list(merge_windows([], model)) == []


def test_files_of_all_inputs_and_one_line_for_those_without_a_timeline(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("a.mp4", "a.avi", "b/ü#?.mkv"):
        gray_video(root / name, [10, 240])
    (root / "frames").mkdir()
    Image.new("RGB", (32, 32)).save(root / "frames" / "1.png")
    (root / "bad.mp4").write_text("no video")
    assert label(root, tmp_path / "out", annotate=True) == (3, 2)
    skipped = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert [line.partition("/in/")[2] for line in skipped] == [
        "bad.mp4 cannot be decoded: no video is found in it.",
        "frames is a frame folder: its frames have no times. Needed: a video, or window_seconds=0.",
    ]
    for folder, suffix in (("timeline", ".png"), ("annotated", ".mp4")):
        root = tmp_path / "out" / folder
        files = sorted(str(p.relative_to(root)) for p in root.rglob("*.*"))
        assert files == [f"a.avi{suffix}", f"a.mp4{suffix}", f"b/ü__{suffix}"]


def test_no_two_inputs_share_a_file() -> None:
    names = ["a.avi", "a.mp4", "A.mkv", "a.avi.mp4", "x/a.mp4", "a?.mp4", "a#.mp4", "a#.mp4"]
    files = file_names(names)
    assert files[:6] == ["a.avi", "a.mp4", "A.mkv", "a.avi.mp4", "x/a", "a_.mp4"]
    assert file_names(["a.mp4", "b/c.d.avi"]) == ["a", "b/c.d"]
    assert len({file.casefold() for file in files}) == len(names)
    assert len(file_names(["ü" * 120 + ".mp4"])[0].encode()) <= 200


def test_a_video_that_fails_late_leaves_no_rows(tmp_path: Path) -> None:
    class Failing(type(gray_model())):  # type: ignore[misc]
        def predict(self, frames: Any) -> Any:
            if frames.max() > 200:
                raise MemoryError
            return super().predict(frames)

    root = tmp_path / "in"
    gray_video(root / "a.mp4", [10, 120])
    gray_video(root / "b.mp4", [10, 120, 10, 120, 240])
    gray_video(root / "c.mp4", [120])
    model = Failing(None, CLASSES, 4)
    assert label(root, tmp_path / "out", model, batch_size=1) == (2, 1)
    rows = pd.read_csv(tmp_path / "out" / "timeline.csv")
    assert list(rows["input"]) == ["a.mp4", "a.mp4", "c.mp4"]
    [line] = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert line.endswith(
        "b.mp4: the model fails on frames of 336x336 (there is not enough memory)."
    )


def test_what_was_seen_before_an_interruption_is_kept(tmp_path: Path) -> None:
    class Stopped(type(gray_model())):  # type: ignore[misc]
        def predict(self, frames: Any) -> Any:
            if frames.max() > 200:
                raise KeyboardInterrupt
            return super().predict(frames)

    video = gray_video(tmp_path / "a.mp4", [10, 120, 10, 120, 240])
    with pytest.raises(KeyboardInterrupt):
        label(video, tmp_path / "out", Stopped(None, CLASSES, 4), batch_size=1)
    rows = list(csv.reader((tmp_path / "out" / "timeline.csv").open()))
    assert [row[3] for row in rows[1:4]] == ["dark", "middle", "dark"]


def decode(path: Path) -> tuple[list[Any], list[float], list[str]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        kinds = [stream.type for stream in container.streams]
    return [f.to_ndarray(format="rgb24") for f in frames], [float(f.time) for f in frames], kinds


def spans(*labels: str) -> list[Span]:
    return [Span(n, n + 1, label, 0.9, True) for n, label in enumerate(labels)]


def annotated(path: Path, target: Path, labels: Sequence[str]) -> tuple[Any, list[float]]:
    """Frames and times of the annotated copy."""
    annotation.annotate(path, WindowReader(path, 1, 1, 4).timing, spans(*labels), target)
    frames, times, kinds = decode(target)
    assert kinds == ["video"]
    return np.stack(frames), times


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((360, 640), (360, 640)),
        ((640, 360), (640, 360)),
        ((101, 57), (426, 240)),  # odd, and enlarged
        ((720, 1600), (576, 1280)),
        ((48, 2000), (30, 1280)),
    ],
)
def test_the_copy_has_all_frames_at_their_times_and_a_sensible_size(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    path = tmp_path / "in.mkv"
    times = [0, 1, 2, 5, 6, 12, 13, 30, 31]
    options = {"pix_fmt": "yuv444p", "times": times}
    encode(path, moving(9, size), "libx264", **options)
    frames, copied = annotated(path, tmp_path / "out.mp4", ["one", "two"])
    assert frames.shape[1:3] == expected
    np.testing.assert_allclose(copied, np.array(times) / 25, atol=0.002)
    original, _, _ = decode(path)
    for picture, before in zip(frames, original, strict=True):
        resized = np.asarray(Image.fromarray(before).resize(expected[::-1], Image.Resampling.BOX))
        rest = slice(0, int(expected[0] * 0.85) if expected[0] > 200 else 0)
        if rest.stop:
            difference = picture[rest].astype(int) - resized[rest]
            assert abs(difference).mean() < 8  # encoded twice
    assert abs(frames[0].astype(int) - frames[-1])[-30:].max() > 60  # another text


def test_the_copy_is_upright_with_square_pixels_and_without_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.mp4"
    encode(path, moving(20, (240, 320)), pixel_aspect=Fraction(2), seconds_of_sound=0.5)
    frames, _ = annotated(path, tmp_path / "a.mp4", ["x"])
    assert frames.shape[1:3] == (240, 640)
    monkeypatch.setattr(annotation, "orientation", lambda frame: Orientation(quarters=1))
    turned, _ = annotated(path, tmp_path / "b.mp4", ["x"])
    assert turned.shape[1:3] == (640, 240)
    expected = np.rot90(frames[5][:200], 1)
    assert abs(turned[5][:, :200][:560].astype(int) - expected[:560]).mean() < 8


def test_without_x264_the_copy_is_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation, "_BEST_CODEC", "no such encoder")
    path = gray_video(tmp_path / "in.mp4", [10, 240])
    frames, _ = annotated(path, tmp_path / "out.mp4", ["x"])
    assert len(frames) == 50
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


def test_the_text_fits_and_takes_any_letters() -> None:
    for text in ("x", "a very long name of a class " * 4, "Ausfallschritt ß$_{x}$", "跳绳", "قفز"):
        for size in ((240, 426), (1280, 720), (1280, 30)):
            strip = draw_strip(Span(0, 1, text, 0.5, False), size)
            assert strip.shape[1:] == (size[0], 4)
            bright = np.flatnonzero((strip[..., :3].max(2) > 150).any(0))
            assert bright.size
            assert bright[-1] < size[0] - 2  # nothing is cut off
    known, unknown = (draw_strip(Span(0, 1, "x", 0.5, k), (400, 300)) for k in (True, False))
    assert (known != unknown).any()


def test_the_picture_has_a_row_per_label_and_one_for_unknown_parts() -> None:
    parts = [Span(n, n + 1, f"class {n % 20}", 0.5, n % 7 != 3) for n in range(60)]
    figure = plot_timeline("$video$.mp4", parts)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(names) == 17
    assert names[-1] == "unknown"
    assert "other labels" in names
    assert figure.axes[0].get_xlim() == (0, 60)
    figure.canvas.draw()  # type: ignore[attr-defined]
