"""From a source of clips to annotations, split tables and a report about the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.annotations import SPLITS, Annotations, Clip
from k400tiny_lib.data.content import combine, data_digest, file_digest
from k400tiny_lib.data.labels import categories_of
from k400tiny_lib.data.sample import GROUND_TRUTH_FILE, IMAGES_FOLDER, render_sample
from k400tiny_lib.data.sources import SAMPLE, Dropped, find_clips, read_ground_truth
from k400tiny_lib.data.splits import assign_splits

_RENDERER = Path(__file__).with_name("sample.py")


@dataclass(frozen=True)
class Prepared:
    """What prepare_data leaves.

    Attributes:
        annotations: the clips of the three splits.
        table: one row per clip: folder_name, youtube_id, label, group, num_frames, split, target.
        report: what was found, kept and dropped, ready for JSON.
    """

    annotations: Annotations
    table: pd.DataFrame
    report: dict[str, Any]


def clip_directory(config: Config) -> Path:
    """Where the clip folders are, or will be once the sample is rendered."""
    if config.data_path != SAMPLE:
        return Path(config.data_path).absolute()
    # Another renderer or seed draws other clips; they must not mix in one directory.
    name = f"sample-{combine([file_digest(_RENDERER), str(config.seed)])[:8]}"
    return Path(config.output_dir).absolute() / name / IMAGES_FOLDER


def ground_truth_file(config: Config) -> Path:
    """The CSV that belongs to `clip_directory`."""
    if config.data_path != SAMPLE:
        return Path(config.gt_csv).absolute()
    return clip_directory(config).parent / GROUND_TRUTH_FILE


def check_source(config: Config) -> None:
    """Refuse a source that cannot be read, before anything is rendered or decoded.

    Raises:
        UserError: if the directory or the CSV is missing or lacks columns, or most of its folders
            do not exist.
    """
    if config.data_path != SAMPLE:
        table = read_ground_truth(ground_truth_file(config), config.group_by)
        find_clips(table, clip_directory(config))


def prepare(config: Config) -> Prepared:
    """Render the sample if asked, find the clips, map their labels and split them by source.

    Raises:
        UserError: if the source cannot be read or cannot be split.
    """
    clips_path, csv = clip_directory(config), ground_truth_file(config)
    if config.data_path == SAMPLE and not csv.exists():
        render_sample(clips_path.parent, seed=config.seed)
    table, dropped = find_clips(read_ground_truth(csv, config.group_by), clips_path)
    table["split"] = assign_splits(table, config.val_fraction, config.test_fraction, config.seed)
    categories = categories_of(table["label"])
    table["target"] = table["label"].map(categories)
    splits: dict[str, list[Clip]] = {name: [] for name in SPLITS}
    for row in table.itertuples():
        clip = Clip(row.folder_name, (0, row.num_frames - 1), row.target, row.group)
        splits[row.split].append(clip)
    annotations = Annotations(categories, splits, data_digest(clips_path))
    return Prepared(annotations, table, _report(config, table, dropped, annotations.data_digest))


def _report(
    config: Config, table: pd.DataFrame, dropped: list[Dropped], digest: str
) -> dict[str, Any]:
    per_class = pd.crosstab(table["label"], table["split"]).reindex(columns=SPLITS, fill_value=0)
    return {
        "num_clips": len(table),
        "num_groups": int(table["group"].nunique()),
        "num_classes": int(table["label"].nunique()),
        "num_dropped": len(dropped),
        "dropped": [{"video": clip.video, "reason": clip.reason} for clip in dropped],
        "group_by": "single clips" if config.group_by == NONE else config.group_by,
        "frames_per_clip": {
            "min": int(table["num_frames"].min()), "max": int(table["num_frames"].max()),
        },
        "split_fractions": {
            name: round(float((table["split"] == name).mean()), 4) for name in SPLITS
        },
        "clips_per_class": {str(label): counts.to_dict() for label, counts in per_class.iterrows()},
        "data_digest": digest,
    }  # fmt: skip
