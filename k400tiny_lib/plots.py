"""Figures that show texts of the user, and the one that training and evaluation share."""

import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

Histories = Mapping[str, Sequence[tuple[int, float]]]  # (epoch, value) by name of the metric

_PANELS = {
    "loss": ("train_loss", "val_loss"),
    "top-1 accuracy (%)": ("train_acc1", "val_acc1"),
    "learning rate": ("lr",),
}
CURVE_METRICS = tuple(name for names in _PANELS.values() for name in names)

# Fonts with letters that matplotlib's own does not have; those that are installed are used.
_FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP"),
    *("Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("IPAexGothic", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "PingFang SC"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Sans Arabic"),
    *("Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji", "Segoe UI Emoji"),
)
_MAX_COLUMNS = 40  # of a label: the axes need room, too


class LabeledFigure(Figure):
    """A figure whose texts are drawn as they are: no dollar sign starts a formula.

    Letters that no installed font has are boxes, without a warning for each.
    """

    def draw(self, renderer: Any) -> None:
        """Draw all texts literally; matplotlib makes some of them, such as ticks, only now."""
        families = [*matplotlib.rcParams["font.family"], *_installed_fonts()]
        as_they_are: Any = {"text.parse_math": False, "font.family": families}
        with matplotlib.rc_context(as_they_are), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            for text in self.findobj(Text):
                text.set_parse_math(False)
                text.set_fontfamily(families)
            super().draw(renderer)


@cache
def _installed_fonts() -> list[str]:
    installed = set(font_manager.get_font_names())
    return [name for name in _FALLBACK_FONTS if name in installed]


def room_for(texts: Iterable[str]) -> float:
    """Inches that texts of size 10 need beyond short ones of 16 columns, to enlarge a figure."""
    longest = max((sum(_widths(text)) for text in texts), default=0)
    return 0.08 * max(longest - 16, 0)


def short_text(text: str, columns: int = _MAX_COLUMNS) -> str:
    """A text for a figure: in one line, at most `columns` wide, the middle left out.

    Chinese, Japanese and Korean characters and emoji are two columns wide.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    widths = _widths(text)
    if sum(widths) <= columns:
        return text
    start, end, free = 0, len(text), columns - 1
    while free >= (width := max(widths[start], widths[end - 1])):
        if (start + len(text) - end) % 3 == 2:  # two from the start, one from the end
            end -= 1
        else:
            start += 1
        free -= width
    return f"{text[:start].rstrip()}…{text[end:].lstrip()}"


def _widths(text: str) -> list[int]:
    return [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text]


def plot_learning_curves(histories: Histories) -> Figure:
    """Loss, top-1 accuracy and learning rate over the epochs.

    Args:
        histories: at least one of CURVE_METRICS; a panel without values is left out.
    """
    panels = {
        title: drawn
        for title, names in _PANELS.items()
        if (drawn := [name for name in names if histories.get(name)])
    }
    figure = LabeledFigure(figsize=(4 * len(panels), 3.5), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, names) in zip(row, panels.items(), strict=True):
        for name in names:
            axes.plot(*zip(*histories[name], strict=True), marker=".", label=name)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
