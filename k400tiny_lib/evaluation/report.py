"""What a person looks at after an evaluation: one self-contained page, and the confusion matrix."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import jinja2
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from k400tiny_lib.evaluation.evaluation import Findings
from k400tiny_lib.evaluation.facts import Fact
from k400tiny_lib.evaluation.gradcam import Gallery
from k400tiny_lib.evaluation.robustness import REVERSED
from k400tiny_lib.models.loaded import LoadedModel

_LABELLED = 40  # classes up to which a confusion matrix shows their names
_PAIRS = 25
_CURVES = {"loss": ("train_loss", "val_loss"), "top-1 accuracy, %": ("train_acc1", "val_acc1")}
CURVE_METRICS = tuple(name for names in _CURVES.values() for name in names)

Histories = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Chart:
    """A line chart in a box of 360 x 180: lines as SVG points, ticks as (place, text)."""

    title: str
    lines: list[tuple[str, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def render_report(
    findings: Findings,
    subject: LoadedModel,
    protocol: str,
    clip_protocol: str,
    gallery: Gallery,
    histories: Histories,
    facts: Sequence[Fact],
    compared_with: str,
) -> str:
    """One HTML page about an evaluation; it asks no server for anything.

    Args:
        findings: what the predictions say.
        subject: the model.
        protocol, clip_protocol: of the video's and the clip's score, in words.
        gallery: clips to look at.
        histories: training metrics by name as (epoch, value), of CURVE_METRICS.
        facts: about data, model and run.
        compared_with: the other model, in words, where there is one.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("k400tiny_lib.evaluation", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    table = findings.table
    present = sorted(set(table["target"]) | set(table["predicted"]))
    matrix = confusion_matrix(table["target"], table["predicted"], labels=present)
    labelled = len(present) <= _LABELLED
    return environment.get_template("report.html.j2").render(
        f=findings,
        subject=subject,
        protocol=protocol,
        clip_protocol=clip_protocol,
        gallery=gallery,
        charts=[chart for title in _CURVES if (chart := _chart(title, histories)) is not None],
        facts=facts,
        compared_with=compared_with,
        num_groups=table["group"].nunique(),
        num_present=table["target"].nunique(),
        names=[subject.class_names[index] for index in present],
        matrix=matrix.tolist() if labelled else None,
        matrix_picture=None if labelled else _matrix_picture(matrix),
        num_pairs=len(findings.pairs),
        pairs=_records(findings.pairs.head(_PAIRS)),
        classes=_records(findings.classes.sort_values(["f1", "support"], kind="stable")),
        bins=_records(findings.bins),
        bins_scaled=[] if findings.bins_scaled is None else _records(findings.bins_scaled),
        reversed=findings.conditions.get(REVERSED),
    )


def _records(table: Any) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = table.to_dict("records")
    return records


def _chart(title: str, histories: Histories) -> Chart | None:
    lines = {name: histories[name] for name in _CURVES[title] if histories.get(name)}
    if not lines:
        return None
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points if np.isfinite(value)]
    first, last, top = min(steps), max(steps), max([*values, 1e-9])

    def x(step: float) -> float:
        return round(360 * (step - first) / max(last - first, 1), 1)

    def y(value: float) -> float:
        return round(180 * (1 - value / top), 1)

    return Chart(
        title,
        [
            (name, " ".join(f"{x(s)},{y(v)}" for s, v in points if np.isfinite(v)))
            for name, points in lines.items()
        ],
        [(x(step), str(step)) for step in sorted({first, last})],
        [(y(value), f"{value:.3g}") for value in (0.0, top / 2, top)],
    )


def _matrix_picture(matrix: "np.ndarray[Any, Any]") -> str:
    """A matrix without names, each row on its own scale, as the data URI of a PNG."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    _, encoded = cv2.imencode(".png", (255 * (1 - np.sqrt(share))).astype(np.uint8))
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()


def plot_confusion(findings: Findings, class_names: Sequence[str]) -> Figure:
    """Confusion matrix over the classes that occur or are predicted; rows are true classes.

    Beyond 40 classes neither names nor numbers would be readable: colours alone.
    """
    table = findings.table
    present = sorted(set(table["target"]) | set(table["predicted"]))
    matrix = confusion_matrix(table["target"], table["predicted"], labels=present)
    labelled = len(present) <= _LABELLED
    size = 2.5 + 0.42 * min(len(present), _LABELLED / 2 if not labelled else _LABELLED)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix / np.maximum(matrix.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if not labelled:
        axes.set(xticks=[], yticks=[])
        return figure
    names = [class_names[index] for index in present]
    axes.set_xticks(range(len(present)), names, rotation=90)
    axes.set_yticks(range(len(present)), names)
    for row, column in zip(*matrix.nonzero(), strict=True):
        dark = matrix[row, column] > matrix[row].sum() / 2
        axes.text(
            column,
            row,
            matrix[row, column],
            ha="center",
            va="center",
            color="white" if dark else "black",
        )
    return figure
