"""annotations.json: the clips of each split, with their frames and targets.

The layout is that of K400-Tiny, with the additional keys `group` and `data_digest`:

    {"categories": {label: id},
     "train": [{"video": folder, "segment": [first, last], "target": id, "group": source}, ...],
     "val": [...], "test": [...], "data_digest": "..."}
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from k400tiny_lib.config import AUTO
from k400tiny_lib.config.value_types import ALL_CLIPS
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import combine_digests, problem_of

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: a folder of frames and its class.

    Attributes:
        video: name of the folder below `data_path`.
        segment: first and last frame index, inclusive, in natural order of the file names.
        target: class id.
        group: the source video (YouTube id) that the clip was cut from.
    """

    video: str
    segment: tuple[int, int]
    target: int
    group: str

    @property
    def num_frames(self) -> int:
        """Frames in the segment."""
        return self.segment[1] - self.segment[0] + 1


def class_names_by_id(categories: Mapping[str, int], num_classes: int) -> list[str]:
    """Labels in the order of their ids; an id without a label gets its number as label."""
    by_id = {index: label for label, index in categories.items()}
    return [by_id.get(index, str(index)) for index in range(num_classes)]


def unknown_labels(categories: Mapping[str, int], class_names: Sequence[str]) -> list[str]:
    """Sorted labels of the data that a model does not have under the same class id."""
    known = dict(enumerate(class_names))
    return sorted(label for label, index in categories.items() if known.get(index) != label)


@dataclass(frozen=True)
class Annotations:
    """The clips of the three splits and the ids of the labels."""

    categories: dict[str, int]
    splits: dict[str, list[Clip]]
    data_digest: str = ""

    @property
    def clips(self) -> Iterable[Clip]:
        """All clips, split by split."""
        return (clip for name in SPLITS for clip in self.splits[name])

    def clips_of(self, split: str) -> list[Clip]:
        """The clips of a split, or with `all` of all splits, one after the other."""
        return list(self.clips) if split == ALL_CLIPS else self.splits[split]

    @property
    def num_classes(self) -> int:
        """Size of the head that the targets need: the largest id plus one."""
        return max(self.categories.values()) + 1

    @property
    def class_names(self) -> list[str]:
        """Labels in the order of their ids; see `class_names_by_id`."""
        return class_names_by_id(self.categories, self.num_classes)

    def split_digest(self, split: str) -> str:
        """Content digest of a split: of the data it is taken from, its clips and their targets."""
        clips = (f"{c.video} {c.segment} {c.target} {c.group}" for c in self.clips_of(split))
        return combine_digests([self.data_digest, *clips])

    def to_json(self) -> str:
        """The content of the file; the same annotations give the same text."""
        content: dict[str, Any] = {"categories": self.categories}
        content |= {name: [asdict(clip) for clip in self.splits[name]] for name in SPLITS}
        return json.dumps(content | {"data_digest": self.data_digest})

    @classmethod
    def from_json(cls, text: str, path: str) -> "Annotations":
        """Parse and check the content of the file; `path` is for the message.

        Raises:
            UserError: if it is not an annotations file.
        """
        try:
            content = json.loads(text)
            categories = {str(label): int(index) for label, index in content["categories"].items()}
            splits = {name: [_clip(entry) for entry in content[name]] for name in SPLITS}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"annotations: {path} is not an annotations file "
                f"({type(error).__name__}: {error}). Needed: what prepare_data writes."
            ) from None
        if not categories:
            raise UserError(f"annotations: {path} names no categories.")
        annotations = cls(categories, splits, str(content.get("data_digest", "")))
        ids = set(categories.values())
        for clip in annotations.clips:
            if clip.target not in ids or clip.segment[0] < 0 or clip.num_frames < 1:
                raise UserError(
                    f"annotations: {path} gives clip {clip.video} the target {clip.target} and the "
                    f"segment {list(clip.segment)}. Needed: a category's id, first <= last."
                )
        return annotations


def _clip(entry: dict[str, Any]) -> Clip:
    first, last = entry["segment"]
    video = str(entry["video"])
    group = str(entry.get("group", video))
    return Clip(video, (int(first), int(last)), int(entry["target"]), group)


def read_annotations(path: Path) -> Annotations:
    """Read annotations.json.

    Raises:
        UserError: if the file is missing or is not an annotations file.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"annotations: {path} cannot be read: {error}.") from None
    return Annotations.from_json(text, str(path))


def _folder_problem(path: Path) -> str:
    return problem_of(path) or ("" if path.is_dir() else "is no folder")


def check_annotations(
    annotations: Annotations, data_path: Path, clip_len: int, num_classes: int | str = AUTO
) -> None:
    """Refuse missing data and parameters that do not fit it, before hours of work.

    `num_classes` is the size of the model's head, or `auto` for as many as the annotations have.

    Raises:
        UserError: if a clip's folder is missing below `data_path`, `clip_len` is beyond the frames
            of every clip, or `num_classes` is below the ids of the targets.
    """
    clips = list(annotations.clips)
    problems = {clip.video: _folder_problem(data_path / clip.video) for clip in clips}
    if missing := [clip.video for clip in clips if problems[clip.video]]:
        raise UserError(
            f"data_path: {data_path} lacks {len(missing)} of {len(clips)} annotated clips, "
            f"first {missing[0]}, which {problems[missing[0]]}. Needed: the directory that "
            "prepare_data has read."
        )
    longest = max((clip.num_frames for clip in clips), default=0)
    if clip_len > longest:
        raise UserError(
            f"clip_len: {clip_len} frames, but the longest clip has {longest}. "
            f"Needed: at most {longest}."
        )
    if num_classes != AUTO and int(num_classes) < annotations.num_classes:
        raise UserError(
            f"num_classes: {num_classes}, but the annotations have ids up to "
            f"{annotations.num_classes - 1}. Needed: at least {annotations.num_classes}, or auto."
        )
