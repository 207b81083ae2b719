"""Clips of none of the model's classes, as `unknown_path` names them: found and read, no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from k400tiny_lib.errors import UserError, printable
from k400tiny_lib.files import combine_named_digests, file_digest, problem_of
from k400tiny_lib.media.frames import clip_digest, list_frames, read_images
from k400tiny_lib.media.listing import list_directory
from k400tiny_lib.media.picture import Image
from k400tiny_lib.media.sampling import view_indices
from k400tiny_lib.media.video import VIDEO_SUFFIXES, sample_video

_NEEDED = "a frame folder, a video, or a directory of either"


class UnknownClips(NamedTuple):
    """What there is at `unknown_path`.

    Attributes:
        clips: frame folders and videos by their names, in natural order.
        unusable: clips that cannot be read, to judge by their names and kinds: name -> why.
        left_out: whatever else is there: name -> why.
    """

    clips: Mapping[str, Path]
    unusable: Mapping[str, str]
    left_out: Mapping[str, str]


def find_unknown(path: Path) -> UnknownClips:
    """Find the clips at a path: the path itself, or those in it and in its sub-folders.

    Raises:
        UserError: if there are none.
    """
    shown = printable(str(path))
    if problem := problem_of(path):
        raise UserError(f"unknown_path: {shown} {problem}. Needed: {_NEEDED}.")
    if path.is_file():
        return UnknownClips({path.name: path}, {}, {})
    listing = list_directory(path, "unknown_path", _NEEDED, is_clip=True)
    names, unusable = listing.to_label()
    if not names:
        raise UserError(
            f"unknown_path: {shown} holds no readable clips. Needed: folders of .jpg or .png "
            f"frames, or videos ({', '.join(VIDEO_SUFFIXES)})."
        )
    clips = {name or path.name: path / name for name in names}
    return UnknownClips(clips, unusable, listing.left_out)


def digest_unknown(path: Path) -> str:
    """Digest of the names and the bytes of the clips at a path; raises like `find_unknown`."""
    clips = find_unknown(path).clips
    return combine_named_digests(
        {name: clip_digest(p) if p.is_dir() else file_digest(p) for name, p in clips.items()}
    )


def read_unknown(path: Path, clip_len: int, views: int) -> Image:
    """The frames of a clip, one view after the other.

    Returns:
        uint8 (views * clip_len, H, W, 3), RGB; of a video, squares as prepare_data makes them.

    Raises:
        UserError: if it cannot be read; without the name of a parameter.
    """
    try:
        if not path.is_dir():
            return sample_video(path, clip_len, views=views).frames
        indices = view_indices(len(list_frames(path).frames), clip_len, views)
        return read_images(path, indices.ravel().tolist())
    except UserError as error:
        raise UserError(str(error).removeprefix("data_path: ")) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
