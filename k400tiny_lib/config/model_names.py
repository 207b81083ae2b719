"""The names of the two models that an export registers: as given, or after the architecture."""

import unicodedata
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, WithJsonSchema

from k400tiny_lib.config.declaration import AUTO
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.architectures import ARCHITECTURES  # imports no torch

if TYPE_CHECKING:
    from k400tiny_lib.config.parameters import Config

DEFAULT_MODEL = "r2plus1d_18"
_VIDEO_MODEL = "k400tiny-video-classifier"
_LONGEST = 250  # bytes; databases keep 256 characters, file systems 255 bytes


def _registrable(name: str) -> str:
    """MLflow's rule for names of registered models, which it applies after hours of training.

    It also takes names that `models:/<name>/<version>` cannot say (with ?, @ or a line break), and
    longer ones than a database can keep.
    """
    if name.startswith("..") or name in ("", ".") or len(name.encode()) > _LONGEST:
        raise ValueError("not a model's name")
    if any(letter in "/:?@" or unicodedata.category(letter) == "Cc" for letter in name):
        raise ValueError("not a model's name")
    return name


ModelName = Annotated[
    str,
    AfterValidator(_registrable),
    WithJsonSchema(
        {
            "type": "string",
            "words": f"a name without / and :, ?, @ or line breaks, of at most {_LONGEST} bytes",
        }
    ),
]


def default_model_name(architecture: str) -> str:
    """The name that the ONNX models of an architecture have unless one is given."""
    return f"k400tiny-{architecture}"


def default_video_model_name(architecture: str) -> str:
    """The name that the video classifiers of an architecture have unless one is given."""
    return _VIDEO_MODEL if architecture == DEFAULT_MODEL else f"{_VIDEO_MODEL}-{architecture}"


def name_models(config: "Config", architecture: str) -> "Config":
    """Replace `auto` in the two names; every architecture has a champion of its own.

    Raises:
        UserError: if both names are the same.
    """
    names = {
        "registered_model_name": default_model_name(architecture),
        "video_model_name": default_video_model_name(architecture),
    }
    named = config.replace(**{n: v for n, v in names.items() if getattr(config, n) == AUTO})
    check_model_names(named)
    return named


def check_model_names(config: "Config") -> None:
    """Refuse one name for both models, before the architecture of a checkpoint is known, too.

    Raises:
        UserError: if they have, or could have, the same.
    """
    onnx, video = config.registered_model_name, config.video_model_name
    videos = map(default_video_model_name, ARCHITECTURES) if video == AUTO else [video]
    models = map(default_model_name, ARCHITECTURES) if onnx == AUTO else [onnx]
    if shared := set(videos) & set(models):
        raise UserError(
            f"video_model_name: {shared.pop()} is the registered_model_name too. Needed: another "
            "name, or the champion of one would be that of the other."
        )


def check_new_names(config: "Config") -> None:
    """Refuse quotes in the name of a model that may be new.

    A model that has some already can be used: no filter of MLflow's searches can name one with
    both kinds, and people write these filters, too.

    Raises:
        UserError: if one of the names has quotes.
    """
    for parameter in ("registered_model_name", "video_model_name"):
        name = getattr(config, parameter)
        if set(name) & set("'\"`"):
            raise UserError(
                f"{parameter}: {name} has quotes. Needed: a name without them, which filters of "
                "searches (name = '...') can spell."
            )
