"""What `main` refuses before its first step, and what it advises after it."""

import re
from pathlib import Path

import mlflow
import pytest

from k400tiny_lib.config import NONE, Config, resolve
from k400tiny_lib.errors import UserError
from k400tiny_lib.workflow import chain


def test_unknown_clips_that_are_not_there_are_refused_before_the_training(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_step(*arguments: object) -> None:
        raise AssertionError("a step was started")

    monkeypatch.setattr(chain, "_run_or_reuse", no_step)
    (tmp_path / "empty").mkdir()
    config = Config(output_dir=str(tmp_path / "data"))
    with mlflow.start_run():
        for name in ("missing", "empty"):
            with pytest.raises(UserError, match=r"^unknown_path: .*Needed: "):
                chain.run_chain(config.replace(unknown_path=str(tmp_path / name)))
        with pytest.raises(AssertionError, match="a step was started"):
            chain.run_chain(config)


@pytest.mark.parametrize(
    ("changes", "num_clips", "is_advised"),
    [
        ({"data_path": "clips"}, 199, True),
        ({"data_path": "clips"}, 200, False),
        ({}, 100, False),
        ({"data_path": "clips", "weights": "R2Plus1D_18_Weights.KINETICS400_V1"}, 100, False),
        ({"data_path": "clips", "load_model": "best.pt"}, 100, False),
        ({"data_path": "clips", "recipe": "small"}, 100, False),
        ({"data_path": "clips", "recipe": "small", "weights": "none"}, 100, True),
    ],
)
def test_few_real_clips_from_scratch_are_advised_of_a_better_recipe_in_one_line(
    changes: dict[str, str], num_clips: int, is_advised: bool
) -> None:
    config = resolve("main", changes)
    advice = chain.recipe_advice(config, {"num_clips": num_clips, "num_classes": 10})
    assert bool(advice) == is_advised
    assert "\n" not in advice
    for recipe in re.findall(r"recipe=(\w+)", advice):
        assert resolve("main", {"data_path": "clips", "recipe": recipe}).weights != NONE
    assert not advice or len(re.findall(r"recipe=(\w+)", advice)) == 2
