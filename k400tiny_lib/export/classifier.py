"""What is exported: a model with everything a user of it must know."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.export.parity import Eager, run_eager
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.checkpoint import model_of, read_checkpoint
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import (
    architecture_of_model,
    architecture_of_weights,
    build_model,
    class_count,
    load_weights,
    pretrained_state,
)

SAMPLING = (
    "uniform over the video, first and last frame included; several views are shifted against one "
    "another within a stride and follow one another along T"
)


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
    def geometry(self) -> Geometry:
        """What the model sees of a video."""
        return Geometry(self.clip_len, (self.resize_size,), self.crop_size)

    def eager(self, views: int, temperature: float = 1.0) -> Eager:
        """The model in PyTorch, as a function of frames; see `parity.run_eager`."""
        return partial(
            run_eager,
            self.model,
            resize_size=self.resize_size,
            crop_size=self.crop_size,
            views=views,
            temperature=temperature,
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """What goes into the ONNX file and the registry."""
        return {
            "architecture": self.architecture,
            "class_names": self.class_names,
            "clip_len": self.clip_len,
            "sampling": SAMPLING,
            "resize_size": self.resize_size,
            "crop_size": self.crop_size,
            "mean": list(architecture_of_model(self.model).mean),
            "std": list(architecture_of_model(self.model).std),
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
        model,
        trained.model,
        trained.clip_len,
        trained.resize_size,
        trained.crop_size,
        [by_id.get(index, str(index)) for index in range(head)],
        str(checkpoint.get("run_id", "")),
    )


def from_weights(config: Config) -> Classifier:
    """The classifier of torchvision weights, with the clip geometry of its recipe.

    Raises:
        UserError: if there are no such weights or they cannot be downloaded.
    """
    architecture = architecture_of_weights(config.weights)
    if architecture is None:
        raise UserError(f"weights: {config.weights} is of no architecture of this project.")
    state, class_names = pretrained_state(config.weights, architecture)
    model = build_model(architecture, len(class_names))
    load_weights(model, state, f"weights: {config.weights}")
    own = ARCHITECTURES[architecture]
    return Classifier(
        model.eval(),
        architecture,
        own.clip_len,
        own.resize_size,
        own.crop_size,
        class_names,
        f"torchvision {config.weights}",
    )
