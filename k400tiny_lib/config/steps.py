"""Which step takes which parameters, and how their values are settled."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from k400tiny_lib.config.geometry import CLIP_PARAMETERS, CLIP_SIZES
from k400tiny_lib.config.parameters import AUTO, FIELDS, NONE, Config, parse
from k400tiny_lib.config.recipes import load_recipe
from k400tiny_lib.errors import UserError

# Augmentations with a `per_batch`. Their table would import torch; a test compares the two.
MIXING_AUGMENTATIONS = ("strong",)
FROM_RECIPE = "recipe"  # the default of most of main's parameters: whatever the recipe says


@dataclass(frozen=True)
class Step:
    """One entry point.

    Attributes:
        help: what the step does, in one sentence.
        params: the parameters it takes, in the order of `--help`.
        required: those of them without a default.
        also: a second name of a parameter on the command line.
    """

    help: str
    params: tuple[str, ...]
    required: tuple[str, ...] = ()
    also: Mapping[str, str] = dataclasses.field(default_factory=dict)


_PREPARE_DATA = (
    "data_path",
    "gt_csv",
    "output_dir",
    "val_fraction",
    "test_fraction",
    "group_by",
    "seed",
    "use_official_splits",
    "on_bad_clip",
    "decode_workers",
    "dask_scheduler",
)
_TRAIN = (
    "data_path",
    "annotations",
    "model",
    "weights",
    "load_model",
    "num_classes",
    *CLIP_PARAMETERS,
    "augmentation",
    "no_flip_classes",
    "frame_cache",
    "cache_dir",
    "batch_size",
    "num_workers",
    "num_epochs",
    "patience",
    "freeze_epochs",
    "optimizer",
    "lr",
    "lr_batch_size",
    "momentum",
    "weight_decay",
    "scheduler",
    "warmup_epochs",
    "label_smoothing",
    "dropout",
    "ema_decay",
    "grad_accum_steps",
    "clip_grad_norm",
    "amp",
    "channels_last",
    "compile",
    "sync_bn",
    "seed",
    "checkpoint_dir",
    "save_every",
    "save_every_minutes",
    "resume",
    "print_interval",
    "nproc_per_node",
    "nnodes",
    "node_rank",
    "rdzv_endpoint",
    "rdzv_timeout",
    "max_restarts",
    "parent_run",
)
_EVALUATE = (
    "data_path",
    "annotations",
    "checkpoint",
    "weights",
    "split",
    "num_clips",
    "num_crops",
    "batch_size",
    "num_workers",
    "robustness",
    "compare_with",
    "nproc_per_node",
)
_EXPORT_ONNX = (
    "checkpoint",
    "weights",
    "data_path",
    "annotations",
    "evaluation",
    "registered_model_name",
    "opset",
    "tolerance",
    "views_in_graph",
    "quantize",
    "max_accuracy_drop",
    "promote",
    "video_model_name",
)
_PREDICT = (
    "input",
    "model_uri",
    "registered_model_name",
    "top_k",
    "batch_size",
    "num_threads",
    "device",
)

CHAIN: dict[str, Step] = {
    "prepare_data": Step(
        "Bring clips to disk, check them, map their labels, split them by source.",
        _PREPARE_DATA,
        # In main, and in train, `scheduler` is that of the learning rate.
        also={"dask_scheduler": "scheduler"},
    ),
    "train": Step("Train a model with torchrun.", _TRAIN, ("data_path", "annotations")),
    "evaluate": Step(
        "Score a checkpoint on a held-out split.", _EVALUATE, ("data_path", "annotations")
    ),
    "export_onnx": Step("Export to ONNX, prove it equal, register it.", _EXPORT_ONNX),
}

HANDED_OVER = ("annotations", "checkpoint", "evaluation")  # main's steps give these to one another
_CHAINED = tuple(dict.fromkeys(name for step in CHAIN.values() for name in step.params))

STEPS: dict[str, Step] = {
    "main": Step(
        "The whole pipeline as nested runs: prepare_data, train, evaluate, export_onnx.",
        ("recipe", *(n for n in _CHAINED if n not in HANDED_OVER), "use_cache", "env_manager"),
    ),
    **CHAIN,
    "predict": Step("Label clips with a registered model.", _PREDICT, ("input",)),
}

_NEVER_IN_RECIPE = ("recipe", "data_path", "gt_csv", "use_cache", "env_manager")


def default_text(step: str, name: str) -> str | None:
    """The default of a step's parameter as MLproject spells it; None where one is required."""
    if name in STEPS[step].required:
        return None
    if step == "main" and name not in _NEVER_IN_RECIPE:
        return FROM_RECIPE
    return str(FIELDS[name].default)


def unknown_parameter(step: str, name: str) -> UserError:
    """The error for a parameter that a step does not have, with the nearest name."""
    near = difflib.get_close_matches(name, STEPS[step].params, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else f"`python -m steps.{step} --help` lists them."
    return UserError(f"{name}: {step} has no such parameter. {hint}")


def resolve(step: str, given: Mapping[str, str]) -> Config:
    """Settle a step's parameters: an explicit value beats the recipe, the recipe the default.

    Args:
        step: name of the entry point.
        given: parameters as text; a missing one and, in main, the word `recipe` mean "not given".

    Raises:
        UserError: for an unknown, missing or ill-typed parameter, and for values that do not fit
            one another.
    """
    for name in given:
        if name not in STEPS[step].params:
            raise unknown_parameter(step, name)
    explicit = {
        name: parse(name, text)
        for name, text in given.items()
        if not (step == "main" and text == FROM_RECIPE and name != "recipe")
    }
    for name in STEPS[step].required:
        if not explicit.get(name):
            raise UserError(f"{name}: {step} needs it (-P {name}=...).")
    config = Config(**explicit)
    if step == "main":
        recipe = config.recipe
        if recipe == "auto":
            recipe = "sample" if config.data_path == "sample" else "k400tiny"
        config = Config(**(load_recipe(recipe) | explicit | {"recipe": recipe}))
    config = _settle_clips(config)
    _check_together(config, step)
    return config


def _settle_clips(config: Config) -> Config:
    """Put the architecture's own numbers in place of `auto`."""
    own = CLIP_SIZES[config.model]
    unsettled = [name for name in CLIP_PARAMETERS if getattr(config, name) == AUTO]
    return config.replace(**{name: getattr(own, name) for name in unsettled})


def _check_together(config: Config, step: str) -> None:
    """Refuse values that are right one by one and wrong together."""
    if config.crop_size > config.resize_size:
        raise UserError(
            f"crop_size: {config.crop_size} is larger than resize_size {config.resize_size}. "
            "Needed: a crop within the resized frame."
        )
    smallest = CLIP_SIZES[config.model]
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
        raise UserError("num_crops: 2 is not allowed. Needed: 1 (centre) or 3 (both ends too).")
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
    if step in ("evaluate", "export_onnx") and (
        (config.checkpoint == NONE) == (config.weights == NONE)
    ):
        raise UserError(f"checkpoint: {step} needs either checkpoint or weights, not both.")
    if config.freeze_epochs and config.weights == NONE and config.load_model == NONE:
        raise UserError(
            f"freeze_epochs: {config.freeze_epochs}, but the backbone starts from scratch. "
            "Needed: weights or load_model, or 0."
        )
    if step == "export_onnx" and config.annotations == NONE:
        for name in ("quantize", "evaluation"):
            if getattr(config, name) != NONE:
                raise UserError(
                    f"{name}: {getattr(config, name)} without annotations. Needed: the clips to "
                    "calibrate and to judge on (-P annotations=..., -P data_path=...)."
                )
    if config.data_path == "sample" and config.gt_csv != NONE:
        raise UserError("gt_csv: the rendered sample has its own. Give data_path too.")


def parameters_of(step: str, config: Config) -> dict[str, str]:
    """A step's parameters as text, as `mlflow run -P` takes them."""
    values = config.to_dict()
    return {name: str(values[name]) for name in STEPS[step].params}
