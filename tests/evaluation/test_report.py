"""The report: a number under the right label, no request to anybody, no quoted text executed."""

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import confusion_matrix

from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.evaluation.evaluation import Evaluation, evaluate_predictions
from k400tiny_lib.evaluation.gradcam import grad_cam, make_gallery
from k400tiny_lib.evaluation.predictions import table_of_probabilities
from k400tiny_lib.evaluation.report import Fact, Provenance, plot_confusion_matrix, render_report
from k400tiny_lib.evaluation.shift.robustness import CORRUPTIONS, UNCORRUPTED
from k400tiny_lib.evaluation.shift.unknown import UnknownRows
from k400tiny_lib.evaluation.shift.unknown_clips import UnknownClips
from k400tiny_lib.evaluation.views import ViewProtocol
from k400tiny_lib.models.loaded import Geometry, LoadedModel, Published
from k400tiny_lib.models.weights import build_model
from tests.helpers.evaluation import clips_of, random_table, write_annotated_clips
from tests.helpers.page import Page

GEOMETRY = Geometry(4, (32,), 32)
HOSTILE = '"><script>alert(1)</script>$'  # a label; a dollar sign alone is no formula
NAMES = [HOSTILE, *(f"c{n}" for n in range(1, 7))]
PROVENANCE = Provenance(
    [Fact("commit", "c0ffee"), Fact("trained by run", "r1", "http://tracking/r1")],
    {"train_loss": [(1, 2.0), (2, float("nan")), (3, 1.0)], "val_acc1": [(1, 10.0)]},
)


def model_of(names: list[str], published: Published | None = None) -> LoadedModel:
    model = build_model("r2plus1d_18", 1)
    return LoadedModel(model, "r2plus1d_18", GEOMETRY, names, "epoch 3", "r0", published)


def annotations_of(table: pd.DataFrame, names: list[str], split: str) -> Annotations:
    categories = {name: index for index, name in enumerate(names)}
    splits = {"train": [], "val": [], "test": []} | {split: clips_of(table)}
    return Annotations(categories, splits, "0123")


def unknown_rows(num_unreadable: int = 2) -> UnknownRows:
    """Answers to 40 clips; some more cannot be read."""
    table = random_table(40 + num_unreadable, seed=3)
    rows = table[["video"]].assign(problem="").join(table.filter(regex="^prob_"))
    rows.loc[rows.index[40:], "problem"] = f"<b>torn</b> {HOSTILE}"
    clips = UnknownClips(dict.fromkeys(rows["video"], Path()), {}, {"notes.txt": "no clip"})
    return UnknownRows(clips, rows)


@pytest.fixture(scope="module")
def full() -> Evaluation:
    """Every part, of 60 clips in 7 classes."""
    table = random_table()
    recorded = table[["video", "group", "target"]].assign(**{UNCORRUPTED: table["clip_predicted"]})
    predicted = {name: np.roll(table["target"], n % 3) for n, name in enumerate(CORRUPTIONS)}
    return evaluate_predictions(
        "test",
        {"test": table, "val": random_table(90, seed=1)},
        annotations_of(table, NAMES, "test"),
        model_of(NAMES, Published(67.463, 86.175, "15 fps, 5 clips")),
        ViewProtocol(3, 1),
        corrupted=recorded.assign(**predicted),
        unknown=unknown_rows(),
        other=random_table(seed=2).assign(target=table["target"]),
        compared_with="OTHER MODEL",
    )


@pytest.fixture(scope="module")
def page(full: Evaluation) -> Page:
    return Page(render_report(full, PROVENANCE))


def test_the_page_loads_nothing_and_executes_nothing(full: Evaluation, page: Page) -> None:
    text = render_report(full, PROVENANCE)
    assert all(address.startswith(("data:", "#")) for address in page.loaded)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert not re.findall(r"url\((?!#)|@import", text)  # url(#...) is another part of the page
    assert [link for link in page.links if not link.startswith("#")] == ["http://tracking/r1"]


def test_the_first_screen_says_what_to_look_at_next_and_links_it(full: Evaluation) -> None:
    text = render_report(full, PROVENANCE)
    _, _, rest = text.partition('<ul class="next">')
    advice = re.findall(r'<li><a href="#(\w+)">\w+</a>: (.*?)</li>', rest.partition("</ul>")[0])
    assert all(f'<h2 id="{section}"' in text for section, _ in advice)
    by_section = {section: html.unescape(words) for section, words in advice}
    occurring = full.classes[full.classes["support"] > 0]
    weakest = occurring.loc[occurring["f1"].idxmin()]
    assert f"weakest class is {weakest['label']} (F1 {weakest['f1']:.2f}" in by_section["classes"]
    pair = full.pairs.loc[full.pairs["clips"].idxmax()]
    assert f"(clips: {pair['clips']})" in by_section["confusion"]
    assert "unknown" not in by_section  # measured here
    width = full.scores["test_acc1_ci_high"] - full.scores["test_acc1_ci_low"]
    assert ("facts" in by_section) == (width > 20)


def test_every_picture_has_a_text_and_no_color_stands_alone(full: Evaluation) -> None:
    text = render_report(full, PROVENANCE)
    assert not re.findall(r"<img(?![^>]*alt=\"[^\"]+\")", text)
    assert text.count("<svg") == len(re.findall(r'role="img" aria-label="[^"]+"', text))
    assert text.count('class="bar"') == text.count('class="bar" aria-hidden="true"')


def test_every_score_is_under_its_label(full: Evaluation, page: Page) -> None:
    scores = full.scores
    headline = page.paragraphs[""][0]
    assert headline == (
        f"{scores['test_acc1']:.1f} % top-1 · 95 % interval {scores['test_acc1_ci_low']:.1f} "
        f"to {scores['test_acc1_ci_high']:.1f}"
    )
    low, high = scores["test_clip_acc1_ci_low"], scores["test_clip_acc1_ci_high"]
    tiles = {
        "top-5": f"{scores['test_acc5']:.1f} %",
        f"top-1 of one clip [{low:.1f}, {high:.1f}]": f"{scores['test_clip_acc1']:.1f} %",
        "mean class accuracy": f"{scores['test_mean_class_acc']:.1f} %",
        "loss": f"{scores['test_loss']:.3f}",
        "calibration error": f"{scores['test_ece']:.3f}",
    }
    assert len(set(tiles.values())) == len(tiles)  # a swap would be seen
    assert {term: page.terms.get(term) for term in tiles} == tiles
    assert "top-1 among classes present" not in page.terms  # all occur
    assert "60 clips of 20 sources in 7 of 7 classes" in page.paragraphs[""][1]
    assert "3 clips of 4 frames spread over the whole segment" in page.paragraphs[""][1]
    views = full.views
    assert page.paragraphs[""][2] == (
        f"Averaging the views changes top-1 by {views.difference:+.1f} points [{views.low:.1f}, "
        f"{views.high:.1f}] against the center clip alone, from {views.other_acc1:.1f} % to "
        f"{views.acc1:.1f} %."
    )
    assert "top-1 67.463 %, top-5 86.175 %. Their protocol: 15 fps" in page.paragraphs[""][3]


def test_the_comparison_gives_each_model_its_accuracy(full: Evaluation, page: Page) -> None:
    result = full.comparison
    difference, mcnemar = page.paragraphs["comparison"]
    assert difference == (
        f"{result.difference:+.1f} points top-1 [{result.low:.1f}, {result.high:.1f}]: "
        f"{result.acc1:.1f} % here, {result.other_acc1:.1f} % for OTHER MODEL, on the same clips."
    )
    assert f"Only this model is right on {result.only_this} clips" in mcnemar
    assert f"only the other on {result.only_other};" in mcnemar
    assert f"p = {result.mcnemar_p:.3g} " in mcnemar


def test_facts_name_data_model_and_runs(full: Evaluation, page: Page) -> None:
    assert page.terms["data"].endswith("test 60 clips of 20 sources")
    assert page.terms["digest of the data"] == "0123"
    assert page.terms["digest of test"] == full.annotations.split_digest("test")
    assert full.annotations.split_digest("test") != full.annotations.split_digest("val")
    assert page.terms["model"] == "r2plus1d_18, 31.3 million parameters, 7 classes"
    assert page.terms["input"] == "4 frames of 32 x 32 pixels"
    assert page.terms["commit"] == "c0ffee"
    assert page.terms["trained by run"] == "r1"


def test_classes_and_pairs_are_rows_with_their_numbers(full: Evaluation, page: Page) -> None:
    header, *rows = page.rows["classes"]
    assert header == ["class", "id", "F1", "", "precision", "recall", "clips"]
    assert {tuple(row) for row in rows} == {
        (r.label, str(r.class_id), "", *(f"{v:.2f}" for v in (r.f1, r.precision, r.recall)), n)
        for r, n in zip(full.classes.itertuples(), full.classes["support"].astype(str), strict=True)
    }
    assert [float(row[3]) for row in rows] == sorted(float(row[3]) for row in rows)  # worst first
    header, *rows = page.rows["confusion"]
    assert header == ["true", "predicted", "clips", "share of the true class"]
    assert rows[0] == [
        full.pairs["true"][0],
        full.pairs["predicted"][0],
        str(full.pairs["clips"][0]),
        f"{100 * full.pairs['share'][0]:.0f} %",
    ]


def test_the_drawings_have_their_labels_and_numbers(full: Evaluation, page: Page) -> None:
    table = full.table
    counts = confusion_matrix(table["target"], table["predicted"])
    texts = page.svg["confusion"]
    assert sorted(int(text) for text in texts if text.isdecimal()) == sorted(counts[counts > 0])
    assert all(texts.count(name) == 2 for name in NAMES)  # rows and columns
    assert {"loss", "top-1 accuracy (%)", "train_loss", "epoch"} <= set(page.svg["curves"])
    assert "learning rate" not in page.svg["curves"]  # has no values


def test_calibration_and_robustness_have_their_numbers(full: Evaluation, page: Page) -> None:
    fitted = full.calibration
    text = " ".join(page.paragraphs["calibration"])
    assert fitted.applied
    for part in (
        f"fitted on 90 validation clips, {fitted.errors} of them labeled wrongly: temperature "
        f"{fitted.temperature:.3f}, as {fitted.reason}.",
        f"the calibration error is {fitted.ece_before:.4f} before and {fitted.ece_after:.4f} "
        f"after, the loss {fitted.loss_before:.3f} before and {fitted.loss_after:.3f} after.",
    ):
        assert part in text
    _, recorded, *rows = page.rows["robustness"]
    clip_acc1 = f"{full.score('clip_acc1'):.1f} %"
    assert recorded == ["as recorded", "", clip_acc1, "", ""]
    assert rows == [
        [name, "", f"{r.acc1:.1f} %", f"{r.difference:+.1f}", f"[{r.low:.1f}, {r.high:.1f}]"]
        for name, r in full.corruptions.items()
    ]
    backwards = f"{full.corruptions['reversed order'].acc1:.1f} %"
    assert page.paragraphs["robustness"][1].startswith(
        f"Played backwards: {clip_acc1} becomes {backwards}."
    )


def test_what_the_threshold_marks_has_its_numbers(full: Evaluation, page: Page) -> None:
    threshold, unknown = full.threshold, full.unknown
    text = " ".join(page.paragraphs["unknown"])
    assert threshold.value > 0
    assert f"Confidence threshold {threshold.value:.3f}, at temperature " in text
    assert threshold.reason in text
    header, *rows = page.rows["unknown"]
    assert header == ["answers", "clips", "below the threshold", "above 0.99"]
    assert rows == [
        [name, str(m.clips), f"{100 * m.below:.1f} %", f"{100 * m.certain:.1f} %"]
        for name, m in (
            ("right, test", threshold.right),
            ("wrong, test", threshold.wrong),
            ("clips of none of the classes", unknown.marked),
        )
    ]
    assert len({row[2] for row in rows}) == 3  # a swap would be seen
    assert f"in {100 * unknown.auroc:.1f} % of the pairs" in text
    assert "2 clips of unknown_path could not be read:" in text
    assert "1 other files or folders there are no clips." in text


def test_many_unreadable_clips_are_counted_and_the_first_named() -> None:
    table = random_table()
    evaluation = evaluate_predictions(
        "test",
        {"test": table},
        annotations_of(table, NAMES, "test"),
        model_of(NAMES),
        ViewProtocol(1, 1),
        unknown=unknown_rows(30),
    )
    text = render_report(evaluation, Provenance())
    assert "30 clips of unknown_path could not be read:" in text
    assert text.count("torn&lt;/b&gt;") == 20
    assert "and 10 more, which the console names" in text


def test_a_temperature_that_is_not_applied_says_why_and_has_no_second_diagram() -> None:
    table = random_table()
    sure = table.assign(target=table["predicted"])
    evaluation = evaluate_predictions(
        "test",
        {"test": table, "val": sure},
        annotations_of(table, NAMES, "test"),
        model_of(NAMES),
        ViewProtocol(1, 1),
    )
    assert not evaluation.calibration.applied
    page = Page(render_report(evaluation, Provenance()))
    text = " ".join(page.paragraphs["calibration"])
    assert f"0 of them labeled wrongly: not applied, as {evaluation.calibration.reason}." in text
    assert page.svg["calibration"].count("confidence") == 1
    assert "not measured here: -P unknown_path=" in page.paragraphs["unknown"][-1]


def test_parts_that_were_not_measured_say_so() -> None:
    table, names = random_table(num_classes=9), [f"c{n}" for n in range(9)]
    some = table[table["target"] < 6].reset_index(drop=True)
    evaluation = evaluate_predictions(
        "val",
        {"val": some},
        annotations_of(some, names, "val"),
        model_of(names),
        ViewProtocol(1, 1),
    )
    page = Page(render_report(evaluation, Provenance()))
    assert "Temperature scaling: not applied." in page.paragraphs["calibration"][1]
    assert page.paragraphs["unknown"][0].startswith("No confidence threshold: it is chosen on")
    assert page.paragraphs["robustness"] == ["Not measured (robustness=False)."]
    assert "comparison" not in page.paragraphs
    assert "not in this tracking store" in page.paragraphs["curves"][0]
    present = {f"top-{k} among classes present": f"val_present_acc{k}" for k in (1, 5)}
    assert {term: page.terms[term] for term in present} == {
        term: f"{evaluation.scores[name]:.1f} %" for term, name in present.items()
    }


def test_the_page_stays_small_and_readable_with_400_classes() -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(2000) % 400
    p = rng.dirichlet(np.full(400, 0.02), size=2000) + 1e-6
    p[np.arange(2000), targets] += 0.3
    p /= p.sum(1, keepdims=True)
    clips = clips_of(
        pd.DataFrame({"video": [f"v{n}" for n in range(2000)], "target": targets, "group": "g"})
    )
    table, names = table_of_probabilities(clips, p), [f"class number {n}" for n in range(400)]
    evaluation = evaluate_predictions(
        "test",
        {"test": table},
        annotations_of(table, names, "test"),
        model_of(names),
        ViewProtocol(1, 1),
    )
    text = render_report(evaluation, PROVENANCE)
    page = Page(text)
    assert len(text) < 600_000
    assert any(p.startswith("The 25 most frequent of") for p in page.paragraphs["confusion"])
    assert any(address.startswith("data:image/png") for address in page.loaded)
    assert {"0", "380"} <= set(page.svg["confusion"])  # ids of classes on the axes
    assert ["class number 380", "380"] in [row[:2] for row in page.rows["classes"]]
    assert max(plot_confusion_matrix(table, names).get_size_inches()) < 12


def test_a_cell_of_the_confusion_matrix_is_the_number_of_clips_of_its_row_and_column() -> None:
    table, names = random_table(), [f"c{n}" for n in range(7)]
    [axes] = plot_confusion_matrix(table, names).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted label", "True label")
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    counts = pd.crosstab(table["target"], table["predicted"])
    for text in axes.texts:
        column, row = text.get_position()
        assert text.get_text() == str(counts.loc[row, column] or "")


def test_the_gallery_has_the_most_confident_mistakes_and_the_least_confident_hits(
    tmp_path: Path,
) -> None:
    data_path, _, annotations = write_annotated_clips(tmp_path, num_clips=4)
    clips = annotations.splits["test"]
    p = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0, 0.4, 0.6], [0.3, 0.7, 0]])
    table = table_of_probabilities(clips, p)  # targets 0 1 2 0
    model = build_model("r2plus1d_18", 3).eval()
    names = list(annotations.categories)
    loaded = LoadedModel(model, "r2plus1d_18", GEOMETRY, names, "epoch 3")
    gallery = make_gallery(table, clips, data_path, loaded)
    assert [card.video for card in gallery.mistakes] == ["test1", "test3"]
    assert [card.video for card in gallery.uncertain] == ["test2", "test0"]
    assert (gallery.mistakes[0].true, gallery.mistakes[0].predicted) == (names[1], names[0])
    for card in (*gallery.mistakes, *gallery.uncertain):
        assert card.frames.startswith("data:image/jpeg;base64,")
        assert card.frames != card.heatmap


def test_grad_cam_of_the_last_stage_is_the_class_activation_map() -> None:
    # After layer4 come a mean and a linear head, so the gradient is the head's weight: the map
    # of Zhou et al. 2016 (arXiv:1512.04150).
    torch.manual_seed(0)
    model = build_model("r2plus1d_18", 5).eval()
    clip = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        model.fc.weight.abs_()  # some evidence for the class: a map of zeros would prove nothing
    ours = grad_cam(model, clip, 2, min_moments=1)
    with torch.no_grad():
        features = model.layer4(model.layer3(model.layer2(model.layer1(model.stem(clip)))))
        map_ = torch.einsum("k,nkthw->nthw", model.fc.weight[2], features).relu()[:, None]
        expected = torch.nn.functional.interpolate(map_, (8, 32, 32), mode="trilinear")[:, 0]
    torch.testing.assert_close(ours, expected / expected.max(), rtol=0, atol=1e-4)
    assert ours.max() == 1


def test_a_map_over_16_frames_has_at_least_four_moments() -> None:
    torch.manual_seed(0)
    heat = grad_cam(build_model("r2plus1d_18", 3).eval(), torch.randn(1, 3, 16, 32, 32), 0)[0]
    assert heat.shape == (16, 32, 32)
    assert 0 <= heat.min() <= heat.max() <= 1
    assert len({tuple(frame.flatten().tolist()) for frame in heat}) >= 4


def test_classes_without_clips_and_unknown_sources_are_said() -> None:
    table = random_table(num_classes=5)
    names = [*NAMES[:5], "only in <train>", "nowhere"]
    for number in (5, 6):
        table[f"p{number}"] = 0.0
    annotations = annotations_of(table, names, "test")
    annotations.splits["train"].append(Clip("t", (0, 9), 5, "t"))
    table.loc[0, "predicted"] = 5
    model, protocol = model_of(names), ViewProtocol(1, 1)
    evaluation = evaluate_predictions("test", {"test": table}, annotations, model, protocol)
    text = render_report(evaluation, Provenance())
    assert "only in &lt;train&gt;" in text
    page = Page(text)
    said = " ".join(page.paragraphs[""])
    assert "1 classes have training clips but none in test" in said
    assert "only in <train>" in said
    assert "nowhere" not in said
    assert "resamples whole sources" in said
    assert page.rows["classes"][-1] == ["only in <train>", "5", "no clips, only predicted", "0"]
    alone = table.assign(group=table["video"])
    evaluation = evaluate_predictions("test", {"test": alone}, annotations, model, protocol)
    said = " ".join(Page(render_report(evaluation, Provenance())).paragraphs[""])
    assert "Each clip counts as one source" in said
