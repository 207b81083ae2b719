"""The names of the two models that an export registers: as given, or after the architecture."""

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, WithJsonSchema

from k400tiny_lib.config.declaration import AUTO
from k400tiny_lib.errors import UserError

if TYPE_CHECKING:
    from k400tiny_lib.config.parameters import Config

DEFAULT_MODEL = "r2plus1d_18"
_VIDEO_MODEL = "k400tiny-video-classifier"


def _registrable(name: str) -> str:
    """MLflow's rule for names of registered models, which it applies after hours of training."""
    if "/" in name or ":" in name or name.startswith("..") or name in ("", "."):
        raise ValueError("not a model's name")
    return name


ModelName = Annotated[
    str,
    AfterValidator(_registrable),
    WithJsonSchema({"type": "string", "words": "a name without / and :"}),
]


def default_model_name(architecture: str) -> str:
    """The name that the ONNX models of an architecture have unless one is given."""
    return f"k400tiny-{architecture}"


def name_models(config: "Config", architecture: str) -> "Config":
    """Replace `auto` in the two names; every architecture has a champion of its own.

    Raises:
        UserError: if both names are the same.
    """
    names = {
        "registered_model_name": default_model_name(architecture),
        "video_model_name": _VIDEO_MODEL
        if architecture == DEFAULT_MODEL
        else f"{_VIDEO_MODEL}-{architecture}",
    }
    named = config.replace(**{n: v for n, v in names.items() if getattr(config, n) == AUTO})
    check_model_names(named)
    return named


def check_model_names(config: "Config") -> None:
    """Refuse one name for both models.

    Raises:
        UserError: if they have the same.
    """
    name = config.registered_model_name
    if name == config.video_model_name != AUTO:
        raise UserError(
            f"video_model_name: {name} is the registered_model_name too. Needed: another name, "
            "or the champion of one would be that of the other."
        )
