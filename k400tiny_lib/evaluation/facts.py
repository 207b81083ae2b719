"""What was evaluated, in facts for the report."""

from collections.abc import Sequence
from dataclasses import dataclass

from k400tiny_lib.data.annotations import SPLITS, Annotations, Clip
from k400tiny_lib.files import combine_digests
from k400tiny_lib.models.loaded import LoadedModel


@dataclass(frozen=True)
class Fact:
    """One line about data, model or run; `link` where there is a page to go to."""

    name: str
    value: str
    link: str | None = None


def split_digest(annotations: Annotations, split: str) -> str:
    """What a split *is*: the data it is taken from, and which clips with which targets."""
    clips = (
        f"{clip.video} {clip.segment} {clip.target} {clip.group}"
        for clip in annotations.splits[split]
    )
    return combine_digests([annotations.data_digest, *clips])


def data_facts(annotations: Annotations, split: str) -> list[Fact]:
    """Sizes and digests of the data."""
    sizes = "; ".join(f"{name} {_size(annotations.splits[name])}" for name in SPLITS)
    lengths = [clip.num_frames for clip in annotations.splits[split]]
    return [
        Fact("data", sizes),
        Fact("frames of a clip", f"{min(lengths)} to {max(lengths)}"),
        Fact("digest of the data", annotations.data_digest or "not noted in the annotations"),
        Fact(f"digest of {split}", split_digest(annotations, split)),
    ]


def _size(clips: Sequence[Clip]) -> str:
    return f"{len(clips)} clips of {len({clip.group for clip in clips})} sources"


def model_facts(subject: LoadedModel) -> list[Fact]:
    """Architecture, size, input and origin of the model."""
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    geometry = subject.geometry
    size = f"{geometry.clip_len} frames of {geometry.crop_size} x {geometry.crop_size} pixels"
    return [
        Fact(
            "model",
            f"{subject.architecture}, {parameters / 1e6:.1f} million parameters, "
            f"{len(subject.class_names)} classes",
        ),
        Fact("weights", subject.source),
        Fact("input", size),
    ]
