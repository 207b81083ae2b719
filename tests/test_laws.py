"""The laws of the house: which room may know which, and how large a room may grow.

They are read from the source, imports within functions included, so that a lazy import cannot
hide an arrow that points up.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

LIBRARY = "k400tiny_lib"
GROUND = {
    "errors",
    "console",
    "system",
    "files",
    "remote_files",
    "metrics_log",
    "plots",
    "leftovers",
}
# The table of architectures is data without torch: `config` takes the choices of `model` from it.
# Its functions import what they build when they are called.
TABLE = "models.architectures"
BELOW_STEPS = {"config", "media", "data", "distributed", "models"}

# Each room with the other rooms that it may import. Read downwards: nothing points back.
MAY_IMPORT = {
    "errors": set(),
    "console": set(),
    "system": set(),
    "files": {"errors", "system"},
    "remote_files": {"errors", "files"},
    "metrics_log": {"errors", "files"},
    "plots": {"metrics_log"},
    "leftovers": set(),
    TABLE: set(),
    "config": GROUND | {TABLE},
    "media": GROUND,
    "data": GROUND | {TABLE, "config", "media"},
    "distributed": GROUND | {"config"},
    "models": GROUND | {TABLE, "config", "media", "data"},
    "training": GROUND | {TABLE} | BELOW_STEPS,
    "evaluation": GROUND | {TABLE} | BELOW_STEPS,
    "export": GROUND | {TABLE} | BELOW_STEPS | {"evaluation"},
    "serving": GROUND | {"media"},
    "tracking": GROUND | {TABLE} | BELOW_STEPS | {"training", "evaluation", "serving"},
    "registry": GROUND | {TABLE} | BELOW_STEPS | {"evaluation", "export", "serving", "tracking"},
    "workflow": GROUND | {TABLE} | BELOW_STEPS | {"evaluation", "registry", "serving", "tracking"},
    "tuning": GROUND | {"config", "tracking", "workflow"},
}
MLFLOW_ROOMS = {"tracking", "workflow", "registry", "tuning"}
SERVED_MODEL = ("serving.video_classifier", "serving.served_model")

MODULES = {
    ".".join(path.relative_to(REPOSITORY / LIBRARY).with_suffix("").parts): path
    for path in sorted((REPOSITORY / LIBRARY).rglob("*.py"))
    if path.name != "__init__.py"
}


def imports_of(path: Path, lazy: bool = True) -> Iterator[str]:
    """The dotted names that a file imports: anywhere in it, or at its top level only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(dotted: str) -> str:
    return TABLE if dotted.startswith(TABLE) else dotted.partition(".")[0]


def test_the_plan_of_the_house_itself_has_no_circle() -> None:
    seen: set[str] = set()
    for room, allowed in MAY_IMPORT.items():
        assert allowed <= seen | {room}, f"{room} may import a room that is listed after it"
        seen.add(room)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    room = room_of(module)
    for name in imports_of(MODULES[module], lazy=room != TABLE):
        assert not name.startswith("steps"), f"{module} imports {name}"
        if name.startswith(f"{LIBRARY}."):
            target = room_of(name.removeprefix(f"{LIBRARY}."))
            assert target == room or target in MAY_IMPORT[room], f"{module} imports {name}"


def test_only_some_rooms_know_mlflow() -> None:
    knowing = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == "mlflow" for name in imports_of(path))
    }
    assert {m for m in knowing if room_of(m) not in MLFLOW_ROOMS} == set(SERVED_MODEL)


@pytest.mark.parametrize(
    ("rooms", "without"),
    [
        (("media", "serving"), "torch"),
        (("config", TABLE), "torch"),
        (("media", "serving", "config", "data.sources"), "mlflow"),
    ],
)
def test_rooms_that_start_fast_import_without(rooms: tuple[str, ...], without: str) -> None:
    modules = [
        f"{LIBRARY}.{m}"
        for m in MODULES
        if m.startswith(tuple(rooms)) and not (without == "mlflow" and m in SERVED_MODEL)
    ]
    assert modules
    code = f"import sys, {', '.join(modules)}; print({without!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_each_room_says_what_is_in_it() -> None:
    inits = (REPOSITORY / LIBRARY).rglob("__init__.py")
    assert not [path for path in inits if not ast.get_docstring(ast.parse(path.read_text()))]


def test_rooms_are_small() -> None:
    folders = {path.parent for path in MODULES.values()}
    crowded = {
        str(folder.relative_to(REPOSITORY)): count
        for folder in folders
        if (count := sum(path.parent == folder for path in MODULES.values())) > 10
    }
    assert not crowded
    long = {m: n for m, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 300}
    assert not long


@pytest.mark.parametrize("step", ["prepare_data", "evaluate", "export_onnx", "tune"])
def test_a_step_fits_on_a_screen(step: str) -> None:
    tree = ast.parse((REPOSITORY / "steps" / f"{step}.py").read_text())
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = (REPOSITORY / "steps" / f"{step}.py").read_text().splitlines()
    code = [
        line
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.strip().startswith("#") and number not in docstrings
    ]
    assert len(code) <= 40


def test_nobody_counts_the_cores_of_the_machine() -> None:
    # A process may be allowed fewer: system.available_cores knows.
    for module, path in MODULES.items():
        assert "cpu_count" not in path.read_text() or module == "system", module
