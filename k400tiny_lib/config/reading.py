"""Values by parameter name, checked."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from k400tiny_lib.config.parameters import PARAMETERS, Config
from k400tiny_lib.errors import UserError


def read_config(values: Mapping[str, Any]) -> Config:
    """Make a config of parameters by name, as text or typed.

    Raises:
        UserError: for an unknown or ill-typed parameter and for a value outside its range.
    """
    try:
        return Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name, text = str(first["loc"][0]), str(first["input"])
        if name not in PARAMETERS:
            raise UserError(f"{name}: no such parameter.") from None
        parameter = PARAMETERS[name]
        hint = f" (default {parameter.default})" if parameter.default != "" else ""
        raise UserError(
            f"{name}: {text!r} is not allowed. Needed: {parameter.allowed}{hint}."
        ) from None
