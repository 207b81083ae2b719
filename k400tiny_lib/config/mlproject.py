"""The text of `MLproject`, generated from the declared parameters.

python -m k400tiny_lib.config.mlproject        # writes MLproject; a test compares the two
"""

from pathlib import Path

import yaml

from k400tiny_lib.config.parameters import PARAMETERS
from k400tiny_lib.config.steps import CHAINS, STEPS, default_text

HEADER = """\
# Generated from k400tiny_lib/config by `python -m k400tiny_lib.config.mlproject`.
# `python -m steps.<entry point> --help` explains each parameter. main and tune take those of all
# the steps that they run with -P, too; declared are only those that no recipe sets.
"""


def mlproject_text() -> str:
    """The whole file: every entry point with its parameters, types, defaults and command."""
    entry_points = {}
    for step, spec in STEPS.items():
        # MLflow appends what is not declared to the command. What is declared, it logs with its
        # default before main or tune can say what the recipe made of it.
        names = [n for n in spec.params if step not in CHAINS or not PARAMETERS[n].in_recipe]
        parameters = {name: {"type": PARAMETERS[name].type} for name in names}
        for name in names:
            if (default := default_text(step, name)) is not None:
                parameters[name]["default"] = default
        # MLflow quotes the values itself; quotes around a placeholder would open an injection.
        options = " ".join(f"--{name} {{{name}}}" for name in names)
        command = f"python -m steps.{step} {options}"
        entry_points[step] = {"parameters": parameters, "command": command}
    project = {"name": "k400tiny", "conda_env": "conda.yaml", "entry_points": entry_points}
    body = yaml.dump(project, sort_keys=False, default_flow_style=None, width=96)
    return HEADER + body


if __name__ == "__main__":
    (Path(__file__).resolve().parents[2] / "MLproject").write_text(mlproject_text())
