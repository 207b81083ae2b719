"""From a source of clips to annotations, a table of the clips and a report."""

from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import SPLITS, Annotations, Clip
from k400tiny_lib.data.preparation import splits
from k400tiny_lib.data.preparation.content_index import open_index
from k400tiny_lib.data.preparation.report import data_report
from k400tiny_lib.data.preparation.validation import MISSING, check_clips
from k400tiny_lib.data.sources.base import Source
from k400tiny_lib.data.sources.ground_truth import Dropped, drop_rows, refuse_if_most_are_missing
from k400tiny_lib.data.sources.labels import categories_of
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import combine_named_digests


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


def prepare(config: Config, source: Source) -> Prepared:
    """Bring the clips to disk, check them, map their labels and split them by source video.

    Raises:
        UserError: if the source cannot be read, has bad clips and `on_bad_clip` is fail, or cannot
            be split.
    """
    problems = source.bring()
    truth = source.ground_truth
    reasons = [problems.get(name, "") for name in truth.table["folder_name"]]
    table, not_brought = drop_rows(truth.table, reasons)
    table, bad = _keep_good(config, table, source.directory)
    dropped = sorted([*truth.dropped, *not_brought, *bad], key=lambda row: row.video)
    _refuse_bad(config, table, dropped)

    table["group"] = splits.unite_groups(table["group"], table["content"])
    table["split"], notes = _split(table, config)
    categories = categories_of(table["label"])
    table["target"] = table["label"].map(categories)

    digest = combine_named_digests(dict(zip(table["folder_name"], table["digest"], strict=True)))
    annotations = Annotations(categories, _clips_by_split(table), digest)
    prepared = replace(truth, table=table, dropped=dropped, notes=[*truth.notes, *notes])
    report = data_report(config, prepared, digest)
    return Prepared(annotations, table, report, source.directory)


def _keep_good(
    config: Config, table: pd.DataFrame, directory: Path
) -> tuple[pd.DataFrame, list[Dropped]]:
    """Check the clips; add digest, content and num_frames to the rows of the good ones."""
    names = table["folder_name"]
    checked = check_clips(directory, names, open_index(config))
    missing = [name for name in names if checked[name].problem == MISSING]
    refuse_if_most_are_missing("folders", missing, len(names), directory)
    columns = ["digest", "content", "num_frames", "problem"]
    checks = pd.DataFrame([astuple(checked[name]) for name in names], table.index, columns)
    problems = checks.pop("problem")
    return drop_rows(table.join(checks), problems)


def _refuse_bad(config: Config, table: pd.DataFrame, dropped: list[Dropped]) -> None:
    if dropped and config.on_bad_clip == "fail":
        lines = [f"{clip.video}: {clip.reason}" for clip in dropped]
        raise UserError(f"on_bad_clip: {len(dropped)} clips are bad: {'; '.join(lines)}.")
    if table.empty:
        raise UserError(
            f"data_path: none of the {len(dropped)} clips can be used, first {dropped[0].video}: "
            f"{dropped[0].reason}."
        )


def _split(table: pd.DataFrame, config: Config) -> tuple["pd.Series[str]", list[str]]:
    """The split of each clip, the official ones where there are any, and notes about that."""
    arguments = (config.val_fraction, config.test_fraction, config.seed)
    if not table["split"].any():
        return splits.assign_splits(table, *arguments), []
    split = splits.complete_official_splits(table, *arguments)
    taken = sorted(set(split) - set(table["split"]))
    note = "the official splits are kept (use_official_splits=False draws new ones)"
    if taken:
        note += f"; {' and '.join(taken)} is taken from train, the data has none"
    return split, [note]


def _clips_by_split(table: pd.DataFrame) -> dict[str, list[Clip]]:
    clips: dict[str, list[Clip]] = {name: [] for name in SPLITS}
    for row in table.itertuples():
        clip = Clip(row.folder_name, (0, row.num_frames - 1), row.target, row.group)
        clips[row.split].append(clip)
    return clips
