"""The page: all its parts, no request to anybody, nothing that it quotes is executed."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from k400tiny_lib.evaluation import gradcam as gallery
from k400tiny_lib.evaluation.evaluation import Findings, find
from k400tiny_lib.evaluation.facts import Fact, data_facts, model_facts, split_digest
from k400tiny_lib.evaluation.gradcam import Gallery, grad_cam, make_gallery
from k400tiny_lib.evaluation.predictions import Rows, make_table
from k400tiny_lib.evaluation.report import plot_confusion, render_report
from k400tiny_lib.evaluation.robustness import CLEAN, CONDITIONS
from k400tiny_lib.models.loaded import Geometry, LoadedModel, Published
from k400tiny_lib.models.weights import build_model
from tests.helpers.evaluation import clips_of, random_table, write_annotated_clips

GEOMETRY = Geometry(4, (32,), 32)
HOSTILE = '"><script>alert(1)</script>'


class Page(HTMLParser):
    """Collects what a page would load, its tags, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (name == "href" and tag != "a"):
                self.loaded.append(value or "")
            if name == "id":
                self.ids.add(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(findings: Findings, subject: LoadedModel, shown: Gallery | None = None) -> str:
    return render_report(
        findings,
        subject,
        protocol="PROTOCOL",
        clip_protocol="CLIP PROTOCOL",
        gallery=shown or Gallery([], []),
        histories={"train_loss": [(1, 2.0), (2, float("nan")), (3, 1.0)], "val_acc1": [(1, 10.0)]},
        facts=[Fact("commit", "c0ffee"), Fact("run", "r1", "http://tracking/r1")],
        compared_with="OTHER MODEL",
    )


def subject_of(names: list[str], published: Published | None = None) -> LoadedModel:
    model = build_model("r2plus1d_18", 1)
    return LoadedModel(model, "r2plus1d_18", GEOMETRY, names, "epoch 3", "r0", published)


@pytest.fixture(scope="module")
def full() -> Findings:
    table = random_table()
    probes = table[["video", "group", "target"]].assign(**{CLEAN: table["clip_predicted"]})
    probes = probes.assign(**dict.fromkeys(CONDITIONS, 0))
    return find(
        "test",
        table,
        [f"c{n}" for n in range(7)],
        averages=True,
        fitting=random_table(seed=1),
        probes=probes,
        other=random_table(seed=2).assign(target=table["target"]),
    )


def test_the_page_has_every_part_and_loads_nothing(full: Findings) -> None:
    published = Published(67.463, 86.175, "15 fps, 5 clips")
    text = page_of(full, subject_of([HOSTILE, *(f"c{n}" for n in range(1, 7))], published))
    page = Page(text)
    assert page.ids >= {
        "comparison",
        "facts",
        "curves",
        "classes",
        "confusion",
        "calibration",
        "robustness",
        "gallery",
    }
    assert all(address.startswith("data:") for address in page.loaded)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert "url(" not in text
    assert "@import" not in text
    for part in (
        f"{full.score('acc1'):.1f}",
        f"{full.score('acc1_ci_low'):.1f}",
        "PROTOCOL",
        "CLIP PROTOCOL",
        "OTHER MODEL",
        "67.463",
        "86.175",
        "15 fps",
        "McNemar",
        "c0ffee",
        "pplied",
        "Played backwards",
        "JPEG quality 10",
        HOSTILE,
    ):
        assert part in page.text, part


def test_parts_that_were_not_measured_say_so() -> None:
    table = random_table()
    findings = find(
        "val",
        table,
        [f"c{n}" for n in range(7)],
        averages=False,
        fitting=None,
        probes=None,
        other=None,
    )
    page = Page(page_of(findings, subject_of([f"c{n}" for n in range(7)])))
    assert "not applied" in page.text
    assert "Not measured" in page.text
    assert "comparison" not in page.ids


def test_the_page_stays_small_and_readable_with_400_classes() -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(2000) % 400
    p = rng.dirichlet(np.full(400, 0.02), size=2000) + 1e-6
    p[np.arange(2000), targets] += 0.3
    p /= p.sum(1, keepdims=True)
    clips = clips_of(
        pd.DataFrame({"video": [f"v{n}" for n in range(2000)], "target": targets, "group": "g"})
    )
    table = make_table(clips, [Rows(np.arange(2000), p, p.argmax(1))])
    names = [f"class number {n}" for n in range(400)]
    findings = find("test", table, names, averages=False, fitting=None, probes=None, other=None)
    text = page_of(findings, subject_of(names))
    assert len(text) < 1_000_000
    assert "most frequent of" in text
    assert any(address.startswith("data:image/png") for address in Page(text).loaded)
    assert max(plot_confusion(findings, names).get_size_inches()) < 15


def test_the_gallery_shows_worst_mistakes_and_least_certain_hits(tmp_path: Path) -> None:
    data_path, _, annotations = write_annotated_clips(tmp_path, num_clips=4)
    clips = annotations.splits["test"]
    p = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0, 0.4, 0.6], [0.3, 0.7, 0]])
    table = make_table(clips, [Rows(np.arange(4), p, p.argmax(1))])  # targets 0 1 2 0
    model = build_model("r2plus1d_18", 3).eval()
    names = list(annotations.categories)
    shown = make_gallery(table, clips, names, data_path, model, GEOMETRY)
    assert [card.video for card in shown.mistakes] == ["test1", "test3"]
    assert [card.video for card in shown.doubtful] == ["test2", "test0"]
    assert (shown.mistakes[0].true, shown.mistakes[0].predicted) == (names[1], names[0])
    for card in (*shown.mistakes, *shown.doubtful):
        assert card.frames.startswith("data:image/jpeg;base64,")
        assert card.frames != card.where


def test_grad_cam_of_the_last_stage_is_the_class_activation_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Behind layer4 come a mean and a linear head, so the gradient is the head's weight: the map
    # of Zhou et al. 2016 (arXiv:1512.04150).
    monkeypatch.setattr(gallery, "_MIN_TIME", 1)
    torch.manual_seed(0)
    model = build_model("r2plus1d_18", 5).eval()
    clip = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        model.fc.weight.abs_()  # evidence for the class somewhere: a map of zeros proves nothing
    ours = grad_cam(model, clip, 2)
    with torch.no_grad():
        features = model.layer4(model.layer3(model.layer2(model.layer1(model.stem(clip)))))
        map_ = torch.einsum("k,nkthw->nthw", model.fc.weight[2], features).relu()[:, None]
        expected = torch.nn.functional.interpolate(map_, (8, 32, 32), mode="trilinear")[:, 0]
    torch.testing.assert_close(ours, expected / expected.max(), rtol=0, atol=1e-4)
    assert ours.max() == 1


def test_a_map_over_16_frames_tells_four_moments_apart() -> None:
    torch.manual_seed(0)
    heat = grad_cam(build_model("r2plus1d_18", 3).eval(), torch.randn(1, 3, 16, 32, 32), 0)[0]
    assert heat.shape == (16, 32, 32)
    assert 0 <= heat.min() <= heat.max() <= 1
    assert len({tuple(frame.flatten().tolist()) for frame in heat}) >= 4


def test_facts_name_sizes_and_digests(tmp_path: Path) -> None:
    _, _, annotations = write_annotated_clips(tmp_path, num_clips=3)
    facts = {fact.name: fact.value for fact in data_facts(annotations, "test")}
    assert "test 3 clips of 2 sources" in facts["data"]
    assert facts["digest of the data"] == annotations.data_digest
    assert split_digest(annotations, "test") != split_digest(annotations, "val")
    model = {fact.name: fact.value for fact in model_facts(subject_of(["a"]))}
    assert model["model"] == "r2plus1d_18, 31.3 million parameters, 1 classes"
