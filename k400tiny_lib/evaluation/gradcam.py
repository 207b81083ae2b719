"""Clips worth looking at: what the model sees in them and where it looks."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from captum.attr import LayerAttribution, LayerGradCam  # type: ignore[import-untyped]
from torch import Tensor, nn

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.evaluation.views import Protocol, ViewDataset
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import architecture_of_model, model_input

_MISTAKES, _DOUBTFUL = 8, 4
_FRAMES, _SIDE = 8, 112  # pictures of a clip, and their size in pixels
_JPEG_QUALITY = 75
_MIN_TIME = 4  # steps in time that a map must tell apart
_HEAT = 0.45  # opacity of a map over its frame


@dataclass(frozen=True)
class Card:
    """One clip of the gallery: labels, confidence, and strips of pictures as data URIs.

    `where` is the Grad-CAM of the predicted class over the same frames.
    """

    video: str
    true: str
    predicted: str
    confidence: float
    frames: str
    where: str


@dataclass(frozen=True)
class Gallery:
    """The most confident mistakes and the least confident hits, worst first."""

    mistakes: list[Card]
    doubtful: list[Card]


def make_gallery(
    table: pd.DataFrame,
    clips: Sequence[Clip],
    class_names: Sequence[str],
    data_path: Path,
    model: nn.Module,
    geometry: Geometry,
) -> Gallery:
    """Choose clips from a predictions table and draw them.

    Args:
        table: the predictions table.
        clips: those of the table, in its order.
        class_names: labels by class id.
        data_path: directory of the clip folders.
        model: in evaluation mode, on the CPU.
        geometry: what it sees of a clip; the centre view is drawn.
    """
    right = table["predicted"] == table["target"]
    dataset = ViewDataset(clips, data_path, geometry, Protocol(1, 1))

    def card(position: int) -> Card:
        row = table.iloc[position]
        view = dataset[position][0][0]
        heat = grad_cam(model, model_input(model, view[None]), int(row["predicted"]))[0]
        times = np.linspace(0, view.shape[1] - 1, min(_FRAMES, view.shape[1])).round().astype(int)
        pictures = view[:, times].permute(1, 2, 3, 0).numpy()  # (C, T, H, W) -> (T, H, W, C)
        return Card(
            str(row["video"]),
            class_names[row["target"]],
            class_names[row["predicted"]],
            float(row["confidence"]),
            _strip(pictures),
            _strip(_overlay(pictures, heat[times].numpy())),
        )

    wrong = table[~right].nlargest(_MISTAKES, "confidence")
    unsure = table[right].nsmallest(_DOUBTFUL, "confidence")
    return Gallery([card(p) for p in wrong.index], [card(p) for p in unsure.index])


def grad_cam(model: nn.Module, clips: Tensor, target: int) -> Tensor:
    """Where and when a model finds evidence for a class.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) at the deepest feature maps of the network
    that still tell `_MIN_TIME` moments apart, enlarged to the size of the clip.

    Args:
        model: from `build_model`, in evaluation mode.
        clips: float32 (N, C, T, H, W), normalised.
        target: class id.

    Returns:
        float32 (N, T, H, W) in [0, 1], the maximum of each clip being 1 (or all 0).
    """
    layer = _deepest_in_time(model, clips.shape[2])
    maps = LayerGradCam(model, layer).attribute(
        clips, target=target, attribute_to_layer_input=True, relu_attributions=True
    )
    # (N * heads, 1, T, H, W) -> (N, 1, T, H, W); convolutions have one head
    maps = maps.unflatten(0, (len(clips), -1)).sum(1)
    size = tuple(clips.shape[2:])
    maps = LayerAttribution.interpolate(maps, size, "trilinear")[:, 0].detach()
    peak: Tensor = maps.amax(dim=(1, 2, 3), keepdim=True)
    heat: Tensor = maps / peak.clamp(min=torch.finfo(maps.dtype).tiny)
    return heat


@torch.no_grad()
def _deepest_in_time(model: nn.Module, num_frames: int) -> nn.Module:
    layers = [model.get_submodule(name) for name in architecture_of_model(model).feature_layers]
    moments: list[int] = []  # of each layer's input
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: moments.append(inputs[0].shape[2]))
        for layer in layers
    ]
    # How many moments a layer tells apart does not depend on the pictures: small ones will do.
    model(torch.zeros(1, 3, num_frames, 32, 32))
    for hook in hooks:
        hook.remove()
    fine = [
        layer for layer, m in zip(layers, moments, strict=True) if m >= min(_MIN_TIME, num_frames)
    ]
    return fine[-1] if fine else layers[0]


def _overlay(
    pictures: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """Colour uint8 RGB (T, H, W, 3) by a map (T, H, W) in [0, 1]."""
    colours = np.stack(
        [
            cv2.applyColorMap((255 * frame).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
            for frame in heat
        ]
    )
    mixed: npt.NDArray[np.uint8] = (
        (1 - _HEAT) * pictures.astype(np.float32) + _HEAT * colours
    ).astype(np.uint8)
    return mixed


def _strip(pictures: npt.NDArray[np.uint8]) -> str:
    """uint8 RGB (T, H, W, 3) side by side as one JPEG, as a data URI."""
    scaled = [
        cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC) for picture in pictures
    ]
    _, encoded = cv2.imencode(
        ".jpg", np.hstack(scaled)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
