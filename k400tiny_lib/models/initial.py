"""The model before the first update: from scratch, or from weights of the same or other classes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from k400tiny_lib.config import IMAGENET, NONE, Config
from k400tiny_lib.models.checkpoint import read_checkpoint
from k400tiny_lib.models.tsn import imagenet_state
from k400tiny_lib.models.weights import (
    architecture_of_model,
    build_model,
    class_count,
    load_weights,
    pretrained_state,
)


def initial_model(
    config: Config, num_classes: int, categories: Mapping[str, int] | None = None
) -> nn.Module:
    """The model before the first update: from scratch, published weights or a checkpoint.

    Outputs of the head are loaded for the labels that the weights know, and new for the others.

    Args:
        config: the parameters of train.
        num_classes: outputs of the head.
        categories: class ids of the data by label; None if the weights are of the same classes.

    Raises:
        UserError: if the weights cannot be had or do not fit.
    """
    model = build_model(config.model, num_classes, config.dropout)
    origin = f"weights: {config.weights}"
    if config.weights == IMAGENET:
        state, known = imagenet_state(model), {}
    elif config.weights != NONE:
        state, names = pretrained_state(config.weights, config.model)
        known = {name: index for index, name in enumerate(names)}
    elif config.load_model != NONE:
        origin = f"load_model: {config.load_model}"
        checkpoint = read_checkpoint(Path(config.load_model), "load_model")
        state, known = checkpoint["model"], checkpoint["categories"]
    else:
        return model
    if categories is None:
        load_weights(model, state, origin)
        return model
    taken = load_matching(model, state, known, categories, origin)
    if int(os.environ.get("RANK", "0")) == 0:
        print(_describe_head(origin.partition(":")[0], taken, categories), flush=True)
    return model


def _describe_head(parameter: str, taken: Sequence[str], categories: Mapping[str, int]) -> str:
    if not taken:
        return f"{parameter}: the head is new, since the weights know none of the labels"
    if len(taken) == len(categories):
        return f"{parameter}: the head is taken over, with all {len(taken)} labels"
    new = sorted(categories.keys() - set(taken))
    named = ", ".join(new[:5]) + (", ..." if len(new) > 5 else "")
    return (
        f"{parameter}: {len(taken)} of {len(categories)} labels of the head are taken over; new: "
        f"{named}"
    )


def load_matching(
    model: nn.Module,
    state: Mapping[str, Tensor],
    known: Mapping[str, int],
    categories: Mapping[str, int],
    origin: str,
) -> list[str]:
    """Load weights as the start of another training: the backbone, and of the head what fits.

    Args:
        model: the model to fill, from `build_model`.
        state: a state_dict of the same architecture.
        known: ids by label of the classes of its head; none if it has no head.
        categories: ids by label of the classes of the model.
        origin: where the weights come from, for the message.

    Returns:
        The labels whose outputs were loaded; those of the others stay as they are.

    Raises:
        UserError: as for `load_weights`.
    """
    head = f"{architecture_of_model(model).head}."
    rows = class_count(cast(str, model.architecture), state) if known else 0
    labels = sorted(label for label in categories if known.get(label, rows) < rows)
    own = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(head)}
    loaded = {k: v for k, v in state.items() if k.startswith(head)}
    for key in own.keys() & loaded.keys():
        if own[key].shape[1:] == loaded[key].shape[1:]:
            targets = [categories[label] for label in labels]
            own[key][targets] = loaded[key][[known[label] for label in labels]].to(own[key].dtype)
    load_weights(model, {k: v for k, v in state.items() if not k.startswith(head)} | own, origin)
    return labels
