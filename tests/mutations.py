"""Ten key lines, each broken in a copy of the project: the tests must notice.

python -m tests.mutations            # all of them
python -m tests.mutations parity     # one

A line that has changed has to be brought up to date here. Not a test itself: pytest is started for
each mutation, on the few tests that are meant to fail.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.conftest import REPOSITORY

_COPIED = ("k400tiny_lib", "steps", "recipes", "tests", "docs", "MLproject", "pyproject.toml")
_TESTS_FAILED = 1  # pytest's exit code; others are for tests that could not be run


class Mutation(NamedTuple):
    """A line and what it is changed to, and the tests that then fail.

    `old` is a part of the file that is there once.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = {
    "grouping": Mutation(  # clips of one source in two splits
        "data/preparation/splits.py",
        "shuffle.split(groups, groups=groups)]",
        "shuffle.split(groups, groups=groups.index)]",
        ("tests/data/preparation/test_splits.py", "-k", "no_source_and_no_content"),
    ),
    "sharding": Mutation(  # a clip that several processes predict
        "evaluation/worker.py",
        "share = slice(process.rank, None, process.world_size)",
        "share = slice(None)",
        ("tests/evaluation/test_unknown.py", "-k", "any_number_of_processes"),
    ),
    "parity": Mutation(  # a graph that answers with NaN
        "export/parity.py",
        "if not worst.max_abs_diff <= tolerance or wrong:",
        "if worst.max_abs_diff > tolerance or wrong:",
        ("tests/export/test_onnx_graph.py", "-k", "not_a_number_fails_the_gate"),
    ),
    "resume": Mutation(  # momenta that begin at zero again
        "training/state.py",
        '_load_optimizer(state.optimizer, checkpoint["optimizer"])',
        "pass",
        ("tests/distributed/test_survival.py", "-k", "signal_during_validation"),
    ),
    "cache key": Mutation(  # an input that counts by its name
        "workflow/cache.py",
        "for t in (n, _identity(n, parameters[n], config))]",
        "for t in (n, parameters[n])]",
        ("tests/workflow/test_cache.py", "-k", "ground_truth_and_the_annotations_count"),
    ),
    "temperature": Mutation(  # sharpens where it should soften
        "export/onnx_graph.py",
        "return (logits / self.temperature).softmax(1)",
        "return (logits * self.temperature).softmax(1)",
        ("tests/export/test_exporter.py", "-k", "gives_temperature_and_score"),
    ),
    "promotion": Mutation(  # the same model again would become champion
        "registry/promotion.py",
        "return PromotionDecision(ours > theirs, reason)",
        "return PromotionDecision(ours >= theirs, reason)",
        ("tests/registry/test_promotion.py", "-k", "better_version_takes_the_name"),
    ),
    "truncation": Mutation(  # half a video passes for a whole one
        "media/container/index.py",
        "    if missing:\n",
        "    if False:\n",
        ("tests/media/test_truncation.py", "-k", "a_part_is_refused"),
    ),
    "display matrix": Mutation(  # turned to the other side
        "media/picture.py",
        "round(-clockwise / 90) % 4",
        "round(clockwise / 90) % 4",
        ("tests/media/test_picture.py", "-k", "turned_and_mirrored"),
    ),
    "password": Mutation(  # shown as it is
        "errors.py",
        "lambda match: match[1] or match[2], text",
        "lambda match: match[0], text",
        ("tests/test_errors.py",),
    ),
}


def survives(mutation: Mutation) -> str:
    """What is wrong with the tests; empty if they notice the mutation."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "project")
        project.mkdir()
        for name in _COPIED:
            source, ignored = REPOSITORY / name, shutil.ignore_patterns("__pycache__", "fixtures")
            if source.is_dir():
                shutil.copytree(source, project / name, ignore=ignored)
            else:
                shutil.copy(source, project)
        file = project / "k400tiny_lib" / mutation.file
        text = file.read_text()
        if text.count(mutation.old) != 1:
            return f"{mutation.file} has {text.count(mutation.old)} times: {mutation.old}"
        file.write_text(text.replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-o", "addopts=", *mutation.tests]
        done = subprocess.run(
            command,
            cwd=project,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode == _TESTS_FAILED:
        return ""
    return f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}"


def main(names: list[str]) -> int:
    """Try the mutations, two at a time; returns the exit code."""
    begin, chosen = time.monotonic(), {n: MUTATIONS[n] for n in names or MUTATIONS}
    with ThreadPoolExecutor(2) as pool:
        problems = dict(zip(chosen, pool.map(survives, chosen.values()), strict=True))
    for name, problem in problems.items():
        print(f"{name}: {problem or 'noticed'}")
    survivors = sum(map(bool, problems.values()))
    print(f"{len(chosen) - survivors} of {len(chosen)} noticed, {time.monotonic() - begin:.0f} s")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
