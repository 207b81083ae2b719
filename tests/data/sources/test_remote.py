"""Data behind http, whose listing has neither sizes nor times, and paths as people write them."""

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from k400tiny_lib.config import Config
from k400tiny_lib.data.preparation.prepare import prepare
from k400tiny_lib.data.sources.base import open_source
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import local_path
from k400tiny_lib.remote_files import fetch, list_files
from tests.conftest import write_clip
from tests.helpers.videos import write_video


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a web server for tmp_path/www; local copies go elsewhere."""
    (tmp_path / "www").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    handler = functools.partial(_Silent, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


NAMES = [f"{label}/{label} {number}é#" for label in ("push up", "y") for number in range(3)]


def write_frames(root: Path) -> None:
    for seed, name in enumerate(NAMES):
        write_clip(root / name, seed)


def write_videos(root: Path) -> None:
    for number, name in enumerate(NAMES):
        write_video(root / f"{name}.avi", 3 + number)


@pytest.mark.parametrize(
    ("write", "header", "suffix"),
    [
        (write_frames, "", ""),
        (write_frames, "folder_name,youtube_id,label", ""),
        (write_videos, "", ""),
        (write_videos, "file,label", ".avi"),
    ],
)
def test_data_behind_http_is_read_and_read_again(
    server: str, tmp_path: Path, write: object, header: str, suffix: str
) -> None:
    root = tmp_path / "www" / "in"
    write(root)
    config = Config(data_path=f"{server}/in/", output_dir="out", decode_workers=1)
    if header:
        columns = header.count(",")
        lines = [f"{name}{suffix}{f',{name}' * (columns - 1)},{name[0]}" for name in NAMES]
        (root / "gt.csv").write_text("\n".join([header, *lines]) + "\n")
        config = config.replace(gt_csv=f"{server}/in/gt.csv")
    first = prepare(config, open_source(config))
    assert sorted(first.table["folder_name"]) == sorted(NAMES)
    assert first.report["num_left_out"] == first.report["num_dropped"] == 0
    source = open_source(config)
    source.check()
    assert prepare(config, source).annotations.to_json() == first.annotations.to_json()
    # Nothing in the listing tells that a file is another one now.
    if write is write_videos:
        write_video(root / f"{NAMES[0]}.avi", 30)
    else:
        other = (root / NAMES[1] / "frame00.jpg").read_bytes()
        (root / NAMES[0] / "frame00.jpg").write_bytes(other)
    changed = prepare(config, open_source(config))
    assert changed.annotations.data_digest != first.annotations.data_digest


def test_a_listing_without_sizes_is_fetched_again(server: str, tmp_path: Path) -> None:
    file = tmp_path / "www" / "gt.csv"
    for text in ("one", "two"):
        file.write_text(text)
        assert list_files(f"{server}/gt.csv", "gt_csv") == {"": ""}
        assert fetch(f"{server}/gt.csv?token=1", "gt_csv").read_text() == text
    with pytest.raises(UserError, match=r"^gt_csv: .* (does not exist|cannot be used)"):
        fetch(f"{server}/nothing.csv", "gt_csv")


def test_links_of_a_listing_that_sort_it_or_lead_up_are_no_files(
    server: str, tmp_path: Path
) -> None:
    folder = tmp_path / "www" / "in"
    folder.mkdir()
    links = ("a%20b.jpg", "?C=N;O=D", "../", "..%2F..%2Fup.jpg", "%2e%2e/up.jpg")
    page = "".join(f'<a href="{link}">x</a>' for link in links)
    (folder / "index.html").write_text(page)
    (folder / "a b.jpg").write_text("x")
    assert list(list_files(f"{server}/in", "data_path")) == ["a b.jpg"]


def test_a_local_path_may_be_a_uri_or_begin_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my data 50% é#?"
    folder.mkdir()
    uri = folder.as_uri()
    assert "%20" in uri
    for text in (uri, f"{uri}/", uri.replace("file://", "file://localhost"), f"~/{folder.name}/"):
        assert local_path(text) == folder
        assert fetch(text, "input") == folder
    assert local_path("~root/x") == Path(os.path.expanduser("~root"), "x")  # noqa: PTH111
    assert local_path("~nobody-has-this-name") == tmp_path / "~nobody-has-this-name"
    assert local_path("a%20b") == tmp_path / "a%20b"  # a path is no URI
    raw = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert local_path(raw.as_uri()) == raw


def test_class_folders_are_found_under_every_spelling_of_their_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "my data"
    for name in ("x/0.mp4", "y/0.mp4"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    gt = tmp_path / "my labels.csv"
    gt.write_text("file,label\nx/0.mp4,x\ny/0.mp4,y\n")
    for text in (str(folder), f"{folder}//", folder.as_uri(), "~/my data"):
        for csv in ("none", gt.as_uri(), "~/my labels.csv"):
            source = open_source(Config(data_path=text, gt_csv=csv))
            assert source.ground_truth.table["folder_name"].tolist() == ["x/0", "y/0"]
            assert source.config.data_path == str(folder)
