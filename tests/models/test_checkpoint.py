"""Checkpoints: atomic, safe to read, enough to rebuild the model."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.checkpoint import (
    check_categories,
    model_of,
    read_checkpoint,
    write_checkpoint,
)
from k400tiny_lib.models.weights import build_model

CATEGORIES = {"a": 0, "b": 1, "c": 2}


def content() -> dict[str, Any]:
    return {
        "model": build_model("r2plus1d_18", 3).state_dict(),
        "epoch": 1,
        "config": Config().to_dict(),
        "categories": CATEGORIES,
    }


def test_the_model_is_rebuilt_from_the_file_alone(tmp_path: Path) -> None:
    saved = content()
    write_checkpoint(saved, tmp_path / "best.pt")
    model, config = model_of(read_checkpoint(tmp_path / "best.pt", "checkpoint"), "checkpoint")
    assert config == Config()
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved["model"][name])


def test_a_crash_while_writing_keeps_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint({"epoch": 1}, path)

    def crash(obj: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch pwned",))


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content() | {"epoch": _RunsCode()}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(_RunsCode()))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(UserError, match=r"^checkpoint: .* is not a readable checkpoint"):
            read_checkpoint(tmp_path / name, "checkpoint")
    assert not (tmp_path / "pwned").exists()


def test_unusable_files_are_one_clear_line(tmp_path: Path) -> None:
    write_checkpoint(content(), tmp_path / "good.pt")
    data = (tmp_path / "good.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    for name in ("cut.pt", "empty.pt", "other.pt", "missing.pt"):
        with pytest.raises(UserError) as caught:
            read_checkpoint(tmp_path / name, "checkpoint")
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"lr": -1}, r"\(lr: '-1' is not allowed"), ({"rate": 1}, r"\(rate: no")],
)
def test_a_config_that_is_not_ours_is_one_clear_line(changes: dict[str, Any], message: str) -> None:
    checkpoint = content()
    checkpoint["config"] |= changes
    with pytest.raises(UserError, match=rf"^checkpoint: .* config is not ours {message}"):
        model_of(checkpoint, "checkpoint")


def test_other_classes_are_named() -> None:
    check_categories(content(), CATEGORIES)
    with pytest.raises(UserError, match="first 'd'"):
        check_categories(content(), {"a": 0, "b": 1, "d": 2})
