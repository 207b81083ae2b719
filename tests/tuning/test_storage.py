"""Storages: files and databases, and errors that show no password."""

from pathlib import Path

import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.tuning.storage import open_storage, storage_url


def test_a_storage_is_a_file_or_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_url("auto") == f"sqlite:///{tmp_path}/.k400tiny/tuning.db"
    assert storage_url("new/trials.db") == f"sqlite:///{tmp_path}/new/trials.db"
    assert (tmp_path / "new").is_dir()
    for url in ("postgresql+psycopg2://me:secret@host/db", f"sqlite:///{tmp_path}/trials.db"):
        assert storage_url(url) == url
    assert storage_url(f"file://{tmp_path}/trials.db") == f"sqlite:///{tmp_path}/trials.db"


@pytest.mark.parametrize("memory", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_storage_that_ends_with_the_process_is_refused(memory: str) -> None:
    with pytest.raises(UserError, match=r"^storage: .* ends with this process"):
        storage_url(memory)


@pytest.mark.parametrize(
    "storage",
    [
        "postgresql+nosuchdriver://me:sec:ret@host/db",
        "postgresql://me:secret@127.0.0.1:1/db",
        "redis://me:secret@host",
        "s3://me:secret@bucket/trials.db",
        "://",
        "{folder}",
        "{folder}/file",
        "{folder}/file/trials.db",
        "sqlite:///{folder}/missing/trials.db",
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line_without_the_password(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k400tiny_lib.tuning.storage._ATTEMPTS", 1)
    (tmp_path / "file").write_text("a file that is no database, long enough to be looked at")
    with pytest.raises(UserError, match=r"^storage: ") as caught:
        open_storage(storage_url(storage.replace("{folder}", str(tmp_path))))
    assert "secret" not in str(caught.value)
    assert "sec:ret" not in str(caught.value)
    assert "\n" not in str(caught.value)
