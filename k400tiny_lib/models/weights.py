"""Models and their weights; every `state_dict` has the published names and shapes."""

from collections.abc import Mapping
from typing import Any, cast
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_weight

from k400tiny_lib.data.loading.transforms import normalize
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.architectures import ARCHITECTURES, Architecture


def build_model(name: str, num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Build an architecture from scratch.

    Args:
        name: a key of ARCHITECTURES.
        num_classes: outputs of the head.
        dropout: probability before the head.

    Returns:
        A module from float32 (N, 3, T, H, W) to logits (N, num_classes), which `design_of` and
        `model_input` know.
    """
    model: Any = ARCHITECTURES[name].build(num_classes, dropout)
    model.architecture = name
    built: nn.Module = model
    return built


def design_of(model: nn.Module) -> Architecture:
    """What is known about the architecture of a model from `build_model`."""
    return ARCHITECTURES[cast(str, model.architecture)]


def model_input(model: nn.Module, clips: Tensor) -> Tensor:
    """Turn pixels into what a model from `build_model` was designed for.

    Args:
        model: decides the mean and the standard deviation.
        clips: uint8 (N, C, T, H, W), RGB in [0, 255].

    Returns:
        float32 (N, C, T, H, W).
    """
    design = design_of(model)
    return normalize(clips, design.mean, design.std)


def find_weights(weights_name: str, model_name: str) -> WeightsEnum:
    """Look torchvision weights up by name, without fetching them.

    Args:
        weights_name: such as `R2Plus1D_18_Weights.KINETICS400_V1`.
        model_name: the architecture that they must be of.

    Raises:
        UserError: if there are no such weights, or they are of another architecture.
    """
    try:
        weights: WeightsEnum = get_weight(weights_name)
    except (ValueError, KeyError, AttributeError):
        raise UserError(
            f"weights: torchvision has no {weights_name!r}. "
            "Needed: a name such as R2Plus1D_18_Weights.KINETICS400_V1, or none."
        ) from None
    if architecture_of(weights_name) != model_name:
        raise UserError(f"weights: {weights_name} is not of model={model_name}.")
    return weights


def pretrained_state(weights_name: str, model_name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Fetch torchvision weights, from the hub's cache or the internet.

    Args:
        weights_name, model_name: as for `find_weights`.

    Returns:
        The state_dict and the class names of its head.

    Raises:
        UserError: if there are no such weights, or they cannot be downloaded.
    """
    weights = find_weights(weights_name, model_name)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"weights: {weights.url} cannot be downloaded ({error}). Needed: a connection, or that "
            f"file in {torch.hub.get_dir()}/checkpoints."
        ) from None
    return state, list(weights.meta["categories"])


def architecture_of(weights_name: str) -> str | None:
    """The architecture that torchvision weights are of, or None where this project has none."""
    prefix = weights_name.partition("_Weights")[0].lower()
    return next((name for name in ARCHITECTURES if name == prefix), None)


def class_count(name: str, state: Mapping[str, Tensor]) -> int:
    """Outputs of the head in a state_dict of an architecture.

    Raises:
        KeyError: if it has no such head.
    """
    return int(state[f"{ARCHITECTURES[name].head}.weight"].shape[0])


def load_backbone(model: nn.Module, state: Mapping[str, Tensor], source: str) -> bool:
    """Load weights, leaving the head as it is where its size differs.

    Args:
        model: the model to fill, from `build_model`.
        state: a state_dict of the same architecture.
        source: where it came from, for the message.

    Returns:
        Whether the head was loaded too.

    Raises:
        UserError: if the weights are of another architecture.
    """
    own = model.state_dict()
    head = [key for key in own if key.startswith(f"{design_of(model).head}.")]
    head_fits = all(key in state and state[key].shape == own[key].shape for key in head)
    wanted = {k: v for k, v in state.items() if head_fits or k not in head}
    wrong = [
        key
        for key in own.keys() | wanted.keys()
        if (head_fits or key not in head)
        and (key not in own or key not in wanted or own[key].shape != wanted[key].shape)
    ]
    if wrong:
        raise UserError(
            f"{source} is of another architecture: {len(wrong)} tensors differ, first {min(wrong)}."
        )
    model.load_state_dict(wanted, strict=head_fits)
    return head_fits
