"""Lists without a header: `path label`, `path frames label`, and those of UCF101 and HMDB51."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.container.suffixes import is_video

_VIDEO_FIRST = re.compile(r"(?P<file>.+?\.\w{2,4}) +(?P<rest>[^\s][^\t]*)")  # without quotes
# The names of HMDB51; in its mediatools lists, `brush_hair_test_split1.txt` and so on, the numbers
# say which clips are for training (1), for the test (2) and unused (0).
_HMDB51 = re.compile(r"[^/]+_[fhlu]_(cm|nm)_np\d+_(ba|fr|le|ri)_(bad|goo|med)_\d+\.avi")


def split_at_spaces(line: str) -> list[str] | None:
    """File and label, or file, number and label; both may hold spaces. None without a video."""
    match = None if '"' in line else _VIDEO_FIRST.fullmatch(line.strip())
    if match is None or not is_video(match["file"]):
        return None
    words = match["rest"].split()
    if len(words) > 2 and all(word.isdecimal() for word in words):  # several labels
        return [match["file"], *words]
    if words[0].isdecimal() and words[1:]:
        return [match["file"], words[0], " ".join(words[1:])]
    return [match["file"], match["rest"]]


def columns_of(rows: Sequence[Sequence[str]]) -> list[str]:
    """The columns of rows that are data from the first on; none where that is not certain."""
    width = len(rows[0])
    rows = [row for row in rows if not row[0].startswith("#")]
    if not all(len(row) == width for row in rows) or width > 3:
        return []
    has_videos = all(is_video(row[0]) for row in rows)
    if width == 1:
        return ["file"] if has_videos and all("/" in row[0] for row in rows) else []
    if not has_videos and not all(row[-1].strip().isdecimal() for row in rows):
        return []
    if width == 2:
        return ["file", "label"]
    has_counts = all(row[1].strip().isdecimal() for row in rows)
    return ["file", "num_frames", "label"] if has_counts else []


def add_labels(path: Path, table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Labels of a list without any (UCF101's test lists), or with ids that only number folders.

    Raises:
        UserError: for a list of HMDB51, whose numbers are no labels.
    """
    folders = table["file"].map(lambda name: PurePosixPath(name).parent.name)
    if "label" not in table.columns:
        return table.assign(label=folders)
    labels = set(table["label"].str.strip())
    if labels <= {"0", "1", "2"} and all(map(_HMDB51.fullmatch, table["file"])):
        raise UserError(
            f"gt_csv: {path.name} is a list of HMDB51, whose numbers are no labels: 1 is train, 2 "
            "is test, 0 is unused. Needed: class folders without gt_csv, or file,label,split."
        )
    pairs = set(zip(table["label"], folders, strict=True))
    is_number = len(pairs) == table["label"].nunique() == folders.nunique() > 1
    is_ucf = all(PurePosixPath(name).name.startswith("v_") for name in table["file"])
    if not (is_ucf and is_number and all(folders)):
        return table
    notes.append("gt_csv: its numbers are one per folder; the labels are the folders' names")
    return table.assign(label=folders)
