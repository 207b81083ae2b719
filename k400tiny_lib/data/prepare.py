"""From a source of clips to annotations, split tables and a report about the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.annotations import SPLITS, Annotations, Clip
from k400tiny_lib.data.content import combine, combine_named, file_digest
from k400tiny_lib.data.index import ContentIndex
from k400tiny_lib.data.ingest import FrameSettings, decode_videos, plan, video_digests
from k400tiny_lib.data.labels import categories_of
from k400tiny_lib.data.report import data_report
from k400tiny_lib.data.rows import Dropped, drop_rows
from k400tiny_lib.data.sample import GROUND_TRUTH_FILE, IMAGES_FOLDER, render_sample
from k400tiny_lib.data.sources import SAMPLE, Source, holds_videos, read_source
from k400tiny_lib.data.splits import assign_splits, complete_official_splits, unite_groups
from k400tiny_lib.data.storage import absolute, fetch, is_remote, local_path, upload
from k400tiny_lib.data.validation import check_clips
from k400tiny_lib.errors import UserError

_RENDERER = Path(__file__).with_name("sample.py")
_INDEX = Path(".k400tiny", "content.sqlite")
_FRAMES = FrameSettings()


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


def clip_directory(config: Config) -> Path:
    """Where the clip folders are, or will be once they are rendered, decoded or fetched."""
    output = local_path(config.output_dir)
    if config.data_path == SAMPLE:
        # Another renderer or seed draws other clips; they must not mix in one directory.
        name = f"sample-{combine([file_digest(_RENDERER), str(config.seed)])[:8]}"
        return output / name / IMAGES_FOLDER
    if holds_videos(config.data_path, config.gt_csv):
        # Other videos, or other frames of them, must not mix either.
        return output / f"frames-{combine([_FRAMES.digest, absolute(config.data_path)])[:8]}"
    return local_path(config.data_path)


def ground_truth_file(config: Config) -> Path | None:
    """The CSV that belongs to `clip_directory`; None where folder names are the labels."""
    if config.data_path == SAMPLE:
        return clip_directory(config).parent / GROUND_TRUTH_FILE
    return None if config.gt_csv == NONE else local_path(config.gt_csv)


def check_source(config: Config) -> None:
    """Refuse a source that cannot be read, before anything is rendered or decoded.

    Raises:
        UserError: if the directory or the CSV is missing or has no layout that we know, or most of
            what it names does not exist.
    """
    if config.data_path == SAMPLE:
        return
    source = _read(config)
    if source.videos is None and not is_remote(config.data_path):
        names = source.table["folder_name"]
        root = clip_directory(config)
        _refuse_if_missing([name for name in names if not (root / name).is_dir()], names, root)


def source_is_ready(config: Config) -> bool:
    """Whether the clips are all there, so that `source_digest` can tell their content."""
    if config.data_path == SAMPLE:
        file = ground_truth_file(config)
        return file is not None and file.exists()
    if is_remote(config.data_path):
        return False  # fetching is the step's work
    source = _read(config)
    if source.videos is None:
        return True
    return not plan(source.videos, clip_directory(config), _FRAMES, _index(config))[0]


def source_digest(config: Config) -> str:
    """Digest of everything that a preparation's result depends on, beside its parameters.

    The bytes of the ground truth, of the videos and of the clips; what has not changed since the
    last look comes from the index. Where decoded or rendered frames are kept is part of it too,
    because later steps read them there.

    Raises:
        UserError: if the source cannot be read.
    """
    root, csv = clip_directory(config), ground_truth_file(config)
    source, index = _read(config), _index(config)
    verdicts = check_clips(root, source.table["folder_name"], index)
    parts = [
        file_digest(csv) if csv else "",
        combine_named({k: v.digest for k, v in verdicts.items()}),
    ]
    parts += [clip for row in source.rows.dropped for clip in (row.video, row.reason)]
    if source.videos is not None:
        parts.append(combine_named(video_digests(source.videos, index)))
    if root != local_path(config.data_path):
        parts.append(str(root))
    return combine(parts)


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
    source, index = _read(config), _index(config)
    table, dropped = source.table, list(source.rows.dropped)
    if source.videos is not None:
        bad = decode_videos(
            source.videos,
            root,
            index,
            scheduler=config.dask_scheduler,
            workers=config.decode_workers,
            settings=_FRAMES,
        )
        reasons = {clip.video: clip.reason for clip in bad}
        table, bad = drop_rows(table, [reasons.get(name, "") for name in table["folder_name"]])
        dropped += bad
    elif config.data_path != SAMPLE:
        fetch(config.data_path, "data_path")
    table, bad = _keep_good(table, root, index)
    dropped = sorted([*dropped, *bad], key=lambda clip: clip.video)
    _refuse_bad(config, table, dropped)

    digest = combine_named(dict(zip(table["folder_name"], table["digest"], strict=True)))
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


def _read(config: Config) -> Source:
    """The source; the rendered sample is frame folders with a CSV."""
    data_path, gt_csv = config.data_path, config.gt_csv
    if data_path == SAMPLE:
        data_path, gt_csv = str(clip_directory(config)), str(ground_truth_file(config))
    return read_source(data_path, gt_csv, config.group_by, config.use_official_splits)


def _index(config: Config) -> ContentIndex:
    return ContentIndex(local_path(config.output_dir) / _INDEX)


def _keep_good(
    table: pd.DataFrame, root: Path, index: ContentIndex
) -> tuple[pd.DataFrame, list[Dropped]]:
    """Check the clips; add digest, content and num_frames to the rows of the good ones."""
    verdicts = check_clips(root, table["folder_name"], index)
    found = [verdicts[name] for name in table["folder_name"]]
    missing = [name for name, v in verdicts.items() if v.problem == "no such folder"]
    _refuse_if_missing(missing, table["folder_name"], root)
    table = table.assign(
        digest=[v.digest for v in found],
        content=[v.content for v in found],
        num_frames=[v.num_frames for v in found],
    )
    return drop_rows(table, [v.problem for v in found])


def _refuse_if_missing(missing: list[str], names: "pd.Series[str]", root: Path) -> None:
    """Many missing folders mean that data_path and gt_csv do not belong together."""
    if 2 * len(missing) > len(names):
        raise UserError(
            f"gt_csv: {len(missing)} of {len(names)} folders do not exist in {root}, first "
            f"{missing[0]!r}. Needed: folder_name as it stands below data_path."
        )


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
