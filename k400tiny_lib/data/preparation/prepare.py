"""From a source of clips to annotations, a table of the clips and a report."""

from collections.abc import Collection
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.annotations import SPLITS, Annotations, Clip
from k400tiny_lib.data.preparation import splits
from k400tiny_lib.data.preparation.content_index import open_index
from k400tiny_lib.data.preparation.rare_classes import (
    RareClass,
    find_rare_classes,
    list_rare,
    note_lost_classes,
    refusal,
)
from k400tiny_lib.data.preparation.report import data_report, frame_notes, official_split_notes
from k400tiny_lib.data.preparation.validation import MISSING, ClipCheck, check_clips
from k400tiny_lib.data.sources.base import Source
from k400tiny_lib.data.sources.ground_truth import GroundTruth, refuse_if_most_are_missing
from k400tiny_lib.data.sources.labels import categories_of
from k400tiny_lib.errors import UserError, listed
from k400tiny_lib.files import combine_named_digests

_LISTED = 20  # clips in a message


@dataclass(frozen=True)
class Prepared:
    """The result of prepare_data.

    Attributes:
        annotations: the clips of the three splits.
        table: one row per clip: folder_name, youtube_id, label, group, digest and content (of its
            frames with and without their names), num_frames, split, target.
        report: see `data_report`.
        directory: where the clip folders are.
    """

    annotations: Annotations
    table: pd.DataFrame
    report: dict[str, Any]
    directory: Path


class Refused(UserError):
    """Clips that cannot become a data set; `report` describes them as far as possible."""

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


def prepare(config: Config, source: Source) -> Prepared:
    """Bring the clips to disk, check them, map their labels and split them by source video.

    Raises:
        UserError: if the source cannot be read.
        Refused: if it has bad clips and `on_bad_clip` is fail, rare classes and `on_rare_class` is
            fail, or cannot be split.
    """
    problems = source.bring()
    truth = source.ground_truth
    truth = truth.drop(problems.get(name, "") for name in truth.table["folder_name"])
    truth = _drop_bad(config, truth, source.directory)
    truth = _drop_contradicting_copies(truth)
    truth = truth.note(*note_lost_classes(truth.table, truth.dropped))
    _refuse_bad(config, truth)
    truth, rare, train_only = _resolve_rare_classes(config, truth)
    truth = _split(config, truth, train_only)

    table = truth.table
    categories = categories_of(table["label"])
    if table["label"].nunique() == 1:
        note = f"all clips have the label {table['label'].iloc[0]!r}: nothing can be learned"
        if config.gt_csv == NONE:
            note += ". The folders directly in data_path are the classes"
        truth = truth.note(note)
    table["target"] = table["label"].map(categories)
    digest = combine_named_digests(dict(zip(table["folder_name"], table["digest"], strict=True)))
    annotations = Annotations(categories, _clips_by_split(table), digest)
    return Prepared(annotations, table, data_report(config, truth, rare, digest), source.directory)


def _drop_bad(config: Config, truth: GroundTruth, directory: Path) -> GroundTruth:
    """Check the clips; what is found becomes columns of the good ones."""
    names = truth.table["folder_name"]
    checked = check_clips(directory, names, open_index(config))
    missing = [name for name in names if checked[name].problem == MISSING]
    refuse_if_most_are_missing("folders", missing, len(names), directory)
    columns = [field.name for field in fields(ClipCheck)]
    rows = [astuple(checked[name]) for name in names]
    checks = pd.DataFrame(rows, truth.table.index, columns)
    checks = checks.rename(columns={"content_digest": "content"})
    problems = checks.pop("problem")
    truth = replace(truth, table=truth.table.join(checks)).drop(problems)
    return truth.note(*frame_notes(truth.table))


def _drop_contradicting_copies(truth: GroundTruth) -> GroundTruth:
    """Drop clips with the same frames under different labels, as rows that contradict one another.

    Copies with one label stay.
    """
    table = truth.table
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
    note = (
        f"{num_copies} clips have the same frames as another clip of their label (identical_clips "
        "in data_report.json): their sources count as one"
    )
    return truth.drop(reasons).note(*[note] if num_copies else [])


def _refuse_bad(config: Config, truth: GroundTruth) -> None:
    bad = [f"{clip.video}: {clip.reason}" for clip in truth.dropped]
    if bad and config.on_bad_clip == "fail":
        clips = listed(bad, _LISTED, "; ")
        report = ", see annotations/data_report.json of the run" if len(bad) > _LISTED else ""
        message = f"on_bad_clip: {len(bad)} clips are bad: {clips}{report}."
        raise Refused(message, data_report(config, truth))
    if truth.table.empty:
        message = f"data_path: none of the {len(bad)} clips can be used, first {bad[0]}."
        raise Refused(message, data_report(config, truth))


def _resolve_rare_classes(
    config: Config, truth: GroundTruth
) -> tuple[GroundTruth, list[RareClass], set[str]]:
    """Unite the sources of copies, and do what `on_rare_class` says.

    Returns:
        The ground truth with the clips that are left, the rare classes, and all classes that must
        stay in train.
    """
    table = truth.table
    table["own_group"] = table["group"]
    table["group"] = splits.unite_groups(table["group"], table["content"])
    rare = find_rare_classes(truth)
    if not rare:
        return truth, [], set()
    refused = Refused(refusal(rare, config, truth.sources_known), data_report(config, truth, rare))
    if config.on_rare_class == "fail":
        raise refused
    names, train_only = list_rare(one.short for one in rare), set[str]()
    if config.on_rare_class == "drop":
        text = "its class has {0.sources} source(s), too few for {0.needed} splits"
        reasons = {one.label: text.format(one) for one in rare}
        truth = truth.drop(reasons.get(label, "") for label in table["label"])
        note = f"on_rare_class=drop: {len(rare)} class(es) are left out: {names}"
        is_empty = truth.table.empty
    else:
        in_train = table[table["split"].isin(["train", ""])]
        train_only = splits.unsplittable_classes(in_train, rare[0].needed)
        note = f"on_rare_class=train: {len(rare)} class(es) stay in train: {names}"
        if also := sorted(train_only - {one.label for one in rare}):
            note += f"; {', '.join(map(repr, also))} share their sources"
        is_empty = in_train["label"].isin(train_only).all()
    if is_empty:
        raise refused
    return truth.note(note), rare, train_only


def _split(config: Config, truth: GroundTruth, train_only: Collection[str]) -> GroundTruth:
    """Fill the column split; notes say which splits are the official ones."""
    table = truth.table
    split = splits.assign_splits(
        table, config.val_fraction, config.test_fraction, config.seed, train_only
    )
    truth = replace(truth, table=table.assign(split=split))
    if not table["split"].any():
        return truth
    note = "the official splits are kept (use_official_splits=False draws new ones)"
    if taken := sorted(set(split) - set(table["split"])):
        note += f"; {' and '.join(taken)} is taken from train, the data has none"
    return truth.note(note, *official_split_notes(truth.table))


def _clips_by_split(table: pd.DataFrame) -> dict[str, list[Clip]]:
    clips: dict[str, list[Clip]] = {name: [] for name in SPLITS}
    for row in table.itertuples():
        clip = Clip(row.folder_name, (0, row.num_frames - 1), row.target, row.group)
        clips[row.split].append(clip)
    return clips
