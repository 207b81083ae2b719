"""What `predict` prints: the first inputs in full as they come, in the end a summary."""

import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from k400tiny_lib.errors import printable
from k400tiny_lib.serving.onnx_classifier import OnnxClassifier
from k400tiny_lib.serving.timeline.spans import Span

_MOST_SHOWN = 20  # inputs or spans; the tables have all
_MOST_LABELS = 10  # in the summary


class Console:
    """Prints results between the steps of the progress bar.

    Args:
        model: for the labels and the confidence threshold.
        top_k: labels per input.
    """

    def __init__(self, model: OnnxClassifier, top_k: int) -> None:
        self._model, self._top_k = model, top_k
        self._counts: Counter[str] = Counter()
        self._num_unknown = 0

    def show(
        self, name: str, probabilities: npt.NDArray[np.float32], spans: Sequence[Span] = ()
    ) -> None:
        """Show an input that has a label, with its timeline if it has one."""
        best = self._model.best(probabilities, self._top_k)
        known = self._model.is_known(probabilities)
        self._counts[best[0][0]] += 1
        self._num_unknown += not known
        shown = self._counts.total()
        if shown > _MOST_SHOWN:
            if shown == _MOST_SHOWN + 1:
                _print("... (all are in predictions/predictions.csv)")
            return
        mark = "" if known else f"  unknown (below {self._model.confidence_threshold:.3f})"
        lines = [f"{printable(name)}{mark}"]
        width = max(len(printable(label)) for label, _ in best)
        lines += [
            f"  {rank}  {printable(label):{width}}  {probability:.3f}"
            for rank, (label, probability) in enumerate(best, start=1)
        ]
        _print("\n".join(lines + _timeline(spans)))

    def complain(self, line: str) -> None:
        """Show a line about an input on stderr."""
        tqdm.write(line, file=sys.stderr)

    def summarize(self) -> None:
        """Show how many inputs have which label, if they were not all shown."""
        total = self._counts.total()
        if total <= _MOST_SHOWN:
            return
        counts = self._counts.most_common(_MOST_LABELS)
        texts = [f"{printable(label)} {count}" for label, count in counts]
        if more := len(self._counts) - len(counts):
            texts.append(f"{more} other labels {total - sum(count for _, count in counts)}")
        unknown = f"; {self._num_unknown} of them unknown" if self._num_unknown else ""
        _print(f"{total} inputs labeled: {', '.join(texts)}{unknown}")


def clock(seconds: float) -> str:
    """A time as `1:02:03` or `2:03`, with a tenth of a second for a part of one."""
    tenths = round(seconds * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600
    fraction = f".{rest % 10}" if rest % 10 else ""
    front = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{front}:{rest // 10:02d}{fraction}"


def _timeline(spans: Sequence[Span]) -> list[str]:
    times = [f"{clock(span.start)} - {clock(span.end)}" for span in spans[:_MOST_SHOWN]]
    width = max(map(len, times), default=0)
    lines = [
        f"  {time:{width}}  {printable(span.label)}  {span.probability:.3f}"
        + ("" if span.known else "  unknown")
        for time, span in zip(times, spans, strict=False)
    ]
    if len(spans) > _MOST_SHOWN:
        lines.append(f"  ... {len(spans) - _MOST_SHOWN} more in predictions/timeline.csv")
    return lines


def _print(text: str) -> None:
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()
