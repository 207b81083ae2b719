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
    """Build an architecture with random weights.

    Args:
        name: a key of ARCHITECTURES.
        num_classes: outputs of the head.
        dropout: probability before the head.

    Returns:
        A module from float32 (N, 3, T, H, W) to logits (N, num_classes), which carries its name for
        `architecture_of_model` and `model_input`.
    """
    model: Any = ARCHITECTURES[name].build(num_classes, dropout)
    model.architecture = name
    return cast(nn.Module, model)


def architecture_of_model(model: nn.Module) -> Architecture:
    """The architecture of a model from `build_model`."""
    return ARCHITECTURES[cast(str, model.architecture)]


def model_input(model: nn.Module, clips: Tensor) -> Tensor:
    """Turn pixels into the input of a model from `build_model`.

    Args:
        model: decides the mean and the standard deviation.
        clips: uint8 (N, C, T, H, W), RGB in [0, 255].

    Returns:
        float32 (N, C, T, H, W).
    """
    architecture = architecture_of_model(model)
    return normalize(clips, architecture.mean, architecture.std)


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
            "Needed: a name such as R2Plus1D_18_Weights.KINETICS400_V1, imagenet, or none."
        ) from None
    if architecture_of_weights(weights_name) != model_name:
        raise UserError(f"weights: {weights_name} is not of model={model_name}.")
    return weights


def pretrained_state(weights_name: str, model_name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Fetch torchvision weights, as for `find_weights`, from the hub's cache or the internet.

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


def architecture_of_weights(weights_name: str) -> str | None:
    """The key in ARCHITECTURES of torchvision weights, None for another architecture."""
    name = weights_name.partition("_Weights")[0].lower()
    return name if name in ARCHITECTURES else None


def class_count(name: str, state: Mapping[str, Tensor]) -> int:
    """Outputs of the head in a state_dict of an architecture.

    Raises:
        KeyError: if it has no such head.
    """
    return int(state[f"{ARCHITECTURES[name].head}.weight"].shape[0])


def check_finite(state: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights or BatchNorm statistics that are not finite: every output would be NaN.

    Raises:
        UserError: beginning with `origin`, and naming the first tensor.
    """
    if broken := not_finite(state):
        raise UserError(
            f"{origin} has weights that are not finite ({len(broken)} of {len(state)} tensors, "
            f"first {broken[0]}). Needed: a checkpoint from before its training diverged."
        )


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with NaN or infinity."""
    names = [name for name, tensor in state.items() if tensor.is_floating_point()]
    if not names:
        return []
    # One wait for a GPU, not one for each tensor.
    finite = torch.stack([state[name].isfinite().all() for name in names]).tolist()
    return [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]


def load_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> bool:
    """Load weights; a head of another size is left out, and the model keeps the one it has.

    Args:
        model: the model to fill, from `build_model`.
        state: a state_dict of the same architecture.
        origin: where the weights come from, for the message.

    Returns:
        Whether the head was loaded too.

    Raises:
        UserError: if the weights are of another architecture, or not finite.
    """
    head = f"{architecture_of_model(model).head}."
    current, loaded = (
        {(key, value.shape) for key, value in tensors.items()}
        for tensors in (model.state_dict(), state)
    )
    differing = {key for key, _ in current ^ loaded}
    if backbone := sorted(key for key in differing if not key.startswith(head)):
        raise UserError(
            f"{origin} is of another architecture: {len(backbone)} tensors differ, first "
            f"{backbone[0]}."
        )
    check_finite(state, origin)
    fitting = {k: v for k, v in state.items() if not (differing and k.startswith(head))}
    model.load_state_dict(fitting, strict=not differing)
    return not differing
