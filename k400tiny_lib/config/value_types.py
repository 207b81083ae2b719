"""Kinds of values that parameters have: type, range, and the choices that `--help` names."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema

from k400tiny_lib.config.declaration import AUTO
from k400tiny_lib.config.model_names import DEFAULT_MODEL
from k400tiny_lib.models.architectures import ARCHITECTURES  # imports no torch


def _known(architecture: str) -> str:
    if architecture not in ARCHITECTURES:
        raise ValueError("no such architecture")
    return architecture


def _resolve_clip_size(value: Any, info: ValidationInfo) -> Any:
    # `model` is declared, and so validated, before the clip sizes; an unknown one is not in `data`.
    architecture = ARCHITECTURES[info.data.get("model", DEFAULT_MODEL)]
    return getattr(architecture, str(info.field_name)) if value == AUTO else value


ALL_LAYERS: Final = "all"
LAST_STAGE: Final = "last_stage"
HEAD: Final = "head"
ALL_CLIPS: Final = "all"  # in place of a split
TrainLayers = Literal["all", "last_stage", "head"]

Auto = Literal["auto"]
Augmentation = Literal["none", "flip", "standard", "strong"]
Scheduler = Literal["constant", "step", "exponential", "cosine"]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what NumPy takes
Fraction = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Pixels = Annotated[int, Field(ge=8)]
Model = Annotated[
    str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(ARCHITECTURES)})
]
Version = Annotated[
    str, WithJsonSchema({"type": "string", "words": "a number, an alias or previous"})
]
# `auto` is replaced by the architecture's number when a Config is made, so the value is an int.
ClipLen = Annotated[Count, BeforeValidator(_resolve_clip_size, json_schema_input_type=Count | Auto)]
ClipPixels = Annotated[
    Pixels, BeforeValidator(_resolve_clip_size, json_schema_input_type=Pixels | Auto)
]
