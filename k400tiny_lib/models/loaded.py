"""The one loader of models for evaluation and export, so that both see the same pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torchvision.models import WeightsEnum, get_weight

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.annotations import class_names_by_id, unknown_labels
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.checkpoint import model_of, read_checkpoint
from k400tiny_lib.models.weights import (
    architecture_of_weights,
    build_model,
    class_count,
    load_weights,
    pretrained_state,
)


@dataclass(frozen=True)
class Geometry:
    """The frames and pixels of a video that a model sees.

    Attributes:
        clip_len: frames of one view.
        resize: short side, or height and width, after resizing; in pixels.
        crop_size: side of the square center crop, in pixels.
        antialias: whether resizing smooths first.
    """

    clip_len: int
    resize: tuple[int, ...]
    crop_size: int
    antialias: bool = True

    @classmethod
    def trained_with(cls, config: Config) -> "Geometry":
        """The geometry of a training with these parameters."""
        return cls(config.clip_len, (config.resize_size,), config.crop_size)

    @classmethod
    def of_weights(cls, weights: WeightsEnum, clip_len: int) -> "Geometry":
        """The geometry of the weights' own `transforms()`, which never antialias."""
        preset = weights.transforms()
        resize, crop = tuple(map(int, preset.resize_size)), int(preset.crop_size[0])
        return cls(clip_len, resize, crop, antialias=False)


@dataclass(frozen=True)
class Published:
    """The accuracy that the authors of weights report, in percent, and how it was measured."""

    acc1: float
    acc5: float
    protocol: str


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode and everything that its predictions depend on.

    Attributes:
        model: from `build_model`, on the CPU.
        architecture: a key of ARCHITECTURES.
        geometry: frames and pixels that it was trained with.
        class_names: labels by class id.
        origin: where the weights come from, in words.
        run_id: the run that trained it, or "".
        published: the reported accuracy of torchvision weights; None for a checkpoint.
        trained: the parameters of the training; None for torchvision weights.
    """

    model: nn.Module
    architecture: str
    geometry: Geometry
    class_names: list[str]
    origin: str
    run_id: str = ""
    published: Published | None = None
    trained: Config | None = None


def load_model(config: Config, categories: Mapping[str, int] | None = None) -> LoadedModel:
    """Load the model of a checkpoint (a local path), or torchvision weights where they are given.

    Args:
        config: `checkpoint` or `weights`.
        categories: class ids of the data by label, which the model must know; None to load any.

    Raises:
        UserError: if the file is no checkpoint of ours, there are no such weights, or the model
            does not know the classes of the data by their ids; it names the first that differs.
    """
    from_weights = config.weights != NONE
    loaded = _from_weights(config.weights) if from_weights else _from_checkpoint(config.checkpoint)
    if unknown := unknown_labels(categories or {}, loaded.class_names):
        needed = "labels that are all Kinetics-400 names" if from_weights else "its own labels"
        raise UserError(
            f"{'weights' if from_weights else 'checkpoint'}: {loaded.origin} does not know "
            f"{len(unknown)} of the data's {len(categories or {})} classes by the same id, first "
            f"{unknown[0]!r}. Needed: data with {needed}, or another model."
        )
    return loaded


def _from_checkpoint(path: str) -> LoadedModel:
    checkpoint = read_checkpoint(Path(path), "checkpoint")
    model, trained = model_of(checkpoint, "checkpoint")
    num_classes = class_count(trained.model, checkpoint["model"])
    class_names = class_names_by_id(checkpoint["categories"], num_classes)
    geometry, origin = Geometry.trained_with(trained), f"checkpoint of epoch {checkpoint['epoch']}"
    run_id = str(checkpoint.get("run_id", ""))
    return LoadedModel(model, trained.model, geometry, class_names, origin, run_id, trained=trained)


def _from_weights(name: str) -> LoadedModel:
    architecture = architecture_of_weights(name)
    if architecture is None:
        raise UserError(f"weights: {name} is of no architecture of this project.")
    state, class_names = pretrained_state(name, architecture)
    model = build_model(architecture, len(class_names))
    load_weights(model, state, f"weights: {name}")
    weights = get_weight(name)
    accuracy = weights.meta["_metrics"]["Kinetics-400"]
    published = Published(accuracy["acc@1"], accuracy["acc@5"], str(weights.meta["_docs"]))
    geometry = Geometry.of_weights(weights, ARCHITECTURES[architecture].clip_len)
    origin = f"torchvision {name}"
    return LoadedModel(
        model.eval(), architecture, geometry, class_names, origin, published=published
    )
