"""Sets of parameters: the YAML files of `recipes/` by name, and others by path or URI."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from k400tiny_lib.config.declaration import AUTO
from k400tiny_lib.config.parameters import PARAMETERS
from k400tiny_lib.config.reading import read_config
from k400tiny_lib.errors import UserError, is_utf8, one_line, printable
from k400tiny_lib.files import problem_of
from k400tiny_lib.remote_files import fetch

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
_SUFFIXES = (".yaml", ".yml")


def recipe_names() -> list[str]:
    """The recipes that exist, in alphabetical order."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe_file(uri: str) -> bytes:
    """Read a recipe from a path or a URI of fsspec.

    Raises:
        UserError: if nothing is there.
    """
    path = fetch(uri, "recipe")
    if problem := problem_of(path):
        raise UserError(f"recipe: {uri} {problem}. Needed: a YAML file.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"recipe: {uri} cannot be read ({error.strerror}). Needed: a YAML file."
        ) from None


def load_recipe(recipe: str, read: Callable[[str], bytes] = read_recipe_file) -> dict[str, Any]:
    """Read the values of a recipe by parameter name.

    Args:
        recipe: a name in recipes/, or the path or URI of a YAML file: what has a slash or ends with
            .yaml or .yml.
        read: returns the content of a path or URI.

    Raises:
        UserError: if there is no such recipe, or if it is no YAML, sets something that is not a
            parameter, or a value that is not allowed.
    """
    if "/" in recipe or recipe.lower().endswith(_SUFFIXES):
        return _values(recipe, read(recipe))
    if recipe not in recipe_names():
        near = difflib.get_close_matches(recipe, recipe_names(), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(recipe_names())}."
        raise UserError(
            f"recipe: there is no {printable(recipe)!r}. {hint} A file of yours needs .yaml at its "
            "end, or a slash."
        )
    return _values(recipe, (RECIPES / f"{recipe}.yaml").read_bytes())


def _values(recipe: str, content: bytes) -> dict[str, Any]:
    """The typed values of a recipe; `auto` stays, for it may depend on other parameters."""
    recipe = printable(recipe)
    try:
        # Values are texts, as on the command line: YAML would read `off` as False.
        texts = yaml.load(content, yaml.BaseLoader) or {}
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or one_line(error)
        raise UserError(
            f"recipe: {recipe} is no YAML ({printable(str(reason))}{where}). Needed: lines such as "
            "`lr: 0.01`."
        ) from None
    if not isinstance(texts, dict):
        raise UserError(f"recipe: {recipe} has no names. Needed: lines such as `lr: 0.01`.")
    for name, text in texts.items():
        if name not in PARAMETERS:
            near = difflib.get_close_matches(str(name), PARAMETERS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            shown = printable(str(name))
            raise UserError(f"recipe: {recipe} sets {shown!r}, which is no parameter.{hint}")
        if not PARAMETERS[name].in_recipe or PARAMETERS[name].handed_over:
            raise UserError(f"recipe: {recipe} sets {name}. Needed: that it is given with -P.")
        if not isinstance(text, str) or not text.strip() or not is_utf8(text):
            raise UserError(
                f"recipe: {recipe} sets {name}: {text!r}. Needed: {PARAMETERS[name].allowed}."
            )
    try:
        config = read_config(texts)
    except UserError as error:
        raise UserError(f"recipe: {recipe} sets {error}") from None
    return {n: text if text == AUTO else getattr(config, n) for n, text in texts.items()}
