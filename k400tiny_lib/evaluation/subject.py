"""What is evaluated: a trained checkpoint, or torchvision weights as they are."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torchvision.models import get_weight

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.config.geometry import CLIP_SIZES
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.views import Geometry
from k400tiny_lib.models.checkpoint import check_categories, model_of, read_checkpoint
from k400tiny_lib.models.weights import (
    architecture_of,
    build_model,
    class_count,
    load_backbone,
    pretrained_state,
)


@dataclass(frozen=True)
class Published:
    """What the authors of weights report: top-1 and top-5 in percent, and how it was measured."""

    acc1: float
    acc5: float
    protocol: str


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode with what its numbers depend on.

    Attributes:
        model: from `build_model`.
        architecture: a key of ARCHITECTURES.
        geometry: frames and pixels that it was trained with.
        class_names: labels by class id.
        source: which weights they are, in words.
        run_id: the run that trained it, or "".
        published: for torchvision weights.
    """

    model: nn.Module
    architecture: str
    geometry: Geometry
    class_names: list[str]
    source: str
    run_id: str = ""
    published: Published | None = None


def load_subject(config: Config, categories: dict[str, int]) -> Subject:
    """Load what evaluate was told to evaluate.

    Args:
        config: `checkpoint` (a local path) or `weights`.
        categories: label to class id of the data, which the model must share.

    Raises:
        UserError: if it cannot be had, or knows the classes of the data by other ids or not at
            all; the message names the first such class.
    """
    if config.weights != NONE:
        return _from_weights(config.weights, categories)
    checkpoint = read_checkpoint(Path(config.checkpoint), "checkpoint")
    check_categories(checkpoint, categories)
    model, trained = model_of(checkpoint, "checkpoint")
    by_id = {index: label for label, index in checkpoint["categories"].items()}
    num_classes = class_count(trained.model, checkpoint["model"])
    names = [by_id.get(index, str(index)) for index in range(num_classes)]
    return Subject(
        model,
        trained.model,
        Geometry.trained_with(trained),
        names,
        f"checkpoint of epoch {checkpoint['epoch']}",
        str(checkpoint.get("run_id", "")),
    )


def _from_weights(name: str, categories: dict[str, int]) -> Subject:
    architecture = architecture_of(name)
    if architecture is None:
        raise UserError(f"weights: {name} is of no architecture of this project.")
    state, class_names = pretrained_state(name, architecture)
    known = dict(enumerate(class_names))
    strange = sorted(label for label, index in categories.items() if known.get(index) != label)
    if strange:
        raise UserError(
            f"weights: {name} does not know {len(strange)} of the data's {len(categories)} "
            f"classes, first {strange[0]!r}. Needed: data whose labels are all Kinetics-400 names."
        )
    model = build_model(architecture, len(class_names))
    load_backbone(model, state, f"weights: {name}")
    weights = get_weight(name)
    accuracy = weights.meta["_metrics"]["Kinetics-400"]
    published = Published(accuracy["acc@1"], accuracy["acc@5"], str(weights.meta["_docs"]))
    geometry = Geometry.of_weights(weights, CLIP_SIZES[architecture].clip_len)
    return Subject(
        model.eval(),
        architecture,
        geometry,
        class_names,
        f"torchvision {name}",
        published=published,
    )
