"""What the documentation says is there: files, parameters, values, rooms."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from k400tiny_lib.config import PARAMETERS, STEPS, resolve
from tests.conftest import REPOSITORY

PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), REPOSITORY / "benchmarks/README.md"]
)
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_of(page: Path) -> list[str]:
    """The lines of the shell blocks of a page; continued lines and pipes are joined."""
    blocks = BLOCK.findall(page.read_text())
    joined = (block.replace("\\\n", " ").replace("|\n", "|") for block in blocks)
    lines = [line for block in joined for line in block.splitlines()]
    return [line for line in lines if line.strip()]


RUNS = [
    pytest.param(line, id=f"{page.name}-{number}")
    for page in PAGES
    for number, line in enumerate(commands_of(page))
    if re.search(r"\bmlflow\S* run \.", line)
]


def test_there_are_commands_to_check() -> None:
    assert len(RUNS) > 20


@pytest.mark.parametrize("line", RUNS)
def test_each_command_has_parameters_and_values_that_its_step_takes(line: str) -> None:
    words = shlex.split(line, comments=True)
    step = words[words.index("-e") + 1] if "-e" in words else "main"
    given = [words[i + 1] for i, word in enumerate(words) if word == "-P"]
    texts = dict(text.split("=", 1) for text in given)
    if "<" in texts.get("recipe", ""):  # a run that the reader has to name
        del texts["recipe"]
    resolve(step, texts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_parameter_that_a_page_names_exists(page: Path) -> None:
    names = set(re.findall(r"-P[ \n]+(\w+)=", page.read_text()))
    also = {p.also for p in PARAMETERS.values() if p.also}
    assert names <= {name for step in STEPS.values() for name in step.params} | also


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not re.match(r"https?:", target):
            assert (page.parent / target).exists(), target


def test_the_picture_of_the_house_is_that_of_the_code() -> None:
    made = runpy.run_path(str(REPOSITORY / "docs" / "architecture.py"))
    assert made["page"]() == made["PAGE"].read_text(), "run python docs/architecture.py"


def test_the_page_of_parameters_is_that_of_their_declarations() -> None:
    made = runpy.run_path(str(REPOSITORY / "docs" / "parameters.py"))
    assert made["page"]() == made["PAGE"].read_text(), "run python docs/parameters.py"
