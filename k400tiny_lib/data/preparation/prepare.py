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
from k400tiny_lib.data.preparation.report import data_report, frame_notes, official_split_notes
from k400tiny_lib.data.preparation.selection import (
    RareClass,
    drop_contradicting_copies,
    drop_rare,
    find_rare_classes,
    list_rare,
    refusal,
)
from k400tiny_lib.data.preparation.validation import MISSING, ClipCheck, check_clips
from k400tiny_lib.data.sources.base import Source
from k400tiny_lib.data.sources.ground_truth import (
    Dropped,
    GroundTruth,
    drop_rows,
    refuse_if_most_are_missing,
)
from k400tiny_lib.data.sources.labels import categories_of
from k400tiny_lib.errors import UserError
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
    reasons = [problems.get(name, "") for name in truth.table["folder_name"]]
    table, not_brought = drop_rows(truth.table, reasons)
    table, bad, notes = _keep_good(config, table, source.directory)
    table, contradicting, note = drop_contradicting_copies(table)
    dropped = sorted([*truth.dropped, *not_brought, *bad, *contradicting], key=lambda r: r.video)
    truth = replace(truth, table=table, dropped=dropped, notes=[*truth.notes, *notes, *note])
    _refuse_bad(config, truth)

    truth, rare, train_only = _settle_rare_classes(config, truth)
    table, notes = truth.table, list(truth.notes)
    table["split"], more = _split(table, config, train_only)
    categories = categories_of(table["label"])
    if table["label"].nunique() == 1:
        more.append(f"all clips have the label {table['label'].iloc[0]!r}: nothing can be learned")
        if config.gt_csv == NONE:
            more[-1] += ". The folders directly in data_path are the classes"
    table["target"] = table["label"].map(categories)

    digest = combine_named_digests(dict(zip(table["folder_name"], table["digest"], strict=True)))
    annotations = Annotations(categories, _clips_by_split(table), digest)
    report = data_report(config, replace(truth, notes=[*notes, *more]), rare, digest)
    return Prepared(annotations, table, report, source.directory)


def _keep_good(
    config: Config, table: pd.DataFrame, directory: Path
) -> tuple[pd.DataFrame, list[Dropped], list[str]]:
    """Check the clips; add what is found to the rows of the good ones. Also returns notes."""
    names = table["folder_name"]
    checked = check_clips(directory, names, open_index(config))
    missing = [name for name in names if checked[name].problem == MISSING]
    refuse_if_most_are_missing("folders", missing, len(names), directory)
    columns = [field.name for field in fields(ClipCheck)]
    checks = pd.DataFrame([astuple(checked[name]) for name in names], table.index, columns)
    checks = checks.rename(columns={"content_digest": "content"})
    problems = checks.pop("problem")
    kept, bad = drop_rows(table.join(checks), problems)
    return kept, bad, frame_notes(kept)


def _refuse_bad(config: Config, truth: GroundTruth) -> None:
    dropped, message = truth.dropped, ""
    if dropped and config.on_bad_clip == "fail":
        lines = [f"{clip.video}: {clip.reason}" for clip in dropped[:_LISTED]]
        if (more := len(dropped) - _LISTED) > 0:
            lines.append(f"and {more} more, see annotations/data_report.json of the run")
        message = f"on_bad_clip: {len(dropped)} clips are bad: {'; '.join(lines)}."
    elif truth.table.empty:
        message = (
            f"data_path: none of the {len(dropped)} clips can be used, first {dropped[0].video}: "
            f"{dropped[0].reason}."
        )
    if message:
        raise Refused(message, data_report(config, truth))


def _settle_rare_classes(
    config: Config, truth: GroundTruth
) -> tuple[GroundTruth, list[RareClass], set[str]]:
    """Unite the sources of copies, and do what `on_rare_class` says.

    Returns:
        The ground truth with the clips that are left, the rare classes, and those that stay in
        train.
    """
    table = truth.table
    table["own_group"] = table["group"]
    table["group"] = splits.unite_groups(table["group"], table["content"])
    rare = find_rare_classes(table, truth.dropped)
    if not rare:
        return truth, [], set()
    refused = Refused(refusal(rare, config, truth.sources_known), data_report(config, truth, rare))
    if config.on_rare_class == "fail":
        raise refused
    if config.on_rare_class == "drop":
        table, dropped, note = drop_rare(table, rare)
        dropped = sorted([*truth.dropped, *dropped], key=lambda row: row.video)
        truth, train_only = replace(truth, table=table, dropped=dropped), set[str]()
    else:
        in_train = table[table["split"].isin(["train", ""])]
        train_only = splits.unsplittable_classes(in_train, rare[0].needed)
        table = in_train[~in_train["label"].isin(train_only)]
        also = sorted(train_only - {one.label for one in rare})
        listed = list_rare(one.short for one in rare)
        note = f"on_rare_class=train: {len(rare)} class(es) stay in train: {listed}"
        note += f"; {', '.join(map(repr, also))} share their sources" if also else ""
    if table.empty:
        raise refused
    return replace(truth, notes=[*truth.notes, note]), rare, train_only


def _split(
    table: pd.DataFrame, config: Config, train_only: Collection[str]
) -> tuple["pd.Series[str]", list[str]]:
    """The split of each clip, the official ones where there are any, and notes about that."""
    arguments = (config.val_fraction, config.test_fraction, config.seed, train_only)
    if not table["split"].any():
        return splits.assign_splits(table, *arguments), []
    split = splits.complete_official_splits(table, *arguments)
    taken = sorted(set(split) - set(table["split"]))
    note = "the official splits are kept (use_official_splits=False draws new ones)"
    if taken:
        note += f"; {' and '.join(taken)} is taken from train, the data has none"
    return split, [note, *official_split_notes(table.assign(split=split))]


def _clips_by_split(table: pd.DataFrame) -> dict[str, list[Clip]]:
    clips: dict[str, list[Clip]] = {name: [] for name in SPLITS}
    for row in table.itertuples():
        clip = Clip(row.folder_name, (0, row.num_frames - 1), row.target, row.group)
        clips[row.split].append(clip)
    return clips
