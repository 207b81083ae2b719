"""One call of `predict`: labels inputs, and writes each result when it is there."""

from collections import Counter
from contextlib import ExitStack
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from k400tiny_lib.console import progress
from k400tiny_lib.errors import UserError, printable
from k400tiny_lib.serving.clips import reading_failure
from k400tiny_lib.serving.inputs import Inputs
from k400tiny_lib.serving.onnx_classifier import OnnxClassifier
from k400tiny_lib.serving.output.console import Console
from k400tiny_lib.serving.output.tables import GrowingFile, input_cell, label_cell
from k400tiny_lib.serving.predict import COLUMNS, Labeled, label_each, label_rows, name_of_input
from k400tiny_lib.serving.timeline.spans import Span, Timeline, Windows, label_windows

TIMELINE_COLUMNS = ("input", "start", "end", "label", "probability", "known")
_MOST_PICTURES = 50
_LONGEST_NAME = 200  # bytes


class Outcome(NamedTuple):
    """How many inputs have labels, and how many could have none."""

    num_labeled: int
    num_failed: int


class _Files:
    """The files of a call, and the console."""

    def __init__(self, folder: Path, inputs: Inputs, model: OnnxClassifier, top_k: int) -> None:
        self.folder, self._inputs, self._model, self._top_k = folder, inputs, model, top_k
        self._stack = ExitStack()
        enter = self._stack.enter_context
        self._predictions = enter(GrowingFile(folder / "predictions.csv", *COLUMNS))
        self.timeline = enter(GrowingFile(folder / "timeline.csv", *TIMELINE_COLUMNS))
        self._skipped = enter(GrowingFile(folder / "skipped.txt"))
        self._notes = enter(GrowingFile(folder / "notes.txt"))
        self._console = Console(model, top_k)
        self.num_labeled = self.num_failed = 0
        for line in inputs.skipped():
            self._skipped.write_line(line)

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._console.summarize()

    def name_of(self, path: Path) -> str:
        """What the tables call an input."""
        return name_of_input(path, self._inputs.root)

    def write(self, labeled: Labeled, timeline: Timeline | None = None) -> None:
        """Write and show what became of an input."""
        if labeled.note:
            self.note(labeled.note)
        if labeled.probabilities is None:
            self.fail(labeled.failure)
            return
        self.num_labeled += 1
        name = self.name_of(labeled.path)
        rows = label_rows(self._model, name, labeled.probabilities, self._top_k)
        self._predictions.write_rows(
            [(input_cell(row[0]), row[1], label_cell(row[2]), *row[3:]) for row in rows]
        )
        self._console.show(name, labeled.probabilities, timeline.spans if timeline else ())

    def write_span(self, name: str, span: Span) -> None:
        """Write a row of the timeline."""
        seconds = (round(span.start, 3), round(span.end, 3))
        cells = (label_cell(span.label), span.probability, span.known)
        self.timeline.write_rows([(input_cell(name), *seconds, *cells)])

    def fail(self, message: str) -> None:
        """Write and show why something of an input is missing."""
        self.num_failed += 1
        self._skipped.write_line(message)
        self._console.complain(f"skipped: {message}")

    def note(self, message: str) -> None:
        """Write and show what is odd about an input."""
        self._notes.write_line(message)
        self._console.complain(f"note: {message}")


def label_all(
    model: OnnxClassifier,
    inputs: Inputs,
    folder: Path,
    *,
    batch_size: int,
    top_k: int,
    max_bad_frames: float,
    windows: Windows | None = None,
    annotate: bool = False,
) -> Outcome:
    """Label all inputs and write `predictions.csv`, `skipped.txt` and `notes.txt`, as they come.

    With windows also `timeline.csv` and, per video, `timeline/<name>.png` and
    `annotated/<name>.mp4`.

    Args:
        model: the exported model.
        inputs: from `find_inputs`.
        folder: for the files.
        batch_size: clips or windows per call of the model, at most.
        top_k: labels per input in `predictions.csv`.
        max_bad_frames: share of a video's frames that may be damaged.
        windows: of a timeline; None for none.
        annotate: whether to make copies of the videos with their timeline drawn in.
    """
    with (
        _Files(folder, inputs, model, top_k) as files,
        progress(None, len(inputs.clips), "predict") as bar,
    ):
        if windows is None:
            for labeled in label_each(model, inputs.clips, batch_size, max_bad_frames):
                files.write(labeled)
                bar.update()
        else:
            names = file_names([files.name_of(path) for path in inputs.clips])
            for number, (path, name) in enumerate(zip(inputs.clips, names, strict=True)):
                timeline = _label_timeline(model, path, windows, batch_size, max_bad_frames, files)
                if timeline and number < _MOST_PICTURES:
                    _draw(timeline, files.name_of(path), folder / "timeline" / f"{name}.png")
                elif timeline and number == _MOST_PICTURES:
                    files.note(f"only the first {_MOST_PICTURES} inputs have a timeline/*.png.")
                if timeline and annotate:
                    _annotate(timeline, path, folder / "annotated" / f"{name}.mp4", files)
                bar.update()
    return Outcome(files.num_labeled, files.num_failed)


def _label_timeline(
    model: OnnxClassifier,
    path: Path,
    windows: Windows,
    batch_size: int,
    max_bad_frames: float,
    files: _Files,
) -> Timeline | None:
    """The timeline of an input, written; None if it has none."""
    name, size = files.name_of(path), files.timeline.size()
    try:
        if path.is_dir():
            raise UserError(
                f"{path} is a frame folder: its frames have no times. Needed: a video, or "
                "window_seconds=0."
            )
        timeline = label_windows(
            model, path, windows, batch_size, max_bad_frames, lambda s: files.write_span(name, s)
        )
    except Exception as error:  # of the libraries that decode, and of ONNX Runtime
        files.timeline.cut(size)
        files.write(Labeled(path, None, printable(str(reading_failure(path, error)))))
        return None
    note = printable(f"{path}: {timeline.timing.note}.") if timeline.timing.note else ""
    files.write(Labeled(path, timeline.probabilities, note=note), timeline)
    return timeline


def _draw(timeline: Timeline, name: str, target: Path) -> None:
    from k400tiny_lib.serving.timeline.picture import plot_timeline  # matplotlib takes a second

    target.parent.mkdir(parents=True, exist_ok=True)
    plot_timeline(name, timeline.spans).savefig(target, dpi=100)


def _annotate(timeline: Timeline, path: Path, target: Path, files: _Files) -> None:
    from k400tiny_lib.serving.timeline.annotation import annotate

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        annotate(path, timeline.timing, timeline.spans, target)
    except Exception as error:  # of the encoder, too
        reason = str(reading_failure(path, error))
        files.fail(printable(f"{path} has labels but no annotated copy: {reason}"))


def file_names(names: list[str]) -> list[str]:
    """For each input, the path of its files without a suffix: no two are the same.

    `a.mp4` gives `a`; names that differ in the suffix alone keep it. Characters that some file
    system or server does not take become `_`.
    """
    paths = [PurePosixPath(*map(_plain, PurePosixPath(name).parts)) for name in names]
    stems = Counter(_stem(path).casefold() for path in paths)
    complete = {str(path).casefold() for path in paths}
    files: dict[str, str] = {}  # without capitals -> as it is
    for path in paths:
        stem = _stem(path)
        is_clear = stems[stem.casefold()] == 1 and stem.casefold() not in complete
        choices = chain([stem if is_clear else str(path)], (f"{path}-{n}" for n in count(2)))
        choice = next(choice for choice in choices if choice.casefold() not in files)
        files[choice.casefold()] = choice
    return list(files.values())


def _stem(path: PurePosixPath) -> str:
    return str(path.with_suffix(""))


def _plain(part: str) -> str:
    letters = "".join(c if c.isalnum() or c in " ._-+=(),@" else "_" for c in part)
    return letters.encode()[:_LONGEST_NAME].decode(errors="ignore")
