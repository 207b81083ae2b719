"""What `predict` takes for a clip, and what it says about everything else."""

import os
from pathlib import Path

import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.serving.inputs import Inputs, find_inputs


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def names_of(inputs: Inputs) -> list[str]:
    assert inputs.root is not None
    return [path.relative_to(inputs.root).as_posix() for path in inputs.clips]


def test_pictures_next_to_clips_hide_none_and_are_named(tmp_path: Path) -> None:
    clips = [f"clip{number}/{frame}.jpg" for number in (2, 10, 1) for frame in range(3)]
    inputs = find_inputs(touch(tmp_path / "a", *clips, "preview.png", "notes.txt"))
    assert names_of(inputs) == ["clip1", "clip2", "clip10"]
    assert inputs.problem(0) == ""  # nobody misses a label for a preview
    assert "1 .png" in inputs.describe()
    inputs = find_inputs(touch(tmp_path / "b", "v.mp4", "v.jpg", "w.mp4", "w.jpg", "w.json"))
    assert names_of(inputs) == ["v.mp4", "w.mp4"]
    assert inputs.skipped() == [
        f"left out {name}: no video and no frame of a clip" for name in ("v.jpg", "w.jpg", "w.json")
    ]


def test_clips_in_deeper_folders_have_their_path_as_name(tmp_path: Path) -> None:
    inputs = find_inputs(
        touch(tmp_path, "run/b10.mp4", "run/b9.mp4", "sit/anna/0.mp4", "sit/c/1.jpg", "sit/c/2.jpg")
    )
    assert names_of(inputs) == ["run/b9.mp4", "run/b10.mp4", "sit/anna/0.mp4", "sit/c"]


def test_what_may_be_a_clip_and_has_no_label_is_a_problem(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.mp4", "b.xyz", "webp/1.webp", "webp/2.webp", "a.json")
    (root / "empty").mkdir()
    inputs = find_inputs(root)
    assert names_of(inputs) == ["a.mp4"]
    assert inputs.problem(0) == "3 that may be clips were left out"
    assert inputs.problem(1) == (
        "1 of 1 could not be labeled and 3 that may be clips were left out"
    )
    for name in ("b.xyz", "webp", "empty"):
        assert f": {name}\n" in inputs.describe()
        assert any(line.startswith(f"left out {name}: ") for line in inputs.skipped())


def test_clips_that_cannot_be_read_are_messages(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.mp4", "c/1.jpg", "c/2.jpg")
    os.mkfifo(root / "pipe.mp4")
    os.mkfifo(root / "c" / "3.jpg")
    for name in (b"caf\xe9.mp4", b"line\nbreak.xyz"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).touch()
    inputs = find_inputs(root)
    assert names_of(inputs) == ["a.mp4"]
    assert inputs.unusable == [
        rf"{root}/caf\xe9.mp4: its name is not UTF-8.",
        f"{root}/pipe.mp4: no regular file but a named pipe.",
        f"{root}/c: 3.jpg is no regular file but a named pipe.",
    ]
    assert inputs.problem(0) == "3 of 4 could not be labeled and 1 that may be clips were left out"
    assert len(inputs.skipped()) == 4
    "".join(inputs.skipped()).encode()


def test_a_clip_is_itself_the_input(tmp_path: Path) -> None:
    root = touch(tmp_path, "c/1.jpg", "c/2.jpg", "v.xyz")
    for name in ("c", "v.xyz"):  # whoever names a file means it, whatever its suffix
        assert find_inputs(root / name) == Inputs([root / name], None, [], {})


def test_our_own_output_is_not_labeled_with_the_rest(tmp_path: Path) -> None:
    own = [f"frames-0a1b2c3d/x/0/{name}" for name in ("frame00.jpg", "frame01.jpg", ".source")]
    root = touch(tmp_path, "x/0.mp4", *own, "mlruns/1/2/artifacts/images/1.png")
    assert names_of(find_inputs(root)) == ["x/0.mp4"]
    assert names_of(find_inputs(root / "frames-0a1b2c3d")) == ["x/0"]


def test_inputs_without_clips_are_refused_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    touch(tmp_path / "d", "b.xyz", "c.xyz")
    for name, message in {
        "nowhere": "does not exist",
        "x" * 300: "cannot be read: File name too long",
        "loop": "cannot be read: Too many levels of symbolic links",
        "pipe": "is no regular file",
        "d": "holds no clips, but 2 other files or folders, first 'b.xyz'",
    }.items():
        with pytest.raises(UserError, match=f"^input: .*{message}") as raised:
            find_inputs(tmp_path / name)
        assert "\n" not in str(raised.value)
