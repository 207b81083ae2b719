"""The page of all parameters, `docs/parameters.md`, made of their declarations.

python docs/parameters.py        # writes it; a test compares
"""

import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from k400tiny_lib.config import PARAMETERS, STEPS  # noqa: E402
from k400tiny_lib.config.recipes import recipe_names  # noqa: E402
from k400tiny_lib.config.steps import default_text  # noqa: E402

PAGE = ROOT / "docs" / "parameters.md"
HEADER = f"""\
# Parameters

Made by `python docs/parameters.py` from `k400tiny_lib/config/parameters.py`, where each is declared
once. A parameter means the same in every step. `main` and `tune` also take those of the steps that
they run; a value given with `-P` beats the recipe
({", ".join(f"[{name}](../recipes/{name}.yaml)" for name in recipe_names())}), the recipe beats the
default. `python -m steps.<step> --help` prints those of one step.
"""


def row(name: str) -> str:
    """The row of a parameter."""
    parameter = PARAMETERS[name]
    defaults = {step: default_text(step, name) or "required" for step in parameter.steps}
    texts = dict.fromkeys(defaults.values())
    default = ", ".join(
        (text if text == "required" else f"`{text}`")
        + (f" ({', '.join(s for s in defaults if defaults[s] == text)})" * (len(texts) > 1))
        for text in texts
    )
    allowed = parameter.allowed
    if parameter.search:
        allowed += f"; `tune` tries {parameter.search.text}"
    also = f" Also `{parameter.also}`." if parameter.also else ""
    cells = (f"`{name}`", parameter.help + also, allowed, default, ", ".join(parameter.steps))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    """The whole page."""
    parts = [HEADER]
    for theme, names in groupby(PARAMETERS, lambda name: PARAMETERS[name].theme):
        head = [
            "| parameter | meaning | values | default | steps |",
            "| --- | --- | --- | --- | --- |",
        ]
        parts.append("\n".join([f"## {theme}", "", *head, *map(row, names)]) + "\n")
    steps = [f"| `{name}` | {step.help} |" for name, step in STEPS.items()]
    parts.append(
        "\n".join(["## Steps", "", "| step | what it does |", "| --- | --- |", *steps]) + "\n"
    )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
