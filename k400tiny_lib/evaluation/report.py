"""The report of an evaluation: one self-contained HTML page, and the confusion matrix as a figure.

A section is added in `templates/report.html.j2`; it reads the fields of `Evaluation`.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from k400tiny_lib.data.annotations import SPLITS, Annotations
from k400tiny_lib.evaluation.evaluation import Evaluation
from k400tiny_lib.evaluation.metrics import TILES
from k400tiny_lib.evaluation.shift.robustness import REVERSED
from k400tiny_lib.evaluation.threshold import Marked
from k400tiny_lib.plots import Histories, LabeledFigure, plot_learning_curves, room_for, short_text

_MAX_LABELED = 40  # classes up to which a confusion matrix is readable with names and numbers
_MAX_PAIRS = 25
_MAX_NAMED = 20  # clips that could not be read
_WIDE_INTERVAL = 20.0  # points; a comparison of two models needs less
_SVG_METADATA = ("Creator", "Date", "Format", "Type")  # written unless they are None


@dataclass(frozen=True)
class Fact:
    """One line about data, model or run; `link` where there is a page about it."""

    name: str
    value: str
    link: str | None = None


@dataclass(frozen=True)
class Advice:
    """What to look at or do next, and the section of the page that it is about."""

    text: str
    section: str


@dataclass(frozen=True)
class Provenance:
    """The commit, the runs and the learning curves of a model, as the tracking store has them."""

    facts: Sequence[Fact] = ()
    histories: Histories = field(default_factory=dict)


def render_report(evaluation: Evaluation, provenance: Provenance) -> str:
    """The HTML page about an evaluation; it loads nothing from anywhere."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("k400tiny_lib.evaluation", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = _inline_svg
    return environment.get_template("report.html.j2").render(
        e=evaluation,
        facts=[*_facts(evaluation), *provenance.facts],
        curves=plot_learning_curves(provenance.histories) if provenance.histories else None,
        confusion=plot_confusion_matrix(evaluation.table, evaluation.model.class_names),
        num_present=evaluation.table["target"].nunique(),
        has_sources=not (evaluation.table["group"] == evaluation.table["video"]).all(),
        untested=_untested(evaluation),
        tiles=TILES,
        advice=_advice(evaluation),
        max_pairs=_MAX_PAIRS,
        answers=_kinds_of_answers(evaluation),
        max_named=_MAX_NAMED,
        max_labeled=_MAX_LABELED,
        reversed=evaluation.corruptions.get(REVERSED),
    )


def plot_confusion_matrix(table: pd.DataFrame, class_names: Sequence[str]) -> Figure:
    """Confusion matrix of the classes that occur or are predicted; colors are shares of the row.

    Up to 40 classes are drawn with their names and numbers of clips; of more, the ids of some.
    """
    present = np.union1d(table["target"], table["predicted"])
    counts = confusion_matrix(table["target"], table["predicted"], labels=present)
    labeled = len(present) <= _MAX_LABELED
    side = 4.5 + 0.26 * min(len(present), 25)  # inches
    names = [short_text(class_names[index]) for index in present]
    side += room_for(names) if labeled else 0
    figure = LabeledFigure(figsize=(side, side), layout="constrained")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    with matplotlib.rc_context({"font.size": 9}):
        display = ConfusionMatrixDisplay(shares, display_labels=names)
        display.plot(
            ax=figure.subplots(),
            cmap="Blues",
            colorbar=False,
            include_values=labeled,
            xticks_rotation="vertical",
            # Without numbers, a rare confusion would hardly be visible on a linear scale.
            im_kw={"norm": PowerNorm(1 if labeled else 0.4, vmin=0, vmax=1)},
        )
        if labeled:
            for cell, text in np.ndenumerate(display.text_):
                color = "white" if shares[cell] > 0.65 else "black"
                text.set(text=str(counts[cell] or ""), color=color)
        else:
            ticks = np.arange(0, len(present), len(present) // 20)
            display.ax_.set_xticks(ticks, present[ticks])
            display.ax_.set_yticks(ticks, present[ticks])
            display.ax_.set(xlabel="Predicted class id", ylabel="True class id")
    return figure


def _inline_svg(figure: Figure) -> Markup:
    """A figure as an <svg> element; the page decides on the color behind it."""
    text = io.StringIO()
    # Letters stay text, which is smaller than their outlines and can be searched and selected.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "k400tiny"}):
        metadata = dict.fromkeys(_SVG_METADATA)
        figure.savefig(text, format="svg", metadata=metadata, transparent=True)
    _, start, rest = text.getvalue().partition("<svg")  # behind the XML declaration
    return Markup(start + ' aria-hidden="true"' + rest)


def _advice(evaluation: Evaluation) -> list[Advice]:
    """The most useful next steps that the results speak for, at most one of each kind."""
    table, split = evaluation.table, evaluation.split
    advice = []
    ends = [evaluation.score(f"acc1_ci_{end}") for end in ("low", "high")]
    width = (ends[1] or 0.0) - (ends[0] or 0.0)
    if width > _WIDE_INTERVAL:
        advice.append(
            Advice(
                f"The interval is {width:.0f} points wide: {table['group'].nunique()} sources are "
                "few. More of them in this split, or a larger test_fraction, make it narrower.",
                "facts",
            )
        )
    occurring = evaluation.classes[evaluation.classes["support"] > 0]
    weakest = occurring.sort_values(["f1", "support"], kind="stable").iloc[0]
    if weakest["f1"] < 1:
        advice.append(
            Advice(
                f"The weakest class is {weakest['label']} (F1 {weakest['f1']:.2f}, "
                f"clips: {weakest['support']}).",
                "classes",
            )
        )
    if len(evaluation.pairs):
        pair = evaluation.pairs.iloc[0]
        advice.append(
            Advice(
                f"The most frequent confusion is {pair['predicted']} instead of {pair['true']} "
                f"(clips: {pair['clips']}).",
                "confusion",
            )
        )
    if doubted := len(evaluation.labels.table):
        advice.append(Advice(f"{doubted} labels look wrong: check them.", "labels"))
    if evaluation.unknown is None:
        advice.append(
            Advice("How it answers clips of other classes is not measured yet.", "unknown")
        )
    if split != "test":
        advice.append(Advice(f"These are clips of {split}: the test split says more.", "facts"))
    return advice


def _facts(evaluation: Evaluation) -> list[Fact]:
    annotations, split, model = evaluation.annotations, evaluation.split, evaluation.model
    sizes = "; ".join(f"{name} {_size(annotations, name)}" for name in SPLITS)
    lengths = [clip.num_frames for clip in annotations.clips_of(split)]
    millions = sum(parameter.numel() for parameter in model.model.parameters()) / 1e6
    size = f"{millions:.1f} million parameters, {len(model.class_names)} classes"
    crop = model.geometry.crop_size
    return [
        Fact("data", sizes),
        Fact("frames of a clip", f"{min(lengths)} to {max(lengths)}"),
        Fact("digest of the data", annotations.data_digest or "not noted in the annotations"),
        Fact(f"digest of {split}", annotations.split_digest(split)),
        Fact("model", f"{model.architecture}, {size}"),
        Fact("weights", model.origin),
        Fact("input", f"{model.geometry.clip_len} frames of {crop} x {crop} pixels"),
    ]


def _kinds_of_answers(evaluation: Evaluation) -> list[tuple[str, Marked]]:
    """The rows of the table of what the confidence threshold marks."""
    threshold, unknown, split = evaluation.threshold, evaluation.unknown, evaluation.split
    rows = []
    if threshold is not None:
        rows = [(f"right, {split}", threshold.right), (f"wrong, {split}", threshold.wrong)]
    return [*rows, ("clips of none of the classes", unknown.marked)] if unknown else rows


def _untested(evaluation: Evaluation) -> list[str]:
    """The classes with training clips and none in the evaluated split, by name.

    With split=all these are the clips that are not predicted, which the report counts.
    """
    if evaluation.validation is not None:
        return []
    trained = {clip.target for clip in evaluation.annotations.splits["train"]}
    names = evaluation.annotations.class_names
    return sorted(names[target] for target in trained - set(evaluation.table["target"]))


def _size(annotations: Annotations, split: str) -> str:
    clips = annotations.splits[split]
    return f"{len(clips)} clips of {len({clip.group for clip in clips})} sources"
