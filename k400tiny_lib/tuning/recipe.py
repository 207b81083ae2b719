"""The best parameters of a study as a recipe that `main` takes."""

from collections.abc import Mapping
from typing import Any

import yaml

from k400tiny_lib.config import PARAMETERS, STEPS, Config

# They say where a run is and how it is described, not what it does.
_OF_ONE_RUN = {"description", "checkpoint_dir", "resume", "parent_run"}


def recipe_text(config: Config, best: Mapping[str, Any], heading: str) -> str:
    """All that a training depends on: the recipe, what was fixed, and the best values.

    Parameters of other steps, and those that change only the speed, are in it where they differ
    from their default. What no recipe sets (data_path, say) is left out.

    Args:
        config: the parameters of tune.
        best: the values of the best trial.
        heading: the first line, as a comment.
    """
    fixed = {}
    for name in STEPS["main"].params:
        parameter, value = PARAMETERS[name], getattr(config, name)
        if not parameter.in_recipe or name in _OF_ONE_RUN or name in best:
            continue
        counts = parameter.affects_result and name in STEPS["tune"].params
        if counts or str(value) != str(parameter.default):
            fixed[name] = value
    parts = (yaml.safe_dump(dict(values), sort_keys=False) for values in (best, fixed))
    return "\n".join([f"# {heading}", *parts])
