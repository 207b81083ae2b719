"""What is said in several files is the same in all: the version, the Pythons, the lock."""

import re
import tomllib

import pytest
import yaml
from mlflow import MlflowClient

from k400tiny_lib.config import Config
from k400tiny_lib.tracking.runs import step_run
from k400tiny_lib.workflow import cache
from tests.conftest import REPOSITORY

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PYTHONS = [
    name.rpartition(" ")[2]
    for name in PROJECT["classifiers"]
    if name.startswith("Programming Language :: Python :: 3.")
]


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text()


def test_the_newest_version_of_the_changelog_is_the_version_of_the_project() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", text_of("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == PROJECT["version"]
    assert versions == sorted(versions, key=lambda v: [*map(int, v.split("."))], reverse=True)


def test_runs_have_the_version_and_no_step_runs_again_because_of_it(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with step_run("predict", Config()) as run:
        pass
    tags = MlflowClient().get_run(run.info.run_id).data.tags
    assert tags["k400tiny.version"] == PROJECT["version"]
    counted = {path for pattern in cache._CODE for path in REPOSITORY.glob(pattern)}
    assert REPOSITORY / "pyproject.toml" not in counted
    assert not [path for path in counted if f'"{PROJECT["version"]}"' in path.read_text()]


def test_all_files_mean_the_same_pythons() -> None:
    oldest, newest = PYTHONS[0], PYTHONS[-1]
    above = f"3.{int(newest.partition('.')[2]) + 1}"
    assert PROJECT["requires-python"] == f">={oldest},<{above}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == oldest
    [python] = [
        line
        for line in yaml.safe_load(text_of("conda.yaml"))["dependencies"]
        if str(line).startswith("python=")
    ]
    assert python.removeprefix("python=") in PYTHONS
    workflow = yaml.safe_load(text_of(".github/workflows/ci.yml"))
    assert workflow["jobs"]["gate"]["strategy"]["matrix"]["python"] == PYTHONS
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        named = re.findall(
            r"3\.\d+(?= |,|\)|$)", " ".join(re.findall(r"Python [^\n:]*", text_of(name)))
        )
        assert set(named) <= set(PYTHONS), name


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_a_lock_begins_with_the_command_that_makes_it(name: str) -> None:
    first, second = text_of(f"{name}.txt").splitlines()[:2]
    assert first.startswith(f"# uv pip compile {name}.in -o {name}.txt --universal ")
    assert f"--python-version {PYTHONS[0]}" in first
    assert "--generate-hashes" in first
    assert "==" in second
    locked = set(re.findall(r"^([\w.-]+)==", text_of(f"{name}.txt"), re.MULTILINE))
    lines = [line.partition("#")[0].strip() for line in text_of(f"{name}.in").splitlines()]
    needed = [re.split(r"[=<>~\[ ]", line)[0] for line in lines if line and line[0] != "-"]
    assert needed
    assert not set(needed) - locked


def test_the_workflow_calls_the_gate_and_needs_no_secret() -> None:
    text = text_of(".github/workflows/ci.yml")
    assert "run: bash .ci/run\n" in text
    assert "secrets" not in text
    for line in text.splitlines():
        assert "://" not in line


def test_the_hooks_are_the_checks_of_the_gate() -> None:
    [repository] = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"  # the versions are those of the lock
    entries = {hook["id"]: hook["entry"] for hook in repository["hooks"]}
    assert set(entries) == {"ruff", "ruff-format", "mypy", "mlproject"}
    assert "ruff check" in entries["ruff"]
    assert (REPOSITORY / "k400tiny_lib" / "py.typed").exists()


def test_the_licence_is_the_whole_apache_2_0() -> None:
    text = text_of("LICENSE")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert [str(n) for n in range(1, 10)] == re.findall(r"^   (\d)\. ", text, re.MULTILINE)
    assert "APPENDIX: How to apply the Apache License to your work." in text
