"""What is exported: a model with everything a user of it must know."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.config.geometry import CLIP_SIZES
from k400tiny_lib.data.annotations import read_annotations
from k400tiny_lib.data.decoding import read_frames
from k400tiny_lib.data.sampling import uniform_indices
from k400tiny_lib.errors import UserError
from k400tiny_lib.export.parity import BATCHES
from k400tiny_lib.model import (
    architecture_of,
    build_model,
    class_count,
    design_of,
    load_backbone,
    pretrained_state,
)
from k400tiny_lib.training.checkpoint import model_of, read_checkpoint

_NOISE_SIZE = (336, 336)


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode, its clip geometry (frames, pixels) and its class names."""

    model: nn.Module
    architecture: str
    clip_len: int
    resize_size: int
    crop_size: int
    class_names: list[str]
    run_id: str

    @property
    def metadata(self) -> dict[str, Any]:
        """What goes into the ONNX file and the registry."""
        return {
            "architecture": self.architecture,
            "class_names": self.class_names,
            "clip_len": self.clip_len,
            "sampling": "uniform over the video, first and last frame included",
            "resize_size": self.resize_size,
            "crop_size": self.crop_size,
            "mean": list(design_of(self.model).mean),
            "std": list(design_of(self.model).std),
            "training_run_id": self.run_id,
        }


def from_checkpoint(path: Path) -> Classifier:
    """The classifier of a best.pt.

    Raises:
        UserError: if the file is not a checkpoint of ours.
    """
    checkpoint = read_checkpoint(path, "checkpoint")
    model, trained = model_of(checkpoint, "checkpoint")
    by_id = {index: label for label, index in checkpoint["categories"].items()}
    head = class_count(trained.model, checkpoint["model"])
    return Classifier(
        model, trained.model, trained.clip_len, trained.resize_size, trained.crop_size,
        [by_id.get(index, str(index)) for index in range(head)],
        str(checkpoint.get("run_id", "")),
    )  # fmt: skip


def from_weights(config: Config) -> Classifier:
    """The classifier of torchvision weights, with the clip geometry of its recipe.

    Raises:
        UserError: if there are no such weights or they cannot be downloaded.
    """
    architecture = architecture_of(config.weights)
    if architecture is None:
        raise UserError(f"weights: {config.weights} is of no architecture of this project.")
    state, class_names = pretrained_state(config.weights, architecture)
    model = build_model(architecture, len(class_names))
    load_backbone(model, state, f"weights: {config.weights}")
    own = CLIP_SIZES[architecture]
    return Classifier(
        model.eval(), architecture, own.clip_len, own.resize_size, own.crop_size,
        class_names, f"torchvision {config.weights}",
    )  # fmt: skip


def parity_clips(config: Config, clip_len: int) -> list[Tensor]:
    """Clips to prove parity on: of the validation split where there is one, else noise.

    Returns:
        As many uint8 (T, H, W, 3) of one size as the largest batch of the proof.

    Raises:
        UserError: if frames cannot be read.
    """
    needed = max(BATCHES)
    if config.annotations == NONE:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand((needed * clip_len, 3, 12, 12), generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, _NOISE_SIZE, mode="bicubic")
        frames = (255 * smooth).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return list(frames.unflatten(0, (needed, clip_len)))
    clips = read_annotations(Path(config.annotations)).splits["val"]
    if not clips:
        raise UserError("annotations: no validation clips to compare ONNX and PyTorch on.")
    frames_of = [
        read_frames(
            Path(config.data_path) / clip.video,
            (uniform_indices(clip.num_frames, clip_len) + clip.segment[0]).tolist(),
        )
        for clip in clips[:needed]
    ]
    same = [frames for frames in frames_of if frames.shape == frames_of[0].shape]
    return (same * needed)[:needed]
