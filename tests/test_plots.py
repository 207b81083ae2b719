"""The figure of learning curves."""

import math

import pytest

from k400tiny_lib.plots import CURVE_METRICS, plot_learning_curves


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
