"""annotations.json against the clips on disk."""

from pathlib import Path

import pytest

from k400tiny_lib.data.annotations import Annotations, Clip, check_annotations
from k400tiny_lib.errors import UserError
from tests.conftest import write_clip


def annotations_of(*videos: str) -> Annotations:
    clips = [Clip(video, (0, 5), 0, video) for video in videos]
    return Annotations({"a": 0}, {"train": clips, "val": [], "test": []})


def test_a_clip_that_is_no_folder_is_named_with_its_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "good", seed=0)
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    check_annotations(annotations_of("good"), tmp_path, 4)
    for video, problem in {
        "gone": "does not exist",
        "file": "is no folder",
        "file/below": "does not exist",
        "circle": "cannot be read: Too many levels of symbolic links",
        "x" * 300: "cannot be read: File name too long",
        "a\0b": "cannot be read: ",
    }.items():
        with pytest.raises(UserError, match=f"^data_path: .* lacks 1 of 2 .*, which {problem}"):
            check_annotations(annotations_of("good", video), tmp_path, 4)

    stat = Path.stat

    def locked(path: Path, **options: bool) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", locked)
    with pytest.raises(UserError, match=r"first locked, which cannot be read: Permission denied\."):
        check_annotations(annotations_of("good", "locked"), tmp_path, 4)
