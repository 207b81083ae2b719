"""How a parameter is declared, and what is derived from its declaration.

`Config` declares each parameter once: type, default, steps, and a docstring as the help. Options,
`--help`, `MLproject`, the cache key and the check on resume are derived from that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

AUTO: Final = "auto"
NONE: Final = "none"
IMAGENET: Final = "imagenet"

StepName = Literal[
    "main", "tune", "prepare_data", "train", "evaluate", "export_onnx", "predict", "promote"
]

_NOUNS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "True or False",
}
_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "up to",
    "exclusiveMaximum": "below",
}
_MLPROJECT_TYPES = {"string": "string", "integer": "int", "number": "float", "boolean": "bool"}


@dataclass(frozen=True)
class Range:
    """The values of a parameter that `tune` tries.

    Attributes:
        low, high: the smallest and the largest number.
        log: whether they are spread evenly over the orders of magnitude.
        whole: whether only whole numbers are tried.
        choices: for a parameter that is no number.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The values in words."""
        if self.choices:
            return " or ".join(self.choices)
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"

    def __contains__(self, value: Any) -> bool:
        return value in self.choices if self.choices else bool(self.low <= value <= self.high)

    @property
    def ends(self) -> tuple[Any, ...]:
        """All choices, or the smallest and the largest number."""
        return self.choices or (self.low, self.high)


def param(
    default: Any,
    *steps: StepName,
    required_in: tuple[StepName, ...] = (),
    auto_in: tuple[StepName, ...] = (),
    is_input: bool = False,
    affects_result: bool = True,
    in_recipe: bool = True,
    handed_over: bool = False,
    also: str = "",
    search: Range | Literal["choices"] | None = None,
    theme: str = "",
) -> Any:
    """Declare a field of `Config` as a parameter; see `Parameter` for the arguments."""
    declared: dict[str, Any] = {
        "steps": list(steps),
        "required_in": list(required_in),
        "auto_in": list(auto_in),
        "is_input": is_input,
        "affects_result": affects_result,
        "in_recipe": in_recipe,
        "handed_over": handed_over,
        "also": also,
        "search": search,
        "theme": theme,
    }
    return Field(default, json_schema_extra={"declared": declared})


@dataclass(frozen=True)
class Parameter:
    """One parameter, as the command line and `MLproject` show it.

    Attributes:
        help: its docstring.
        default: before `auto` is resolved.
        allowed: the accepted values in words: "a number above 0", "sgd or adamw".
        type: its type in `MLproject`.
        steps: the steps that take it; `main` and `tune` also take those of the steps that they run.
        required_in: the steps that need it and have no default for it.
        auto_in: the steps whose default is `auto`: they take it from an earlier run.
        is_input: whether it names a file, a run or a model that the result is made from, so that
            the content, not the name, decides whether a step can be re-used.
        affects_result: False if it changes only the speed, the location or the display of a result:
            a step is re-used, and a training resumed, whatever its value.
        in_recipe: False if no recipe sets it: of the parameters of `main` and `tune`, MLproject
            declares only these.
        handed_over: whether a step of the chain produces it, so that `main` does not take it.
        also: a second name of the option in `steps`.
        search: what `tune` can try, "choices" being all that are allowed; None for nothing.
        theme: heading in `--help`; declared by the first parameter of each.
    """

    help: str
    default: Any
    allowed: str
    type: str
    steps: Sequence[StepName]
    required_in: Sequence[StepName]
    auto_in: Sequence[StepName]
    is_input: bool
    affects_result: bool
    in_recipe: bool
    handed_over: bool
    also: str
    search: Range | None
    theme: str


def declared_parameters(model: type[BaseModel]) -> dict[str, Parameter]:
    """The parameters that a model's fields declare with `param`, by name, in their order."""
    parameters, theme = {}, ""
    for name, schema in model.model_json_schema()["properties"].items():
        theme = schema["declared"]["theme"] or theme
        parameters[name] = Parameter(
            help=" ".join(schema["description"].split()),
            default=schema["default"],
            allowed=_in_words(schema),
            type=_MLPROJECT_TYPES[schema.get("anyOf", [schema])[0]["type"]],
            **schema["declared"] | {"search": _range(schema), "theme": theme},
        )
    return parameters


def _range(schema: dict[str, Any]) -> Range | None:
    search = schema["declared"]["search"]  # pydantic has made a dictionary of a Range
    if search == "choices":
        return Range(choices=tuple(schema["enum"]))
    return Range(**search | {"choices": ()}) if search else None


def _in_words(schema: dict[str, Any]) -> str:
    if words := schema.get("words"):
        return str(words)
    if choices := schema.get("enum"):
        return " or ".join(choices)
    if alternatives := schema.get("anyOf"):
        return " or ".join(_in_words(alternative) for alternative in alternatives)
    if "const" in schema:
        return str(schema["const"])
    bounds = [f"{word} {schema[key]:.12g}" for key, word in _BOUNDS.items() if key in schema]
    return " ".join([_NOUNS[schema["type"]], *bounds])
