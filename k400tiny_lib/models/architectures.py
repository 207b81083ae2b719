"""The architectures, each with what the rest of the project must know about it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.video import MViT, mc3_18, mvit_v2_s, r2plus1d_18, r3d_18, s3d, swin3d_t

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        build: from the number of classes and the dropout before the head to an untrained module,
            from float32 (N, 3, T, H, W) to logits (N, K), with the published `state_dict`'s names.
        head: the module whose weight is (K, ...).
        maps: modules whose input is feature maps (N, C, T, H, W), from shallow to deep; for the
            transformer with heads (N * heads, C, T, H, W).
        mean, std: of the RGB in [0, 1] that its weights were trained with.
        free_frames: whether T can be left free in an exported graph. The modules all take any T;
            but attention, and a pooling window that may shrink, are traced for one.
        gains_from_bf16_on_cpu: whether bf16 trains it faster on a CPU with matrix instructions for
            it; two were measured to train slower.
        optimize_for_export: from a model in evaluation mode to one of the same function that ONNX
            Runtime computes faster, in float32 only; None where there is no such form.
    """

    build: Callable[[int, float], Any]
    head: str
    maps: tuple[str, ...]
    mean: Triple
    std: Triple
    free_frames: bool = False
    gains_from_bf16_on_cpu: bool = True
    optimize_for_export: Callable[[Any], Any] | None = None


class FittingPool(nn.AvgPool3d):
    """The average pooling of a published head, whose window shrinks to a smaller clip.

    Where the published model runs, this is its function.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool features (N, C, T, H, W)."""
        assert isinstance(self.kernel_size, tuple)
        window = [min(size) for size in zip(self.kernel_size, x.shape[2:], strict=True)]
        return F.avg_pool3d(x, window, stride=1)

    @classmethod
    def like(cls, pool: nn.AvgPool3d) -> "FittingPool":
        """With the window of another pooling, of stride 1."""
        return cls(pool.kernel_size, stride=1)


class AnySizeMViT(MViT):
    """torchvision's MViT for clips of any size.

    The grid of tokens is that of the clip. torchvision interpolates the table of relative positions
    to it, which keeps the shape of the published weights, the ones for 16 x 224 x 224.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Classify clips, float32 (N, 3, T, H, W)."""
        x = self.conv_proj(x)
        grid = tuple(x.shape[2:])
        x = self.pos_encoding(x.flatten(2).transpose(1, 2))  # (N, C, T, H, W) -> (N, tokens, C)
        for block in self.blocks:
            x, grid = block(x, grid)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def _resnet(builder: Callable[..., Any]) -> Callable[[int, float], Any]:
    return lambda num_classes, dropout: _drop_after_pool(
        builder(weights=None, num_classes=num_classes), dropout
    )


def _drop_after_pool(model: Any, dropout: float) -> Any:
    # Behind the pooling, not before the head's weights, whose names stay torchvision's so.
    if dropout:
        model.avgpool = nn.Sequential(model.avgpool, nn.Dropout(dropout))
    return model


def _s3d(num_classes: int, dropout: float) -> Any:
    model = s3d(weights=None, num_classes=num_classes, dropout=dropout)
    model.avgpool = FittingPool.like(model.avgpool)
    return model


def _mvit(num_classes: int, dropout: float) -> Any:
    model = mvit_v2_s(weights=None, num_classes=num_classes, dropout=dropout)
    model.__class__ = AnySizeMViT  # torchvision's function builds the class that it names
    return model


def _swin(num_classes: int, dropout: float) -> Any:
    # torchvision's own `dropout` would drop within every block as well.
    return _drop_after_pool(swin3d_t(weights=None, num_classes=num_classes), dropout)


def _hub() -> Any:
    """pytorchvideo's builders; imported where needed, for they take their time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its TorchScript decorators are deprecated
        from pytorchvideo.models import hub
    return hub


def _x3d(num_classes: int, dropout: float) -> Any:
    # Its softmax in the head would be applied twice.
    model = _hub().x3d_s(model_num_class=num_classes, dropout_rate=dropout, head_activation=None)
    model.blocks[-1].pool.pool = FittingPool.like(model.blocks[-1].pool.pool)
    return model


def _slow(num_classes: int, dropout: float) -> Any:
    model = _hub().slow_r50(model_num_class=num_classes, dropout_rate=dropout)
    model.blocks[-1].pool = FittingPool.like(model.blocks[-1].pool)
    return model


def _pack_rows(model: Any) -> Any:
    from k400tiny_lib.models.row_packing import pack_rows

    return pack_rows(model)


def _statistics(name: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation that torchvision's weights of an architecture state."""
    preset = get_model_weights(name).DEFAULT.transforms()
    return tuple(preset.mean), tuple(preset.std)


# Of all of pytorchvideo's Kinetics models: the pages named in config/geometry.py.
_PYTORCHVIDEO = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
_RESNET_MAPS = ("layer2", "layer3", "layer4", "avgpool")
_NET_MAPS = ("blocks.2", "blocks.3", "blocks.4", "blocks.5")
_S3D_MAPS = ("features.7", "features.13", "avgpool")
_MVIT_MAPS = ("blocks.14.attn.pool_v.pool",)  # what the class token can look up near the end

ARCHITECTURES = {
    "r2plus1d_18": Architecture(
        _resnet(r2plus1d_18),
        "fc",
        _RESNET_MAPS,
        *_statistics("r2plus1d_18"),
        free_frames=True,
        optimize_for_export=_pack_rows,
    ),
    "r3d_18": Architecture(
        _resnet(r3d_18), "fc", _RESNET_MAPS, *_statistics("r3d_18"), free_frames=True
    ),
    "mc3_18": Architecture(
        _resnet(mc3_18), "fc", _RESNET_MAPS, *_statistics("mc3_18"), free_frames=True
    ),
    "s3d": Architecture(_s3d, "classifier.1", _S3D_MAPS, *_statistics("s3d")),
    "mvit_v2_s": Architecture(
        _mvit, "head.1", _MVIT_MAPS, *_statistics("mvit_v2_s"), gains_from_bf16_on_cpu=False
    ),
    "swin3d_t": Architecture(_swin, "head", ("avgpool",), *_statistics("swin3d_t")),
    "x3d_s": Architecture(
        _x3d, "blocks.5.proj", _NET_MAPS, *_PYTORCHVIDEO, gains_from_bf16_on_cpu=False
    ),
    "slow_r50": Architecture(_slow, "blocks.5.proj", _NET_MAPS, *_PYTORCHVIDEO),
}
