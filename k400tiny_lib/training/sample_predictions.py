"""Predictions of a few validation clips, drawn as an image after some epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.feature_cache import CachedFeatures
from k400tiny_lib.files import atomic_write
from k400tiny_lib.media.sampling import uniform_indices
from k400tiny_lib.models.weights import model_input
from k400tiny_lib.plots import LabeledFigure, short_text
from k400tiny_lib.training.state import TrainState

NAME = "sample_predictions"
_CLIPS = 6
_FRAMES = 8
_IMAGES = 20  # about that many in a run of any length


def is_due(epoch: int, num_epochs: int) -> bool:
    """Whether an epoch gets an image: the first, the last, and some evenly between."""
    every = -(-num_epochs // _IMAGES)
    return epoch in (1, num_epochs) or epoch % every == 0


@torch.inference_mode()
def sample_predictions(state: TrainState) -> tuple[Tensor, list[int], Tensor]:
    """Predict a few validation clips, the same each time, without drawing a random number.

    Returns:
        The clips uint8 (N, C, T, H, W), their targets, and probabilities float32 (N, classes).
    """
    dataset = state.val_loader.dataset
    if isinstance(dataset, CachedFeatures):
        dataset = dataset.pixels
    assert isinstance(dataset, ClipDataset)
    count = min(_CLIPS, len(dataset))
    shown = [dataset[position * len(dataset) // count] for position in range(count)]
    clips = torch.stack([clip for clip, _, _ in shown])
    model = state.evaluated_model.eval()
    with state.autocast():
        logits = model(model_input(model, clips.to(state.process.device)))
    return clips, [target for _, target, _ in shown], logits.float().softmax(1).cpu()


def draw_predictions(
    clips: Tensor, targets: Sequence[int], probabilities: Tensor, labels: Mapping[int, str]
) -> Figure:
    """A row of frames per clip, with the true and the predicted label above it.

    Args:
        clips: uint8 (N, C, T, H, W), RGB.
        targets: ids of the true classes.
        probabilities: float32 (N, classes).
        labels: by id; an id without a label shows as its number.
    """
    columns = uniform_indices(clips.shape[2], min(_FRAMES, clips.shape[2])).tolist()
    figure = LabeledFigure(figsize=(1.25 * len(columns), 1.5 * len(clips)), layout="constrained")
    grid = figure.subplots(len(clips), 1, squeeze=False)[:, 0]
    for axes, clip, target, scores in zip(grid, clips, targets, probabilities, strict=True):
        strip = torch.cat(list(clip[:, columns].unbind(1)), dim=2)  # (C, T, H, W) -> (C, H, T*W)
        axes.imshow(strip.permute(1, 2, 0).numpy())  # (C, H, T*W) -> (H, T*W, C)
        axes.set_axis_off()
        predicted = int(scores.argmax())
        right = predicted == target
        true, said = (short_text(str(labels.get(index, index))) for index in (target, predicted))
        outcome = "correct" if right else f"predicted {said}"
        axes.set_title(
            f"{true}: {outcome}, {scores[predicted]:.0%}",
            fontsize=9,
            loc="left",
            color="tab:green" if right else "tab:red",
        )
    return figure


def save_predictions(
    state: TrainState, categories: Mapping[str, int], folder: Path
) -> dict[str, Path]:
    """Draw the sample into a folder if it is due after the current epoch.

    Returns:
        The image file by the name of its series; empty where none is due.
    """
    if not is_due(state.epoch, state.config.num_epochs):
        return {}
    path = folder / NAME / f"epoch_{state.epoch:04d}.png"
    path.parent.mkdir(exist_ok=True)
    labels = {index: label for label, index in categories.items()}
    with atomic_write(path) as part:
        draw_predictions(*sample_predictions(state), labels).savefig(part, format="png")
    return {NAME: path}
