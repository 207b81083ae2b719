"""What the model makes of a few validation clips, as a picture after an epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.temporal_sampling import uniform_indices
from k400tiny_lib.models.weights import model_input
from k400tiny_lib.training.loop import Trainer
from k400tiny_lib.training.optim import amp_dtype

NAME = "sample_predictions"
_CLIPS = 6
_FRAMES = 8
_PICTURES = 20  # about that many in a run, however long it is


def is_due(epoch: int, num_epochs: int) -> bool:
    """Whether an epoch gets a picture: the first, the last, and some evenly between."""
    every = -(-num_epochs // _PICTURES)
    return epoch in (1, num_epochs) or epoch % every == 0


@torch.inference_mode()
def sample_predictions(trainer: Trainer) -> tuple[Tensor, list[int], Tensor]:
    """Predict a few validation clips, the same ones each time; draws no random number.

    Returns:
        The clips uint8 (N, C, T, H, W), their targets, and probabilities float32 (N, classes).
    """
    dataset = trainer.val_loader.dataset
    assert isinstance(dataset, ClipDataset)
    count = min(_CLIPS, len(dataset))
    shown = [dataset[position * len(dataset) // count] for position in range(count)]
    clips = torch.stack([clip for clip, _, _ in shown])
    device = trainer.process.device
    dtype = amp_dtype(trainer.config.amp, trainer.config.model, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        model = trainer.evaluated_model.eval()
        logits = model(model_input(model, clips.to(device)))
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
    columns = uniform_indices(clips.shape[2], min(_FRAMES, clips.shape[2]))
    figure = Figure(figsize=(1.25 * len(columns), 1.5 * len(clips)), layout="constrained")
    grid = figure.subplots(len(clips), 1, squeeze=False)[:, 0]
    for axes, clip, target, shares in zip(grid, clips, targets, probabilities, strict=True):
        strip = torch.cat(list(clip[:, columns].unbind(1)), dim=2)  # (C, T, H, W) -> (C, H, T*W)
        axes.imshow(strip.permute(1, 2, 0).numpy())  # (C, H, T*W) -> (H, T*W, C)
        axes.set_axis_off()
        predicted = int(shares.argmax())
        right = predicted == target
        verdict = "right" if right else f"predicted {labels.get(predicted, predicted)}"
        axes.set_title(
            f"{labels.get(target, target)}: {verdict}, {shares[predicted]:.0%}",
            fontsize=9,
            loc="left",
            color="tab:green" if right else "tab:red",
            parse_math=False,
        )
    return figure


def save_predictions(
    trainer: Trainer, categories: Mapping[str, int], folder: Path
) -> dict[str, Path]:
    """Draw the sample after an epoch that is due.

    Args:
        trainer: after its validation.
        categories: ids by label.
        folder: for the series of pictures.

    Returns:
        The picture's file by the name of its series; empty where none is due.
    """
    if not is_due(trainer.epoch, trainer.config.num_epochs):
        return {}
    path = folder / NAME / f"epoch_{trainer.epoch:04d}.png"
    path.parent.mkdir(exist_ok=True)
    labels = {index: label for label, index in categories.items()}
    draw_predictions(*sample_predictions(trainer), labels).savefig(path)
    return {NAME: path}
