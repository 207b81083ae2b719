"""From a source of clips to annotations, split tables and a report about the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import SPLITS, Annotations, Clip
from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.data.preparation.decoding import decode_videos
from k400tiny_lib.data.preparation.report import data_report
from k400tiny_lib.data.preparation.splits import (
    assign_splits,
    complete_official_splits,
    unite_groups,
)
from k400tiny_lib.data.preparation.validation import check_clips
from k400tiny_lib.data.sources.base import SAMPLE
from k400tiny_lib.data.sources.ground_truth import Dropped, drop_rows
from k400tiny_lib.data.sources.labels import categories_of
from k400tiny_lib.data.sources.origin import (
    FRAMES,
    clip_directory,
    content_index,
    read_config_source,
    refuse_if_missing,
)
from k400tiny_lib.data.sources.rendered import GROUND_TRUTH_FILE, render_sample
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import absolute, combine_named_digests, fetch, is_remote, upload


@dataclass(frozen=True)
class Prepared:
    """What prepare_data leaves.

    Attributes:
        annotations: the clips of the three splits.
        table: one row per clip: folder_name, youtube_id, label, group, num_frames, content (the
            digest of what it shows), split, target.
        report: what was found, kept and dropped, ready for JSON.
    """

    annotations: Annotations
    table: pd.DataFrame
    report: dict[str, Any]


def prepare(config: Config) -> Prepared:
    """Bring the clips to disk, check them, map their labels and split them by source.

    Raises:
        UserError: if the source cannot be read, has bad clips and `on_bad_clip` is fail, or cannot
            be split.
    """
    root = clip_directory(config)
    if config.data_path == SAMPLE and not (root.parent / GROUND_TRUTH_FILE).exists():
        with tqdm(desc="render", unit="clip", mininterval=1) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            render_sample(root.parent, seed=config.seed, progress=show)
    source, index = read_config_source(config), content_index(config)
    table, dropped = source.table, list(source.rows.dropped)
    if source.videos is not None:
        bad = decode_videos(
            source.videos,
            root,
            index,
            scheduler=config.dask_scheduler,
            workers=config.decode_workers,
            settings=FRAMES,
        )
        reasons = {clip.video: clip.reason for clip in bad}
        table, bad = drop_rows(table, [reasons.get(name, "") for name in table["folder_name"]])
        dropped += bad
    elif config.data_path != SAMPLE:
        fetch(config.data_path, "data_path")
    table, bad = _keep_good(table, root, index)
    dropped = sorted([*dropped, *bad], key=lambda clip: clip.video)
    _refuse_bad(config, table, dropped)

    digest = combine_named_digests(dict(zip(table["folder_name"], table["digest"], strict=True)))
    table = table.drop(columns="digest")
    notes = list(source.notes)
    table["group"] = unite_groups(table["group"], table["content"])
    table["split"] = _split(table, config, notes)
    categories = categories_of(table["label"])
    table["target"] = table["label"].map(categories)
    splits: dict[str, list[Clip]] = {name: [] for name in SPLITS}
    for row in table.itertuples():
        clip = Clip(row.folder_name, (0, row.num_frames - 1), row.target, row.group)
        splits[row.split].append(clip)
    annotations = Annotations(categories, splits, digest)
    if source.videos is not None and is_remote(config.output_dir):
        upload(root, f"{absolute(config.output_dir)}/{root.name}", "output_dir")
    report = data_report(config, table, source.rows, dropped, notes, digest)
    return Prepared(annotations, table, report)


def _keep_good(
    table: pd.DataFrame, root: Path, index: ContentIndex
) -> tuple[pd.DataFrame, list[Dropped]]:
    """Check the clips; add digest, content and num_frames to the rows of the good ones."""
    verdicts = check_clips(root, table["folder_name"], index)
    found = [verdicts[name] for name in table["folder_name"]]
    missing = [name for name, v in verdicts.items() if v.problem == "no such folder"]
    refuse_if_missing(missing, table["folder_name"], root)
    table = table.assign(
        digest=[v.digest for v in found],
        content=[v.content for v in found],
        num_frames=[v.num_frames for v in found],
    )
    return drop_rows(table, [v.problem for v in found])


def _refuse_bad(config: Config, table: pd.DataFrame, dropped: list[Dropped]) -> None:
    if dropped and config.on_bad_clip == "fail":
        lines = [f"{clip.video}: {clip.reason}" for clip in dropped]
        raise UserError(f"on_bad_clip: {len(dropped)} clips are bad: {'; '.join(lines)}.")
    if table.empty:
        raise UserError(
            f"data_path: none of the {len(dropped)} clips can be used, first {dropped[0].video}: "
            f"{dropped[0].reason}."
        )


def _split(table: pd.DataFrame, config: Config, notes: list[str]) -> "pd.Series[str]":
    arguments = (config.val_fraction, config.test_fraction, config.seed)
    if not table["split"].any():
        return assign_splits(table, *arguments)
    split = complete_official_splits(table, *arguments)
    taken = sorted(set(split) - set(table["split"]))
    notes.append(
        "the official splits are kept (use_official_splits=False draws new ones)"
        + (f"; {' and '.join(taken)} is taken from train, the CSV names none" if taken else "")
    )
    return split
