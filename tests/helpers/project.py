"""A checkout of the project, and `mlflow run` of it as a user starts it."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

_PARTS = ("MLproject", "conda.yaml", "requirements.txt", "pyproject.toml")
_FOLDERS = ("k400tiny_lib", "steps", "recipes")


@dataclass(frozen=True)
class Checkout:
    """A copy of the project as it is now, with its runs in a store of its choice."""

    folder: Path
    store: str

    def command(self, step: str = "main", **parameters: object) -> list[str]:
        command = [sys.executable, "-m", "mlflow", "run", str(self.folder), "-e", step]
        for name, value in parameters.items():
            command += ["-P", f"{name}={value}"]
        return [*command, "--env-manager", "local"]

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"MLFLOW_TRACKING_URI": self.store, "PATH": path} | variables


def check_out(folder: Path, store: str) -> Checkout:
    """Copy the project to a new directory."""
    folder.mkdir(parents=True)
    for name in _PARTS:
        shutil.copy(REPOSITORY / name, folder)
    for name in _FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    return Checkout(folder, store)
