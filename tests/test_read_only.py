"""A project directory that is read-only: one line with what to do, and nothing half-written."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.data.loading.frame_cache import write_cache
from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.errors import UserError
from k400tiny_lib.leftovers import Mark
from k400tiny_lib.media.own_output import mark
from k400tiny_lib.training.folder import hold_folder, resolve_checkpoint_dir

folder = sys.argv[1]
Path(folder, "old").mkdir()
for options in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
    subprocess.run(["mount", *options], check=True)
os.chdir(folder)
config, empty = Config(), Annotations({}, {"train": [], "val": [], "test": []})
for attempt in (
    lambda: ContentIndex(Path("data", "index.sqlite")),
    lambda: mark(Path("data")),
    lambda: resolve_checkpoint_dir(config, "run"),
    lambda: hold_folder(config.replace(checkpoint_dir="old"), "run").__enter__(),
    lambda: write_cache(empty, Path("old"), 32, Path("cache"), num_workers=0),
    lambda: Mark(Path("runs", "run"), {}).remove(),  # does without
):
    try:
        attempt()
    except UserError as error:
        print(error)
"""


def test_what_cannot_be_written_names_the_parameter_to_change(tmp_path: Path) -> None:
    alone = ["unshare", "--mount", "--map-root-user", "--user"]
    command = [*alone, sys.executable, "-c", PROGRAM, str(tmp_path)]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted for one process")
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    parameters = ["output_dir", "output_dir", "checkpoint_dir", "checkpoint_dir", "cache_dir"]
    for line, parameter in zip(lines, parameters, strict=True):
        assert line.startswith(f"{parameter}: "), line
        assert "cannot be written to: Read-only file system. Needed: a directory" in line
        assert f"(-P {parameter}=...)" in line
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
