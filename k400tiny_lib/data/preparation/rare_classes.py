"""Classes that have fewer sources than there are splits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from k400tiny_lib.config import Config
from k400tiny_lib.data.preparation.splits import source_counts, splits_to_draw
from k400tiny_lib.data.sources.ground_truth import Dropped, GroundTruth
from k400tiny_lib.data.sources.labels import label_key
from k400tiny_lib.errors import listed

_LISTED, _DROPPED_LISTED = 20, 3  # classes in a message, dropped clips of each


@dataclass(frozen=True)
class RareClass:
    """A class that has fewer sources than there are splits.

    Attributes:
        label: the class.
        needed: how many sources it needs.
        sources, clips: how many it has.
        sources_before, clips_before: the same with the dropped clips, each label counted.
        dropped: the clips of the class that were dropped, and why.
    """

    label: str
    needed: int
    sources: int
    clips: int
    sources_before: int
    clips_before: int
    dropped: tuple[str, ...]

    @property
    def short(self) -> str:
        """Where the console names the dropped clips anyway."""
        return f"{self.label!r} ({self.sources} source(s) of {self.needed})"

    def __str__(self) -> str:
        text = f"class {self.label!r} has clips of {self.sources} source(s)"
        if self.dropped:
            clips = listed(self.dropped, _DROPPED_LISTED, "; ")
            return f"{text} ({self.sources_before} before {len(self.dropped)} dropped: {clips})"
        if self.sources_before > self.sources:
            return f"{text} ({self.sources_before}, but some show the same or have other labels)"
        return text


def find_rare_classes(truth: GroundTruth) -> list[RareClass]:
    """The classes with too few sources for the splits that are to be drawn.

    Args:
        truth: its table has the columns folder_name, label, split, own_group, and group, in which
            the sources of copies are united.
    """
    needed = len(splits_to_draw(truth.table)) + 1
    if needed == 1:
        return []
    table = truth.table[truth.table["split"].isin(["train", ""])]
    losses: dict[str, list[Dropped]] = {}
    for clip in truth.dropped:
        for label in clip.labels:
            losses.setdefault(_key(label), []).append(clip)
    rare = []
    for label, count in source_counts(table).items():
        if count >= needed:
            continue
        clips, lost = table[table["label"] == label], losses.get(_key(label), [])
        sources = set(clips["own_group"]) | {clip.source or clip.video for clip in lost}
        before = len(sources), len(clips) + len(lost)
        reasons = tuple(f"{clip.video}: {clip.reason}" for clip in lost)
        rare.append(RareClass(label, needed, count, len(clips), *before, reasons))
    return rare


def note_lost_classes(table: pd.DataFrame, dropped: Iterable[Dropped]) -> list[str]:
    """A note about classes of which no clip is left."""
    kept = {_key(label) for label in table["label"]}
    labels = {_key(label): label for clip in dropped for label in clip.labels}
    lost = [repr(label) for key, label in sorted(labels.items()) if key and key not in kept]
    text = f"{len(lost)} class(es) have no clip left, since all were dropped: "
    return [text + listed(lost, _LISTED)] if lost else []


def _key(label: str) -> str:
    return label_key(label).replace("_", " ")  # as in names of class folders


def list_rare(texts: Iterable[str]) -> str:
    """Texts about the rare classes in one line, at most 20."""
    return listed(list(texts), _LISTED, "; ")


def refusal(rare: Sequence[RareClass], config: Config, sources_known: bool) -> str:
    """The message where rare classes cannot be split, and what may be done."""
    needed = rare[0].needed
    remedies = [f"{needed} sources of each"]
    if config.on_rare_class == "fail":
        remedies.append("on_rare_class=drop to leave these classes out")
        remedies.append("on_rare_class=train to keep them in train only")
    if sources_known and all(one.clips >= needed for one in rare):  # else it would not help
        remedies.append("group_by=none to split single clips")
    left = "" if config.on_rare_class == "fail" else " No other class is left."
    return (
        f"on_rare_class: {len(rare)} class(es) have too few sources for {needed} splits: "
        f"{list_rare(map(str, rare))}.{left} Needed: {', or '.join(remedies)}. The run has "
        "annotations/data_report.json with all of them."
    )
