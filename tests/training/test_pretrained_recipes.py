"""The recipes that start from published weights: only the layers that they name learn."""

from pathlib import Path

import pytest
import torch
from torchvision.models.video import R2Plus1D_18_Weights

from k400tiny_lib.config.recipes import load_recipe
from k400tiny_lib.models.tsn import imagenet_state
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.training.worker import run
from tests.helpers.training import CPU, annotate, config, make_job


def published_state(recipe: str, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a recipe starts from; random ones in torch's hub cache for Kinetics'."""
    if recipe == "small":
        return imagenet_state(build_model("tsn_efficientnet_lite0", 3))
    cache = folder / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    state = build_model("r2plus1d_18", 400).state_dict()
    torch.save(state, cache / R2Plus1D_18_Weights.KINETICS400_V1.url.rpartition("/")[2])
    return state


@pytest.mark.parametrize(
    ("recipe", "learning"), [("small", ("fc.",)), ("finetune", ("fc.", "layer4."))]
)
def test_a_recipe_trains_the_layers_that_it_names_and_keeps_the_published_others(
    recipe: str,
    learning: tuple[str, ...],
    tiny_data: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = published_state(recipe, tmp_path)
    short = {"clip_len": 2, "batch_size": 2, "num_epochs": 2}
    if recipe == "finetune":
        short["freeze_epochs"] = 1
    resolved = config(tiny_data[0], tmp_path / "run", **load_recipe(recipe) | short)
    run(make_job(resolved, annotate(tiny_data[0], num_val=2, num_train=4)), CPU)
    trained = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["raw_model"]
    for name, tensor in trained.items():
        if not name.startswith(learning):
            assert torch.equal(tensor, published[name]), name
    for part in learning:
        weights = [k for k in trained if k.startswith(part) and k.endswith("weight")]
        assert any(
            k not in published or not torch.equal(trained[k], published[k]) for k in weights
        ), part
