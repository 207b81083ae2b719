"""Models with a frozen backbone: which layers learn, and the head on features of the others.

The features of a clip are the input of the head, before dropout, with the backbone in evaluation
mode.
"""

import torch
from torch import Tensor, nn

from k400tiny_lib.config.value_types import ALL_LAYERS, HEAD, LAST_STAGE
from k400tiny_lib.files import bytes_digest, combine_named_digests
from k400tiny_lib.models.weights import architecture_of_model


def learns(model: nn.Module, name: str, train_layers: str) -> bool:
    """Whether a parameter, buffer or module of a model, by its dotted name, is one that learns."""
    architecture = architecture_of_model(model)
    stage = architecture.last_stage if train_layers == LAST_STAGE else ()
    return train_layers == ALL_LAYERS or f"{name}.".startswith(
        tuple(f"{part}." for part in (*stage, architecture.head))
    )


def freeze(model: nn.Module, train_layers: str) -> None:
    """Let only some layers of a model learn; call it after `model.train()`.

    The others are in evaluation mode: BatchNorm keeps its statistics, and stochastic depth drops
    nothing. The dropout before the head stays: it belongs to the head.

    Args:
        model: from `build_model`; a wrapped model is frozen with it.
        train_layers: a value of that parameter; `all` lets every layer learn again.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(model, name, train_layers))
    if train_layers == ALL_LAYERS:
        return
    learning = {name for name, _ in model.named_modules() if learns(model, name, train_layers)}
    # A module that holds a learning one, such as the model itself, is left as it is.
    holding = {name[:end] for name in learning for end, letter in enumerate(name) if letter == "."}
    for name, module in model.named_modules():
        # No architecture drops elements elsewhere.
        is_dropout_of_head = isinstance(module, nn.Dropout) and module.p > 0
        if name and name not in learning | holding and not is_dropout_of_head:
            module.training = False


def learning_state(model: nn.Module, train_layers: str) -> dict[str, Tensor]:
    """The part of a model's `state_dict` that training changes."""
    return {k: v for k, v in model.state_dict().items() if learns(model, k, train_layers)}


def learning_buffers(model: nn.Module, train_layers: str) -> list[Tensor]:
    """The BatchNorm statistics that training changes."""
    return [b for name, b in model.named_buffers() if learns(model, name, train_layers)]


def backbone_digest(model: nn.Module) -> str:
    """Digest of all weights and statistics but those of the head."""
    return combine_named_digests(
        {
            name: bytes_digest(tensor.detach().cpu().contiguous().numpy().tobytes())
            for name, tensor in model.state_dict().items()
            if not learns(model, name, HEAD)
        }
    )


def head_input(model: nn.Module, inputs: Tensor) -> Tensor:
    """The features of clips.

    Args:
        model: from `build_model`, in evaluation mode.
        inputs: normalized clips, float32 (N, 3, T, H, W).

    Returns:
        float32 (N, C). Where the published head averages logits over positions, these are the mean
        over the positions: the head is affine, so that the logits are the same.
    """
    seen: list[Tensor] = []
    head = model.get_submodule(architecture_of_model(model).head)
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        model(inputs)
    finally:
        hook.remove()
    [features] = seen
    channels = 1 if isinstance(head, nn.Conv3d) else -1  # (N, C, T, H, W) or (N, ..., C)
    features = features.float().movedim(channels, 1)
    return features.flatten(2).mean(2) if features.ndim > 2 else features


class FeatureHead(nn.Module):
    """Dropout and the head of a model, whose parameters it shares."""

    def __init__(self, model: nn.Module) -> None:
        """Take the head and the rate of the dropout before it from a model of `build_model`."""
        super().__init__()
        rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
        self.dropout = nn.Dropout(max(rates, default=0.0))
        self.head = model.get_submodule(architecture_of_model(model).head)

    def forward(self, features: Tensor) -> Tensor:
        """Features float32 (N, C), from `head_input`, to logits (N, K)."""
        features = self.dropout(features)
        if isinstance(self.head, nn.Conv3d):
            features = features[:, :, None, None, None]
        logits: Tensor = self.head(features).flatten(1)
        return logits


class FrozenModel(nn.Module):
    """A model of which only the head learns, from clips or from their features.

    The backbone is none of its modules: it is in evaluation mode throughout and gets no gradients,
    and DistributedDataParallel need not know it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.feature_head = FeatureHead(model)
        self._whole = (model,)  # a tuple, which does not register it

    def train(self, mode: bool = True) -> "FrozenModel":
        """Switch the dropout alone."""
        self._whole[0].eval()
        return super().train(mode)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalized clips (N, 3, T, H, W), or their features (N, C), to logits (N, K)."""
        if inputs.ndim > 2:
            with torch.no_grad():
                inputs = head_input(self._whole[0], inputs)
        logits: Tensor = self.feature_head(inputs)
        return logits
