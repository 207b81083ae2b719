"""The figure of learning curves, and texts of the user in any figure."""

import math
import warnings
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch

from k400tiny_lib.data.preparation import plots
from k400tiny_lib.evaluation.report import plot_confusion_matrix
from k400tiny_lib.plots import CURVE_METRICS, LabeledFigure, plot_learning_curves, short_text
from k400tiny_lib.training.sample_predictions import draw_predictions


def test_every_metric_is_a_line_of_its_values_over_the_epochs() -> None:
    histories = {
        name: [(epoch, number + epoch / 10) for epoch in (1, 2, 3)]
        for number, name in enumerate(CURVE_METRICS)
    }
    histories["train_loss"][1] = (2, math.nan)  # a gap, not an error
    figure = plot_learning_curves(histories)
    figure.canvas.draw()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["loss", "top-1 accuracy (%)", "learning rate"]
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    assert set(lines) == set(CURVE_METRICS)
    for name, line in lines.items():
        assert list(line.get_xdata()) == [1, 2, 3]
        expected = pytest.approx([value for _, value in histories[name]], nan_ok=True)
        assert list(line.get_ydata()) == expected
    assert all(tick == int(tick) for axes in figure.axes for tick in axes.get_xticks())


def test_a_panel_without_values_is_left_out() -> None:
    figure = plot_learning_curves({"val_acc1": [(1, 10.0)], "lr": []})
    assert [axes.get_title() for axes in figure.axes] == ["top-1 accuracy (%)"]


LABELS = [
    *("$$", "a$_$b", "cost $5 and $10", "\\frac{1}{2} $\\frac{}$", "_^{}%#~", '<script>&"'),
    *("跑步" * 50, "👩‍🔬 x", "עברית", "a\nb", "x" * 300, "\x07bell", ""),
]


def png(figure: LabeledFigure) -> bytes:
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def test_any_label_can_be_drawn_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    splits = ["train", "val", "test"]
    table = pd.DataFrame(
        [(label, s) for label in LABELS for s in splits], columns=["label", "split"]
    )
    clips = torch.zeros(6, 3, 2, 8, 8, dtype=torch.uint8)
    ids = np.arange(len(LABELS))
    predictions = pd.DataFrame({"target": ids, "predicted": ids[::-1]})
    for figure in (
        plots.plot_class_counts(table),
        plots.plot_split_balance(table),
        plot_confusion_matrix(predictions, LABELS),
        plot_confusion_matrix(predictions[:1], LABELS),
        draw_predictions(clips, range(6), torch.eye(len(LABELS))[6:12], dict(enumerate(LABELS))),
    ):
        assert isinstance(figure, LabeledFigure)
        assert png(figure)
    assert capfd.readouterr().err == ""


def test_a_dollar_is_drawn_as_a_dollar() -> None:
    def drawn(text: str, math: bool) -> bytes:
        figure = LabeledFigure(figsize=(2, 1))
        axes = figure.subplots()
        axes.set_title(text)
        axes.set_xticks([0], [text])
        if not math:
            axes.set_title(text, parse_math=False)
        return png(figure)

    assert drawn("$5$", math=True) == drawn("$5$", math=False) != drawn("5", math=True)


@pytest.mark.parametrize("label", LABELS)
def test_a_short_text_fits_and_keeps_both_ends(label: str) -> None:
    text = short_text(label)
    assert len(text) <= 40
    assert text.isprintable()
    printable = "".join(c if c.isprintable() else " " for c in label)
    assert text == " ".join(printable.split()) or "…" in text
    assert text[:5] == " ".join(printable.split())[:5]
