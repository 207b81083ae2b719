"""What `predict` labels: a frame folder, a video, or every clip in a directory of either."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from k400tiny_lib.errors import UserError, printable
from k400tiny_lib.files import problem_of
from k400tiny_lib.media.listing import describe_left_out, list_directory, may_be_clips
from k400tiny_lib.media.video import VIDEO_SUFFIXES

_NEEDED = "a frame folder, a video, or a directory of either"
_CLIPS = f"folders of .jpg or .png frames, or videos ({', '.join(VIDEO_SUFFIXES)})"


class Inputs(NamedTuple):
    """What is labeled, and what is not.

    Attributes:
        clips: frame folders and videos, in natural order of their names.
        root: the directory that they were found in; None if the input is itself the clip.
        unusable: messages about clips that cannot be read, to judge by their names and kinds.
        left_out: whatever else is in the directory: relative path -> reason.
    """

    clips: list[Path]
    root: Path | None
    unusable: list[str]
    left_out: Mapping[str, str]

    def describe(self) -> str:
        """What cannot be read and what was left out, as lines for the console."""
        lines = [f"skipped: {message}" for message in self.unusable]
        return "".join(f"{line}\n" for line in lines + describe_left_out(self.left_out))

    def skipped(self) -> list[str]:
        """A line for everything in the directory that is not labeled."""
        left_out = self.left_out.items()
        return [*self.unusable, *(f"left out {printable(path)}: {why}" for path, why in left_out)]

    def problem(self, num_failed: int) -> str:
        """Why somebody could miss a label; empty if nothing looks like a clip without one.

        Args:
            num_failed: clips that turned out to have no label.
        """
        unread, missed = len(self.unusable) + num_failed, len(may_be_clips(self.left_out))
        total = len(self.clips) + len(self.unusable)
        texts = [f"{unread} of {total} could not be labeled"] if unread else []
        texts += [f"{missed} that may be clips were left out"] if missed else []
        return " and ".join(texts)


def find_inputs(path: Path) -> Inputs:
    """Find the clips at a path: the path itself, or those in it and in its sub-folders.

    Raises:
        UserError: if there are none.
    """
    shown = printable(str(path))
    if problem := problem_of(path):
        raise UserError(f"input: {shown} {problem}. Needed: {_NEEDED}.")
    if path.is_file():
        return Inputs([path], None, [], {})
    if not path.is_dir():
        raise UserError(f"input: {shown} is no regular file. Needed: {_NEEDED}.")
    listing = list_directory(path, "input", _NEEDED, is_clip=True)
    names, problems = listing.to_label()
    unusable = [f"{printable(str(path / name))}: {why}." for name, why in problems.items()]
    if not names and not unusable:
        raise UserError(
            f"input: {shown} holds no clips{_instead(listing.left_out)}. Needed: {_CLIPS}."
        )
    is_clip = listing.clips == ("",)
    return Inputs(
        [path / name for name in names], None if is_clip else path, unusable, listing.left_out
    )


def _instead(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return ""
    path, reason = next(iter(left_out.items()))
    return f", but {len(left_out)} other files or folders, first {printable(path)!r} ({reason})"
