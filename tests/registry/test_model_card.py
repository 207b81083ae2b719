"""The model cards: labels as they are, code that runs, nothing claimed that was not tested."""

import ast
from typing import Any

import pytest

from k400tiny_lib.registry.model_card import model_card, video_card

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
    card = model_card("m", "3", CARD, 0.0)
    assert "a\\*b\\_\\[x\\](y), \\<script\\>, xxx" in card
    assert "12 test clips of 2 of the 3 classes, none of the others." in card
    assert "## Limits" in card
    before = {name: value for name, value in CARD.items() if name != "test_classes"}
    assert "12 test clips. Protocol" in model_card("m", "3", before, 0.0)


def blocks(card: str, language: str) -> list[str]:
    return [part.partition("```")[0] for part in card.split(f"```{language}\n")[1:]]


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("name", ["m", "o'brien", 'the "best"', "back\\slash"])
def test_the_code_of_a_card_loads_its_own_version_with_the_frames_of_all_views(
    name: str, views: int
) -> None:
    metadata = CARD | {"views_in_graph": views, "num_frames": views * 8}
    for known in (metadata, {k: v for k, v in metadata.items() if k != "num_frames"}):
        [code] = blocks(model_card(name, "3", known, 0.0), "python")
        texts = [n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)]
        assert f"models:/{name}/3" in texts
        assert f"np.zeros((1, {views * 8}, " in code
        assert f"T = {views * 8};" in model_card(name, "3", known, 0.0)


@pytest.mark.parametrize("make", ["onnx", "video"])
def test_a_card_says_how_far_its_probabilities_can_be_trusted(make: str) -> None:
    def card(**facts: Any) -> str:
        metadata = CARD | facts
        if make == "onnx":
            return model_card("m", "3", metadata, 0.0)
        return video_card("v", "4", "m", "3", metadata)

    assert "Probabilities are not calibrated." in card()
    assert "calibrated with temperature 1.500" in card(temperature=1.5)
    told = card(temperature=1.5, calibration="Calibrated on 90 clips.")
    assert "Calibrated on 90 clips." in told
    assert "with temperature" not in told
    assert "always answers with one of its classes" in card()
    for none in (card(), card(confidence_threshold=0.0)):
        assert "below the `confidence_threshold`" not in none
    assert "below the `confidence_threshold` of its metadata, 0.412," in card(
        confidence_threshold=0.4123
    )


def test_the_card_of_the_video_model_names_its_requests_answers_and_all_classes_that_fit() -> None:
    few = video_card("v", "4", "m", "3", CARD | {"class_names": [f"class {i}" for i in range(100)]})
    assert f"## Classes\n\n{', '.join(f'class {i}' for i in range(100))}" in few
    names = [f"a class with a long name {i}" for i in range(400)]
    many = video_card("v", "4", "m", "3", CARD | {"class_names": names})
    assert len(many) <= 5000
    shown = many.partition("## Classes\n\n")[2].partition(" and ")[0].count(",") + 1
    assert 50 < shown < 400
    assert many.endswith(f" and {400 - shown} more")
    [code] = blocks(few, "python")
    ast.parse(code)
    [shell] = blocks(few, "bash")
    assert "-m models:/v/4\n" in shell
    assert "base64 -w0" in shell
    for text in ("`labels`", "`probabilities`", "`known`", "`error`", "[models:/m/3](#/models/m/"):
        assert text in few
    # A graph of an older export says less about itself.
    video_card("v", "4", "m", "3", {"class_names": ["a"], "clip_len": 8})
