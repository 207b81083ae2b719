"""The gallery of the report: clips worth looking at, with Grad-CAM maps of their prediction."""

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
from k400tiny_lib.evaluation.views import ViewDataset, ViewProtocol
from k400tiny_lib.models.loaded import LoadedModel
from k400tiny_lib.models.weights import architecture_of_model, model_input

_MISTAKES, _UNCERTAIN = 8, 4
_FRAMES, _SIDE = 8, 112  # frames shown of a clip, and their size in pixels
_JPEG_QUALITY = 75
_HEAT = 0.45  # opacity of a map over its frame


@dataclass(frozen=True)
class Card:
    """One clip of the gallery.

    Attributes:
        video, true, predicted, confidence: the clip, its labels and the confidence in [0, 1].
        frames: some frames in order of time, as a data URI.
        heatmap: the same frames under the Grad-CAM map of the predicted class, as a data URI.
    """

    video: str
    true: str
    predicted: str
    confidence: float
    frames: str
    heatmap: str


@dataclass(frozen=True)
class Gallery:
    """The most confident mistakes and the least confident correct predictions, worst first."""

    mistakes: list[Card]
    uncertain: list[Card]


def make_gallery(
    table: pd.DataFrame, clips: Sequence[Clip], data_path: Path, loaded: LoadedModel
) -> Gallery:
    """Choose clips from their predictions table and draw their center views, on the CPU."""
    correct = table["predicted"] == table["target"]
    dataset = ViewDataset(clips, data_path, loaded.geometry, ViewProtocol(1, 1))
    names = loaded.class_names

    def card(position: int) -> Card:
        row = table.iloc[position]
        view = dataset[position][0][0]
        inputs = model_input(loaded.model, view[None])
        heat = grad_cam(loaded.model, inputs, int(row["predicted"]))[0]
        times, frames = choose_frames(view)
        strips = strip_of(frames), strip_of(_overlay(frames, heat[times].numpy()))
        labels = names[row["target"]], names[row["predicted"]]
        return Card(str(row["video"]), *labels, float(row["confidence"]), *strips)

    mistakes = table[~correct].nlargest(_MISTAKES, "confidence")
    uncertain = table[correct].nsmallest(_UNCERTAIN, "confidence")
    return Gallery([card(p) for p in mistakes.index], [card(p) for p in uncertain.index])


def grad_cam(model: nn.Module, clips: Tensor, target: int, min_moments: int = 4) -> Tensor:
    """Where and when a model finds evidence for a class.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) at the deepest feature maps with a resolution
    in time of at least `min_moments`, interpolated to the size of the clip.

    Args:
        model: from `build_model`, in evaluation mode.
        clips: float32 (N, C, T, H, W), normalized.
        target: class id.
        min_moments: time steps of the feature maps; all of a clip with fewer frames.

    Returns:
        float32 (N, T, H, W) in [0, 1], the maximum of each clip being 1 (or all 0).
    """
    layer = _deepest_layer(model, clips.shape[2], min_moments)
    maps = LayerGradCam(model, layer).attribute(
        clips, target=target, attribute_to_layer_input=True, relu_attributions=True
    )
    # (N * heads, 1, T, H, W) -> (N, 1, T, H, W); convolutions have one head
    maps = maps.unflatten(0, (len(clips), -1)).sum(1)
    maps = LayerAttribution.interpolate(maps, tuple(clips.shape[2:]), "trilinear")[:, 0].detach()
    peak: Tensor = maps.amax(dim=(1, 2, 3), keepdim=True)
    heat: Tensor = maps / peak.clamp(min=torch.finfo(maps.dtype).tiny)
    return heat


@torch.no_grad()
def _deepest_layer(model: nn.Module, num_frames: int, min_moments: int) -> nn.Module:
    layers = [model.get_submodule(name) for name in architecture_of_model(model).feature_layers]
    moments: list[int] = []  # T of each layer's input
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: moments.append(inputs[0].shape[2]))
        for layer in layers
    ]
    # T of the feature maps does not depend on height and width: small frames are enough.
    model(torch.zeros(1, 3, num_frames, 32, 32))
    for hook in hooks:
        hook.remove()
    needed = min(min_moments, num_frames)
    fine = [layer for layer, t in zip(layers, moments, strict=True) if t >= needed]
    return fine[-1] if fine else layers[0]


def _overlay(frames: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Blend uint8 RGB frames (T, H, W, 3) with a color map of heat (T, H, W) in [0, 1]."""
    levels = (255 * heat).astype(np.uint8)
    colors = np.stack([cv2.applyColorMap(each, cv2.COLORMAP_INFERNO)[..., ::-1] for each in levels])
    blended = (1 - _HEAT) * frames.astype(np.float32) + _HEAT * colors
    return blended.astype(np.uint8)


def choose_frames(view: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Up to 8 frames spread over a view, uint8 (C, T, H, W): indices (F,) and (F, H, W, C)."""
    times = np.linspace(0, view.shape[1] - 1, min(_FRAMES, view.shape[1])).round().astype(int)
    return times, view[:, times].permute(1, 2, 3, 0).numpy()


def strip_of(frames: npt.NDArray[np.uint8]) -> str:
    """Frames uint8 RGB (T, H, W, 3) side by side as one JPEG, as a data URI."""
    row = [cv2.resize(f, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC) for f in frames]
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, encoded = cv2.imencode(".jpg", np.hstack(row)[..., ::-1], quality)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
