"""docs/extending.md: each diff applies to this code, touches the files that it says, and works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
DIFFS = dict(re.findall(r"^## (.+?)\n.*?```diff\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
NUM_FILES = {
    name: int(count)
    for name, count in re.findall(r"^\| \[(.+?)\]\(.+?\) \| (\d+) \|", PAGE, re.MULTILINE)
}
# What must hold once the diff is applied; run in the copy.
CHECKS = {
    "An architecture": """
import torch
from k400tiny_lib.config import resolve
from k400tiny_lib.models.weights import build_model, class_count
config = resolve("train", {"data_path": "d", "annotations": "a", "model": "tiny"})
assert (config.clip_len, config.resize_size, config.crop_size) == (8, 64, 56)
model = build_model(config.model, 5)
assert class_count("tiny", model.state_dict()) == 5
assert model.eval()(torch.zeros(2, 3, 8, 56, 56)).shape == (2, 5)
""",
    "A data source": """
from pathlib import Path
from k400tiny_lib.config import Config
from k400tiny_lib.data.preparation.prepare import prepare
from k400tiny_lib.data.sources.base import open_source
config = Config(data_path="noise", output_dir="out")
source = open_source(config)
assert not source.is_ready()
prepared = prepare(config, source)
assert prepared.annotations.categories == {"bright": 0, "dark": 1}
assert len(list(prepared.annotations.clips)) == 8
assert source.is_ready() and len(list(Path("out", "noise-0").glob("*/*.jpg"))) == 48
""",
    "An evaluation metric": """
import numpy as np
from sklearn.metrics import brier_score_loss
from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.evaluation.metrics import score
from k400tiny_lib.evaluation.predictions import table_of_probabilities
rng = np.random.default_rng(0)
probabilities = rng.dirichlet(np.ones(3), 20)
targets = np.arange(20) % 3
clips = [Clip(f"v{i}", (0, 3), int(t), f"s{i}") for i, t in enumerate(targets)]
found = score(table_of_probabilities(clips, probabilities), "test")["test_brier"]
assert np.isclose(found, brier_score_loss(targets, probabilities, scale_by_half=False))
""",
    "An augmentation": """
import torch
from k400tiny_lib.config import resolve
from k400tiny_lib.data.loading.augmentation import AUGMENTATIONS, seeded
resolve("train", {"data_path": "d", "annotations": "a", "augmentation": "gray"})
images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)
gray = 0
for number in range(40):
    with seeded(number) as generator:
        changed = AUGMENTATIONS["gray"].per_clip(images, 16, True, generator)
    gray += bool((changed[:, 0] == changed[:, 1]).all())
assert changed.shape == (4, 3, 16, 16) and 10 < gray < 30
""",
    "A parameter of `train`": """
from torch import nn
from k400tiny_lib.config import STEPS, resolve
from k400tiny_lib.config.mlproject import mlproject_text
from k400tiny_lib.training.optim import make_optimizer
given = {"data_path": "d", "annotations": "a"}
assert make_optimizer(nn.Linear(2, 2), resolve("train", given)).defaults["nesterov"]
config = resolve("train", given | {"nesterov": "False"})
assert not make_optimizer(nn.Linear(2, 2), config).defaults["nesterov"]
assert "nesterov" in STEPS["main"].params and "--nesterov" in mlproject_text()
""",
    "A section of the report": """
from k400tiny_lib.evaluation.evaluation import evaluate_predictions
from k400tiny_lib.evaluation.report import render_report
from k400tiny_lib.evaluation.views import ViewProtocol
from tests.evaluation.test_report import NAMES, PROVENANCE, annotations_of, model_of
from tests.helpers.evaluation import random_table
table = random_table()
annotations, model = annotations_of(table, NAMES, "test"), model_of(NAMES)
found = evaluate_predictions("test", {"test": table}, annotations, model, ViewProtocol(1, 1))
page = render_report(found, PROVENANCE)
section = page.split('id="sources"')[1].split("<h2")[0]
right = (table["predicted"] == table["target"]).groupby(table["group"]).mean()
assert section.count("<li>") == min(10, len(right))
assert f"<li>{found.sources.index[0]}: {100 * right.min():.0f} %</li>" in section
""",
    "The promotion rule": """
import numpy as np
from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.evaluation.predictions import table_of_probabilities
from k400tiny_lib.registry.promotion import compare_to_champion
def table(right):
    clips = [Clip(f"v{i}", (0, 3), 0, f"s{i}") for i in range(40)]
    p = np.array([[0.9, 0.1] if i < right else [0.1, 0.9] for i in range(40)])
    return table_of_probabilities(clips, p)
assert not compare_to_champion(table(21), table(20), "v1").promoted
assert compare_to_champion(table(38), table(20), "v1").promoted
""",
}


def test_every_change_of_the_table_has_its_section() -> None:
    assert DIFFS.keys() == CHECKS.keys() == {name[0].upper() + name[1:] for name in NUM_FILES}


@pytest.mark.parametrize("title", CHECKS)
def test_a_change_touches_the_files_that_the_page_says(title: str, tmp_path: Path) -> None:
    for name in ("k400tiny_lib", "steps", "recipes", "tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "fixtures")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    applied = subprocess.run(
        ["git", "apply", "-C1", "-v", "-"],
        input=DIFFS[title],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert applied.returncode == 0, applied.stderr
    touched = re.findall(r"Applied patch (\S+) cleanly", applied.stderr)
    assert len(touched) == NUM_FILES[title[0].lower() + title[1:]]
    done = subprocess.run(
        [sys.executable, "-c", CHECKS[title]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
