"""Weights as the start of another training: what is known by label is taken, the rest is new."""

from pathlib import Path

import pytest
import torch

from k400tiny_lib.config import Config
from k400tiny_lib.models.checkpoint import write_checkpoint
from k400tiny_lib.models.initial import initial_model
from k400tiny_lib.models.weights import build_model

KNOWN = {"gleiten": 0, "growing": 1, "turning": 2}
BACKBONE = "layer4.1.conv2.0.0.weight"


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        (KNOWN, "load_model: the head is taken over, with all 3 labels"),
        (
            {"growing": 0, "sliding": 1, "turning": 2},
            "load_model: 2 of 3 labels of the head are taken over; new: sliding",
        ),
        ({"turning": 0, "growing": 1}, "load_model: the head is taken over, with all 2 labels"),
        ({"a": 0, "b": 1, "c": 2}, "load_model: the head is new, since the weights know none of"),
    ],
)
def test_outputs_are_matched_by_label_not_by_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], categories: dict[str, int], said: str
) -> None:
    source = build_model("r2plus1d_18", 3).state_dict()
    best = tmp_path / "best.pt"
    content = {"model": source, "epoch": 1, "config": {}, "categories": KNOWN}
    write_checkpoint(content, best)
    settings = Config(model="r2plus1d_18", load_model=str(best))
    torch.manual_seed(0)
    fresh = build_model("r2plus1d_18", len(categories)).state_dict()
    torch.manual_seed(0)
    loaded = initial_model(settings, len(categories), categories).state_dict()
    assert torch.equal(loaded[BACKBONE], source[BACKBONE])
    for label, target in categories.items():
        for key in ("fc.weight", "fc.bias"):
            expected = source[key][KNOWN[label]] if label in KNOWN else fresh[key][target]
            assert torch.equal(loaded[key][target], expected), (label, key)
    assert capsys.readouterr().out.startswith(said)
