"""Where the clips come from and lie, and what they contain: what main asks before each step.

It imports no PyTorch, so that a chain of finished steps is answered within seconds.
"""

from pathlib import Path

import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.data.preparation.decoding import FrameSettings, plan, video_digests
from k400tiny_lib.data.preparation.validation import check_clips
from k400tiny_lib.data.sources.base import SAMPLE, Source, holds_videos, read_source
from k400tiny_lib.data.sources.rendered import GROUND_TRUTH_FILE, IMAGES_FOLDER
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import (
    absolute,
    combine_digests,
    combine_named_digests,
    file_digest,
    is_remote,
    local_path,
)

FRAMES = FrameSettings()
_RENDERER = Path(__file__).with_name("rendered.py")
_INDEX = Path(".k400tiny", "content.sqlite")


def clip_directory(config: Config) -> Path:
    """Where the clip folders are, or will be once they are rendered, decoded or fetched."""
    output = local_path(config.output_dir)
    if config.data_path == SAMPLE:
        # Another renderer or seed draws other clips; they must not mix in one directory.
        name = f"sample-{combine_digests([file_digest(_RENDERER), str(config.seed)])[:8]}"
        return output / name / IMAGES_FOLDER
    if holds_videos(config.data_path, config.gt_csv):
        # Other videos, or other frames of them, must not mix either.
        return output / f"frames-{combine_digests([FRAMES.digest, absolute(config.data_path)])[:8]}"
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
    source = read_config_source(config)
    if source.videos is None and not is_remote(config.data_path):
        names = source.table["folder_name"]
        root = clip_directory(config)
        refuse_if_missing([name for name in names if not (root / name).is_dir()], names, root)


def source_is_ready(config: Config) -> bool:
    """Whether the clips are all there, so that `source_digest` can tell their content."""
    if config.data_path == SAMPLE:
        file = ground_truth_file(config)
        return file is not None and file.exists()
    if is_remote(config.data_path):
        return False  # fetching is the step's work
    source = read_config_source(config)
    if source.videos is None:
        return True
    return not plan(source.videos, clip_directory(config), FRAMES, content_index(config))[0]


def source_digest(config: Config) -> str:
    """Digest of everything that a preparation's result depends on, beside its parameters.

    The bytes of the ground truth, of the videos and of the clips; what has not changed since the
    last look comes from the index. Where decoded or rendered frames are kept is part of it too,
    because later steps read them there.

    Raises:
        UserError: if the source cannot be read.
    """
    root, csv = clip_directory(config), ground_truth_file(config)
    source, index = read_config_source(config), content_index(config)
    verdicts = check_clips(root, source.table["folder_name"], index)
    parts = [
        file_digest(csv) if csv else "",
        combine_named_digests({k: v.digest for k, v in verdicts.items()}),
    ]
    parts += [clip for row in source.rows.dropped for clip in (row.video, row.reason)]
    if source.videos is not None:
        parts.append(combine_named_digests(video_digests(source.videos, index)))
    if root != local_path(config.data_path):
        parts.append(str(root))
    return combine_digests(parts)


def read_config_source(config: Config) -> Source:
    """The source; the rendered sample is frame folders with a CSV."""
    data_path, gt_csv = config.data_path, config.gt_csv
    if data_path == SAMPLE:
        data_path, gt_csv = str(clip_directory(config)), str(ground_truth_file(config))
    return read_source(data_path, gt_csv, config.group_by, config.use_official_splits)


def content_index(config: Config) -> ContentIndex:
    return ContentIndex(local_path(config.output_dir) / _INDEX)


def refuse_if_missing(missing: list[str], names: "pd.Series[str]", root: Path) -> None:
    """Many missing folders mean that data_path and gt_csv do not belong together."""
    if 2 * len(missing) > len(names):
        raise UserError(
            f"gt_csv: {len(missing)} of {len(names)} folders do not exist in {root}, first "
            f"{missing[0]!r}. Needed: folder_name as it stands below data_path."
        )
