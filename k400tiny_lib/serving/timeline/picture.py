"""The picture of a timeline: a row per label over the time of the video."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from k400tiny_lib.plots import LabeledFigure, room_for, short_text
from k400tiny_lib.serving.output.console import clock
from k400tiny_lib.serving.timeline.spans import Span

_MOST_ROWS = 15
_OTHERS = "other labels"
_UNKNOWN = "unknown"


def plot_timeline(title: str, spans: Sequence[Span]) -> Figure:
    """Bars of the spans, darker for a higher probability; unknown ones are in a gray row.

    Args:
        title: the name of the video.
        spans: at least one.
    """
    seconds: dict[str, float] = {}
    for span in spans:
        if span.known:
            seconds[span.label] = seconds.get(span.label, 0) + span.end - span.start
    kept = sorted(seconds, key=seconds.__getitem__, reverse=True)[:_MOST_ROWS]
    rows: dict[str, list[Span]] = {label: [] for label in _in_order(spans) if label in kept}
    for span in spans:
        row = (span.label if span.label in kept else _OTHERS) if span.known else ""
        rows.setdefault(row, []).append(span)
    if "" in rows:  # the last row; an empty text cannot be the name of a class
        rows[""] = rows.pop("")
    names = [short_text(label) or _UNKNOWN for label in rows]
    width = 8 + room_for(names)
    figure = LabeledFigure(figsize=(width, 1.6 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["Blues"]
    for y, (label, parts) in enumerate(rows.items()):
        axes.broken_barh(
            [(span.start, span.end - span.start) for span in parts],
            (y - 0.4, 0.8),
            facecolors=[colors(s.probability) if label else "0.75" for s in parts],
            edgecolors="0.3",
            linewidth=0.5 if len(spans) < 200 else 0,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, spans[-1].end)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 1.5, 2, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))
    axes.set(title=short_text(title, 80), xlabel="time in the video")
    axes.grid(axis="x", alpha=0.3)
    figure.colorbar(
        ScalarMappable(Normalize(0, 1), colors), ax=axes, label="probability", aspect=10
    )
    return figure


def _in_order(spans: Sequence[Span]) -> list[str]:
    return list(dict.fromkeys(span.label for span in spans if span.known))
