"""Named sets of parameters: the YAML files of `recipes/`."""

import difflib
from pathlib import Path
from typing import Any

import yaml

from k400tiny_lib.config.parameters import PARAMETERS
from k400tiny_lib.errors import UserError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def recipe_names() -> list[str]:
    """The recipes that exist, in alphabetical order."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str) -> dict[str, Any]:
    """Read the values of a recipe by parameter name.

    Raises:
        UserError: if there is no such recipe or it sets something that is not a parameter.
    """
    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(recipe_names())}."
        raise UserError(f"recipe: there is no {name!r}. {hint}")
    values: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) or {}
    for key in values:
        if key not in PARAMETERS:
            raise UserError(f"recipe: {name} sets {key!r}, which is no parameter.")
        if not PARAMETERS[key].in_recipe:
            raise UserError(f"recipe: {name} sets {key}. Needed: that it is given with -P.")
    return values
