"""A rendered sample data set in the layout of K400-Tiny, to try the whole pipeline without data.

Every clip shows one object over a textured background. The classes come in pairs that differ only
in the direction of time: a clip played backwards belongs to the partner class, so one frame does
not tell the two apart and a model has to look at motion.
"""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.console import progress, say
from k400tiny_lib.data.preparation.executors import map_unordered, open_executor
from k400tiny_lib.data.sources.drawing import CLASSES, draw_frames
from k400tiny_lib.data.sources.frame_folders import FrameFolders
from k400tiny_lib.data.sources.ground_truth import GroundTruth
from k400tiny_lib.data.tables.reading import read_table
from k400tiny_lib.files import atomic_write, combine_digests, local_path
from k400tiny_lib.media import own_output
from k400tiny_lib.system import available_cores

# In the name of the directory. Raise it with every change that makes other clips of the same seed
# (drawing, classes, seeds, defaults of `render_sample`): finished clips are not drawn again.
FORMAT = 1
IMAGES_FOLDER = "k400tiny_images"
GROUND_TRUTH_FILE = "k400tiny_ground_truth.csv"


class _Clip(NamedTuple):
    """One clip to render: where it goes, what happens in it, and the numbers that seed it."""

    folder_name: str
    youtube_id: str
    label: str
    source_seed: tuple[int, int, int]  # (seed, class, source)
    number: int  # within its source


class RenderedSample:
    """The sample: frame folders with a CSV, after they have been rendered.

    Args:
        config: output_dir and seed decide where the clips are.
        render: called as `render(directory, seed=...)` where they do not exist yet.
    """

    def __init__(self, config: Config, render: Callable[..., None] | None = None) -> None:
        self.config = config
        self._render = render or render_sample
        # Clips of another format or seed must not mix in one directory.
        self._root = local_path(config.output_dir) / f"sample-v{FORMAT}-seed{config.seed}"
        self._csv = self._root / GROUND_TRUTH_FILE
        self.directory = self._root / IMAGES_FOLDER

    @cached_property
    def _rendered(self) -> FrameFolders:
        config = self.config.replace(data_path=str(self.directory), gt_csv=str(self._csv))
        return FrameFolders(config, read_table(config.gt_csv).rows)

    @property
    def ground_truth(self) -> GroundTruth:
        return self._rendered.ground_truth

    def check(self) -> None:
        pass

    def is_ready(self) -> bool:
        return self._csv.exists()

    def bring(self) -> dict[str, str]:
        if not self.is_ready():
            own_output.mark(self._root)
            self._render(self._root, seed=self.config.seed)
        return {}

    def digest(self) -> str:
        return combine_digests([self._rendered.digest(), str(self.directory)])


def render_sample(
    root: Path,
    *,
    seed: int,
    num_sources_per_class: int = 36,
    clips_per_source: int = 2,
    num_frames: int = 40,
    size: int = 336,
    workers: int | None = None,
) -> None:
    """Render the sample data set: one folder of JPEG frames per clip, then the ground truth.

    The same arguments give the same bytes, whatever `workers` is. A clip folder that exists already
    is left as it is, so an interrupted rendering resumes; the CSV comes last. Of several processes
    one renders, and the others wait for it.

    Args:
        root: folder that receives `k400tiny_images/` and `k400tiny_ground_truth.csv`.
        seed: seed of the whole set, at least 0.
        num_sources_per_class: "videos" per class, each with its own background and object.
        clips_per_source: clips cut from one source, differing in position, speed and phase.
        num_frames: frames per clip, 2 to 100 (their names have two digits).
        size: height and width of a frame in pixels, at least 32.
        workers: processes; None takes one per core, 1 renders in this process.
    """
    images = root / IMAGES_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    clips = _plan(seed, num_sources_per_class, clips_per_source)
    with _lock(root):
        _render_clips(clips, images, num_frames, size, workers)
        columns = ["folder_name", "youtube_id", "label"]
        with atomic_write(root / GROUND_TRUTH_FILE) as part:
            pd.DataFrame(clips)[columns].to_csv(part, index=False)


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Keep other processes from rendering into the same directory; ends with the process."""
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("sample", f"another process renders {root}, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _render_clips(
    clips: list[_Clip], images: Path, num_frames: int, size: int, workers: int | None
) -> None:
    render = partial(_render_clip, images, num_frames=num_frames, size=size)
    workers = min(workers or available_cores(), len(clips))
    if workers == 1:
        for clip in progress(clips, len(clips), "render"):
            render(clip)
    else:
        with open_executor(NONE, workers) as (executor, count):
            for _ in progress(map_unordered(executor, count, render, clips), len(clips), "render"):
                pass


def _plan(seed: int, num_sources_per_class: int, clips_per_source: int) -> list[_Clip]:
    """List the clips, all classes of one source number side by side."""
    clips = []
    for source in range(num_sources_per_class):
        for class_id, label in enumerate(CLASSES):
            digest = hashlib.blake2s(f"{seed}/{label}/{source}".encode(), digest_size=4).hexdigest()
            youtube_id = f"smp{digest}"  # 11 characters, like a real one
            for clip in range(clips_per_source):
                folder_name = f"{youtube_id}_{10 * clip:06d}_{10 * clip + 10:06d}"
                clips.append(_Clip(folder_name, youtube_id, label, (seed, class_id, source), clip))
    return clips


def _render_clip(images: Path, clip: _Clip, *, num_frames: int, size: int) -> None:
    """Write the frames of one clip to `images/<folder_name>/`, unless that folder exists."""
    target = images / clip.folder_name
    if target.exists():
        return
    # The folder gets its name when it is complete; what a killed rendering left is started over.
    partial_folder = images / f".{clip.folder_name}.part"
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir()

    seed = clip.source_seed
    frames = draw_frames(clip.label, seed, clip.number, num_frames=num_frames, size=size)
    for index, jpeg in enumerate(frames):
        (partial_folder / f"frame{index:02d}.jpg").write_bytes(jpeg)
    partial_folder.rename(target)
