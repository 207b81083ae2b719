"""Classes without test clips, and labels of any text, in scores, report, figures and model card."""

import warnings
from io import BytesIO

import numpy as np
import pandas as pd
import pytest

from k400tiny_lib.data.preparation import plots
from k400tiny_lib.evaluation.metrics import per_class, score
from k400tiny_lib.evaluation.report import plot_confusion_matrix
from k400tiny_lib.plots import LabeledFigure, short_text
from k400tiny_lib.registry.model_card import model_card

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
    ids = np.arange(len(LABELS))
    predictions = pd.DataFrame({"target": ids, "predicted": ids[::-1]})
    for figure in (
        plots.plot_class_counts(table),
        plots.plot_split_balance(table),
        plot_confusion_matrix(predictions, LABELS),
        plot_confusion_matrix(predictions[:1], LABELS),
        plots._plot_rows(LABELS[:2], np_clips(2)),
    ):
        assert isinstance(figure, LabeledFigure)
        assert png(figure)
    assert capfd.readouterr().err == ""


def np_clips(count: int) -> "plots.torch.Tensor":
    return plots.torch.zeros(count, 2, 8, 8, 3, dtype=plots.torch.uint8)


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


def test_a_class_without_clips_has_no_recall_and_does_not_count() -> None:
    table = pd.DataFrame({"target": [0, 0, 1], "predicted": [0, 2, 1]})
    classes = per_class(table, ["a", "b", "c"]).set_index("label")
    assert classes.loc["c", ["recall", "f1"]].isna().all()
    assert classes.loc["c", "support"] == 0
    assert classes.loc["a", "recall"] == 0.5
    probabilities = np.eye(3)[table["predicted"]] * 0.9 + 0.1 / 3
    table = table.assign(
        clip_predicted=table["predicted"],
        group=list("stu"),
        **{f"p{i}": probabilities[:, i] for i in range(3)},
    )
    assert score_of(table, probabilities)["test_mean_class_acc"] == 75  # of a and b


def score_of(table: pd.DataFrame, probabilities: np.ndarray) -> dict[str, float]:
    from k400tiny_lib.data.annotations import Clip
    from k400tiny_lib.evaluation.predictions import table_of_probabilities

    clips = [Clip(f"v{i}", (0, 3), int(t), f"s{i}") for i, t in enumerate(table["target"])]
    return score(table_of_probabilities(clips, probabilities), "test")


CARD = {
    "class_names": ["a*b_[x](y)", "<script>", "x" * 4000],
    "views_in_graph": 1,
    "clip_len": 8,
    "frames_free": False,
    "quantize": "none",
    "temperature": 1.0,
    "architecture": "r2plus1d_18",
    "training_run_id": "",
    "sampling": "spread evenly",
    "crop_size": 112,
    "resize_size": 128,
    "antialias": True,
    "test_acc1": 50.0,
    "test_acc1_interval": [40.0, 60.0],
    "test_clips": 12,
    "test_classes": 2,
    "protocol": "one clip",
    "data_digest": "d",
    "test_digest": "t",
}


def test_the_card_shows_labels_as_they_are_and_says_what_was_not_tested() -> None:
    card = model_card("m", CARD, 0.0)
    assert "a\\*b\\_\\[x\\](y), \\<script\\>, xxx" in card
    assert "12 test clips of 2 of the 3 classes, none of the others." in card
    assert "## Limits" in card
    before = {name: value for name, value in CARD.items() if name != "test_classes"}
    assert "12 test clips. Protocol" in model_card("m", before, 0.0)
