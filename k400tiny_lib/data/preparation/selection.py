"""Clips that cannot stay as they are: copies under two labels, and classes with few sources."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from k400tiny_lib.config import Config
from k400tiny_lib.data.preparation import splits
from k400tiny_lib.data.sources.ground_truth import Dropped, drop_rows
from k400tiny_lib.data.sources.labels import label_key

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
        if not self.sources:
            text = f"class {self.label!r} is not the main label of any source"
        if self.dropped:
            more = len(self.dropped) - _DROPPED_LISTED
            listed = "; ".join(self.dropped[:_DROPPED_LISTED])
            listed += f"; and {more} more" if more > 0 else ""
            return f"{text} ({self.sources_before} before {len(self.dropped)} dropped: {listed})"
        if self.sources_before > self.sources:
            return f"{text} ({self.sources_before}, but some show the same or have other labels)"
        return text


def drop_contradicting_copies(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Dropped], list[str]]:
    """Drop clips with the same frames under different labels, as rows that contradict one another.

    Args:
        table: folder_name, label and content, one row per clip.

    Returns:
        The other clips, the dropped ones, and a note about copies with one label, which stay.
    """
    copies = table[table.duplicated("content", keep=False)].sort_values("folder_name")
    reasons = pd.Series("", table.index)
    num_copies = 0
    for _, same in copies.groupby("content"):
        if same["label"].nunique() == 1:
            num_copies += len(same)
            continue
        for row in same.itertuples():
            other = same[same["label"] != row.label].iloc[0]
            reasons[row.Index] = (
                f"the same frames as {other['folder_name']}, which has the label {other['label']!r}"
            )
    kept, dropped = drop_rows(table, reasons)
    if not num_copies:
        return kept, dropped, []
    return (
        kept,
        dropped,
        [
            f"{num_copies} clips have the same frames as another clip of their label "
            "(identical_clips in data_report.json): their sources count as one"
        ],
    )


def find_rare_classes(table: pd.DataFrame, dropped: Iterable[Dropped]) -> list[RareClass]:
    """The classes with too few sources for the splits that are to be drawn.

    Args:
        table: the clips: folder_name, youtube_id, label, split, and group, in which copies are
            united.
        dropped: the clips that are not in the table.
    """
    needed = len(splits.splits_to_draw(table)) + 1
    if needed == 1:
        return []
    table = table[table["split"].isin(["train", ""])]
    losses: dict[str, list[Dropped]] = {}
    for clip in dropped:
        for label in clip.labels:
            losses.setdefault(_key(label), []).append(clip)
    rare = []
    for label, count in splits.source_counts(table).items():
        if count >= needed:
            continue
        clips, lost = table[table["label"] == label], losses.get(_key(label), [])
        sources = set(clips["own_group"]) | {clip.source or clip.video for clip in lost}
        before = len(sources), len(clips) + len(lost)
        reasons = tuple(f"{clip.video}: {clip.reason}" for clip in lost)
        rare.append(RareClass(label, needed, count, len(clips), *before, reasons))
    return rare


def _key(label: str) -> str:
    return label_key(label).replace("_", " ")  # as in names of class folders


def list_rare(texts: Iterable[str]) -> str:
    """Texts about the rare classes in one line, at most 20."""
    texts = list(texts)
    more = f"; and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return "; ".join(texts[:_LISTED]) + more


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


def drop_rare(
    table: pd.DataFrame, rare: Sequence[RareClass]
) -> tuple[pd.DataFrame, list[Dropped], str]:
    """Leave out the clips of rare classes; also returns a note."""
    reasons = {
        one.label: f"its class has {one.sources} source(s), too few for {one.needed} splits"
        for one in rare
    }
    kept, dropped = drop_rows(table, [reasons.get(label, "") for label in table["label"]])
    listed = list_rare(one.short for one in rare)
    return kept, dropped, f"on_rare_class=drop: {len(rare)} class(es) are left out: {listed}"
