"""What `main` refuses before its first step."""

from pathlib import Path

import mlflow
import pytest

from k400tiny_lib.config import Config
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
