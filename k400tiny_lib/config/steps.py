"""Which step takes which parameters, and how their values are resolved."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from k400tiny_lib.config.declaration import AUTO, IMAGENET, NONE
from k400tiny_lib.config.directories import with_local_directories
from k400tiny_lib.config.model_names import check_model_names, check_new_names, name_models
from k400tiny_lib.config.parameters import MIXING_AUGMENTATIONS, PARAMETERS, SAMPLE, Config
from k400tiny_lib.config.reading import read_config
from k400tiny_lib.config.recipes import load_recipe, read_recipe_file
from k400tiny_lib.config.search import check_search
from k400tiny_lib.config.value_types import ALL_CLIPS, HEAD
from k400tiny_lib.errors import UserError, is_utf8, printable
from k400tiny_lib.models.architectures import ARCHITECTURES

FROM_RECIPE = "recipe"  # the default of most parameters of main and tune: the recipe's value

_SHORTEST_WINDOW = 0.05  # seconds
# At one moment; the frames of all of them are in memory.
_MOST_OVERLAPPING = 50

CHAIN = ("prepare_data", "train", "evaluate", "export_onnx")  # the steps of main, in order
# The steps that take a recipe, with the steps that they run.
CHAINS = {"main": CHAIN, "tune": CHAIN[:2]}


@dataclass(frozen=True)
class Step:
    """One entry point: its help, and the parameters that it takes in the order of `--help`."""

    help: str
    params: tuple[str, ...]


def _step(step: str, help: str) -> Step:
    params = [
        name
        for name, parameter in PARAMETERS.items()
        if step in parameter.steps
        or (not parameter.handed_over and set(CHAINS.get(step, ())) & set(parameter.steps))
    ]
    return Step(help, tuple(params))


STEPS: dict[str, Step] = {
    step: _step(step, help)
    for step, help in {
        "main": "The whole pipeline as nested runs: prepare_data, train, evaluate, export_onnx.",
        "tune": "Search for better parameters of training, in nested runs of train.",
        "prepare_data": "Bring clips to disk, check them, map their labels, split them by source.",
        "train": "Train a model with torchrun.",
        "evaluate": "Score a checkpoint on a held-out split.",
        "export_onnx": "Export to ONNX, prove it equal, register it.",
        "predict": "Label clips with a registered model.",
        "promote": "Make a version champion, of both models; to go back to an earlier one, say.",
    }.items()
}


def default_text(step: str, name: str) -> str | None:
    """The default of a step's parameter as MLproject spells it; None where one is required."""
    parameter = PARAMETERS[name]
    if step in parameter.required_in:
        return None
    if step in parameter.auto_in:
        return AUTO
    return FROM_RECIPE if step in CHAINS and parameter.in_recipe else str(parameter.default)


def unknown_parameter(step: str, name: str) -> UserError:
    """The error for a parameter that a step lacks: the steps that have it, or the nearest name."""
    if others := [other for other, spec in STEPS.items() if name in spec.params]:
        verb = "has it" if len(others) == 1 else "have it"
        return UserError(f"{name}: {step} has no such parameter; {', '.join(others)} {verb}.")
    near = difflib.get_close_matches(name, STEPS[step].params, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else f"`python -m steps.{step} --help` lists them."
    return UserError(f"{name}: {step} has no such parameter. {hint}")


def resolve(
    step: str, texts: Mapping[str, str], read_recipe: Callable[[str], bytes] = read_recipe_file
) -> Config:
    """Resolve a step's parameters: an explicit value beats the recipe, the recipe the default.

    Args:
        step: name of the entry point.
        texts: parameters as text; a missing one and, in main and tune, the word `recipe` leave the
            choice to the recipe or the default.
        read_recipe: returns the content of the path or URI of a recipe.

    Raises:
        UserError: for an unknown, missing or ill-typed parameter, and for values that do not fit
            one another.
    """
    for name in texts:
        if name not in STEPS[step].params:
            raise unknown_parameter(step, name)
        if not is_utf8(texts[name]):  # MLflow and annotations hold text only
            raise UserError(f"{name}: {printable(texts[name])} is not UTF-8. Needed: UTF-8.")
        # `-P data_path=$UNSET` would otherwise be the project's own directory.
        if not texts[name].strip():
            raise UserError(f"{name}: the value is empty. Needed: {PARAMETERS[name].allowed}.")
    values: dict[str, Any] = {
        name: text.strip()
        for name, text in texts.items()
        if not (step in CHAINS and text == FROM_RECIPE and name != "recipe")
    }
    for name in STEPS[step].params:
        if step in PARAMETERS[name].required_in and name not in values:
            raise UserError(f"{name}: {step} needs it (-P {name}=...).")
        if step in PARAMETERS[name].auto_in:
            values.setdefault(name, AUTO)
    if values.get("weights", NONE) != NONE and values.get("checkpoint") == AUTO:
        values["checkpoint"] = NONE
    if step in CHAINS:
        recipe = values.get("recipe", AUTO)
        if recipe == AUTO:
            recipe = "sample" if values.get("data_path", SAMPLE) == SAMPLE else "k400tiny"
        fixed = values
        values = load_recipe(recipe, read_recipe) | fixed | {"recipe": recipe}
    config = with_local_directories(read_config(values))
    if step == "main":
        config = name_models(config, config.model)
    check_together(config, step)
    if step == "tune":
        for extreme in check_search(config, fixed):
            check_together(extreme, step)
    return config


def check_together(config: Config, step: str) -> None:
    """Refuse values that are right one by one and wrong together.

    Raises:
        UserError: naming the parameter to change.
    """
    if config.crop_size > config.resize_size:
        raise UserError(
            f"crop_size: {config.crop_size} is larger than resize_size {config.resize_size}. "
            "Needed: a crop within the resized frame."
        )
    smallest = ARCHITECTURES[config.model]
    for name, least in (("clip_len", smallest.min_clip_len), ("crop_size", smallest.min_crop_size)):
        if getattr(config, name) < least:
            raise UserError(
                f"{name}: {getattr(config, name)} is too small for model={config.model}. "
                f"Needed: at least {least}."
            )
    if config.val_fraction + config.test_fraction >= 1:
        raise UserError(
            f"val_fraction: {config.val_fraction} and test_fraction {config.test_fraction} leave "
            "nothing to train on. Needed: a sum below 1."
        )
    if config.augmentation in MIXING_AUGMENTATIONS and config.batch_size == 1:
        raise UserError(
            f"batch_size: 1, but augmentation={config.augmentation} mixes clips. "
            "Needed: at least 2."
        )
    if config.num_crops == 2:
        raise UserError("num_crops: 2 is not allowed. Needed: 1 (center) or 3 (both ends too).")
    if config.node_rank >= config.nnodes:
        raise UserError(
            f"node_rank: {config.node_rank} does not exist among nnodes={config.nnodes}. "
            f"Needed: 0 to {config.nnodes - 1}."
        )
    if config.nnodes > 1 and config.rdzv_endpoint.rpartition(":")[2] in ("", "0"):
        raise UserError(
            f"rdzv_endpoint: {config.rdzv_endpoint} is no place to meet for nnodes={config.nnodes}."
            " Needed: <address of node 0>:<free port>, the same on all nodes."
        )
    if config.weights != NONE and config.load_model != NONE:
        raise UserError("load_model: weights is given too. Needed: one of them, the other `none`.")
    _check_imagenet(config, step)
    if step in ("evaluate", "export_onnx") and (
        (config.checkpoint == NONE) == (config.weights == NONE)
    ):
        raise UserError(f"checkpoint: {step} needs either checkpoint or weights, not both.")
    if config.freeze_epochs and config.weights == NONE and config.load_model == NONE:
        raise UserError(
            f"freeze_epochs: {config.freeze_epochs}, but the backbone starts from scratch. "
            "Needed: weights or load_model, or 0."
        )
    if config.freeze_epochs and config.train_layers == HEAD:
        raise UserError(
            f"freeze_epochs: {config.freeze_epochs}, but with train_layers=head only the head ever "
            "learns. Needed: 0, or train_layers=all or last_stage."
        )
    if config.split == ALL_CLIPS:
        _check_all_clips(config, step)
    if step == "export_onnx" and config.annotations == NONE:
        for name in ("quantize", "evaluation"):
            if getattr(config, name) != NONE:
                raise UserError(
                    f"{name}: {getattr(config, name)} without annotations. Needed: the clips to "
                    "calibrate and to judge on (-P annotations=..., -P data_path=...)."
                )
    if step != "predict":
        check_model_names(config)
    if step in ("main", "export_onnx"):
        check_new_names(config)
    _check_windows(config)
    if config.data_path == SAMPLE and config.gt_csv != NONE:
        raise UserError("gt_csv: the rendered sample has its own. Give data_path too.")


def _check_all_clips(config: Config, step: str) -> None:
    if step == "main" and (config.train_layers != HEAD or config.load_model != NONE):
        learned = "load_model" if config.train_layers == HEAD else "train_layers"
        raise UserError(
            f"split: all, but with {learned}={getattr(config, learned)} the backbone may have "
            "learned from the clips. Needed: train_layers=head without load_model, or split=test."
        )
    if config.unknown_path != NONE:
        raise UserError(
            "unknown_path: split=all answers with other heads than the model has. "
            "Needed: split=test, or no unknown_path."
        )
    if config.compare_with.startswith("models:/"):
        raise UserError(
            f"compare_with: {config.compare_with} may have learned from the clips that split=all "
            "evaluates. Needed: another evaluation with split=all."
        )


def _check_imagenet(config: Config, step: str) -> None:
    if config.weights != IMAGENET:
        return
    if step in ("evaluate", "export_onnx"):
        raise UserError(
            f"weights: imagenet is a backbone without a head, which {step} cannot use. Needed: "
            "the checkpoint of a training with it (train -P weights=imagenet)."
        )
    models = [name for name, architecture in ARCHITECTURES.items() if architecture.imagenet]
    if config.model not in models:
        raise UserError(
            f"weights: imagenet is not of model={config.model}. Needed: model={models[0]}, or the "
            "weights of this model."
        )


def _check_windows(config: Config) -> None:
    window, stride = config.window_seconds, config.stride_seconds
    for name in ("stride_seconds", "annotate"):
        if getattr(config, name) and not window:
            raise UserError(
                f"{name}: {getattr(config, name)} without windows. Needed: their length too "
                "(-P window_seconds=2)."
            )
    if 0 < window < _SHORTEST_WINDOW:
        raise UserError(
            f"window_seconds: {window:g} is about one frame. Needed: at least {_SHORTEST_WINDOW}, "
            "or 0 for no windows."
        )
    if stride > window:
        raise UserError(
            f"stride_seconds: {stride:g} leaves parts between windows of {window:g} s without a "
            "label. Needed: at most window_seconds."
        )
    if 0 < stride * _MOST_OVERLAPPING < window:
        raise UserError(
            f"stride_seconds: {stride:g} makes more than {_MOST_OVERLAPPING} windows of {window:g} "
            f"s overlap. Needed: at least {window / _MOST_OVERLAPPING:g}."
        )


def parameters_of(step: str, config: Config) -> dict[str, str]:
    """A step's parameters as text, as `mlflow run -P` takes them."""
    return {name: str(getattr(config, name)) for name in STEPS[step].params}
