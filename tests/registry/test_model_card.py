"""The model card: labels as they are, and nothing claimed about classes that were not tested."""

from k400tiny_lib.registry.model_card import model_card

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
