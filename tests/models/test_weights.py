"""Weights: torchvision's load into our models, mistakes are one line."""

from pathlib import Path

import pytest
import torch
from torchvision.models.video import R2Plus1D_18_Weights, r2plus1d_18

from k400tiny_lib.errors import UserError
from k400tiny_lib.models.weights import build_model, load_weights, pretrained_state

KINETICS = "R2Plus1D_18_Weights.KINETICS400_V1"


def test_the_model_computes_what_torchvisions_computes() -> None:
    theirs = r2plus1d_18(weights=None, num_classes=5).eval()
    ours = build_model("r2plus1d_18", num_classes=5, dropout=0.3).eval()
    assert load_weights(ours, theirs.state_dict(), "test")
    clips = torch.randn(2, 3, 4, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(clips), theirs(clips), rtol=0, atol=0)


def test_weights_of_another_architecture_are_refused() -> None:
    with pytest.raises(UserError, match="of another architecture"):
        load_weights(build_model("r3d_18", 3), build_model("r2plus1d_18", 3).state_dict(), "w")


def test_pretrained_weights_come_from_the_hub_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    state = build_model("r2plus1d_18", 400).state_dict()
    torch.save(state, folder / R2Plus1D_18_Weights.KINETICS400_V1.url.rpartition("/")[2])
    loaded, names = pretrained_state(KINETICS, "r2plus1d_18")
    assert torch.equal(loaded["fc.weight"], state["fc.weight"])
    assert len(names) == 400


@pytest.mark.parametrize(
    ("weights", "model", "message"),
    [
        ("R2Plus1D_18_Weights.KINETICS500", "r2plus1d_18", "torchvision has no"),
        ("nonsense", "r2plus1d_18", "torchvision has no"),
        (KINETICS, "r3d_18", "is not of model=r3d_18"),
    ],
)
def test_wrong_weights_are_one_clear_line(weights: str, model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pretrained_state(weights, model)


def test_a_failed_download_says_where_the_file_may_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(UserError, match=r"^weights: .* cannot be downloaded .*hub/checkpoints"):
        pretrained_state(KINETICS, "r2plus1d_18")
