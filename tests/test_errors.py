"""No password of a URI in anything that is shown."""

import pytest

from k400tiny_lib.errors import UserError, hide_passwords, one_line

SECRETS = [
    ("http://user:secret@host:5000/path", "http://host:5000/path"),
    ("https://token-secret@host", "https://host"),
    ("http://user:sec@ret@host", "http://host"),
    ("postgresql://user:sec/ret@host/db", "postgresql://host/db"),
    ("mysql+pymysql://user:sec:ret@host:3306/db", "mysql+pymysql://host:3306/db"),
    ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me&password=***"),
    ("s3://key:secret@bucket/clips", "s3://bucket/clips"),
    ("sftp://me:secret@host/clips", "sftp://host/clips"),
    ("simplecache::ftp://me:secret@host/a.csv", "simplecache::ftp://host/a.csv"),
    ("https://host/a.csv?X-Amz-Signature=secret&x=1", "https://host/a.csv?X-Amz-Signature=***&x=1"),
]
HARMLESS = [
    *("sqlite:////data/mlflow.db", "models:/name@champion", "runs:/0123/checkpoints/best.pt"),
    *("/data/a@b.csv", "file:///data/a@b", "s3://bucket/a@b", "http://host:5000/#/runs/a@b"),
    *("localhost:29400", "write to me@example.org", "tcp://host:8786"),
]


@pytest.mark.parametrize(("uri", "shown"), SECRETS)
def test_no_password_of_a_uri_is_shown(uri: str, shown: str) -> None:
    assert hide_passwords(f"'{uri}', then {uri}") == f"'{shown}', then {shown}"
    assert "secret" not in str(UserError(f"data_path: {uri} is gone"))
    assert "secret" not in one_line(OSError(f"{uri} is gone"))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_holds_no_password_is_shown_as_it_is(text: str) -> None:
    assert hide_passwords(text) == text
