"""The frame cache: every clip decoded once, at the working short side, in memory-mapped files.

A cache is a directory named by the digest of its content. `clips.npy` lists the names of its clips,
sorted; each safetensors file holds the next CLIPS_PER_FILE of them, one uint8 (T, 3, h, w) a name.
A file gets its name when it is complete: a killed run leaves only whole files, which the next one
keeps. Evaluation does not use the cache, since it resizes as the exported graph does.
"""

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from k400tiny_lib.config import AUTO, NONE, Config
from k400tiny_lib.config.parameters import MIXING_AUGMENTATIONS
from k400tiny_lib.config.value_types import HEAD
from k400tiny_lib.console import progress, say
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.data.loading import frame_origins as origins
from k400tiny_lib.data.loading.loader import batches, end_with_parent
from k400tiny_lib.data.loading.readers import FrameReader, ImageFiles
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.files import atomic_write, cannot_write, combine_digests
from k400tiny_lib.system import available_cores

FORMAT = 3  # increase it when the files change
CLIPS_PER_FILE = 8  # the writer holds as many in memory
INDEX = "clips.npy"
_MAPPED_FILES = 1024  # a process may have 65,000 mappings
_MAX_DISK_SHARE = 0.5  # of the free disk, for `auto`
_SAMPLED_CLIPS = 16  # to estimate the size of a cache
_GIGABYTE = 1e9


def cache_folder(
    annotations: Annotations, data_path: Path, resize_size: int, root: Path, content: str = ""
) -> Path:
    """The directory of the cache of these clips, below `root`, whether it exists or not.

    The name depends on the frames and on the versions of decoder and resizer, not on splits and
    labels: another seed uses the same cache.

    Args:
        annotations: the clips.
        data_path, resize_size: of `ImageFiles`.
        root: `cache_dir`.
        content: digest of the frames; "" for that of prepare_data, or for reading them now.
    """
    content = (
        content
        or annotations.data_digest
        or combine_digests(origins.content_digests(annotations, data_path).values())
    )
    versions = (FORMAT, cv2.__version__, torch.__version__, resize_size)
    digest = combine_digests([*map(str, versions), content, *_by_name(annotations)])
    return root.absolute() / digest


def is_complete(folder: Path) -> bool:
    """Whether a cache has all of its files."""
    try:
        count = len(np.load(folder / INDEX, mmap_mode="r"))
    except (OSError, ValueError):
        return False
    return all(_file(folder, number).exists() for number in range(_num_files(count)))


def write_cache(
    annotations: Annotations, data_path: Path, resize_size: int, folder: Path, num_workers: int
) -> None:
    """Write the missing files of a cache; processes that want the same cache wait for the first.

    Args:
        annotations: the clips; all frames of their segments are cached.
        data_path, resize_size: of `ImageFiles`, whose frames are cached unchanged.
        folder: the cache, as `cache_folder` gives it.
        num_workers: processes that decode; 0 for this one.

    Raises:
        UserError: if a clip cannot be read or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for leftover in folder.glob(".tmp*"):  # of safetensors, in a writer that was killed
                leftover.unlink()
            writer = _Writer(annotations, ImageFiles(data_path, resize_size), folder)
            origins.note(folder, annotations, data_path)
            missing = [n for n in range(len(writer)) if not _file(folder, n).exists()]
            workers = min(num_workers, len(missing))
            loader = DataLoader(
                writer,
                batch_size=None,
                sampler=missing,
                num_workers=workers,
                worker_init_fn=end_with_parent,
            )
            for _ in progress(batches(loader), len(missing), "frame cache", "file"):
                pass
    except OSError as error:
        raise cannot_write("cache_dir", folder, error) from None


def resolve_frame_cache(
    config: Config, annotations: Annotations, free_bytes: int | None = None
) -> Path | None:
    """Decide where training reads frames from, print it, and write the cache if it is to be used.

    Args:
        config: the parameters of train.
        annotations: the clips.
        free_bytes: on the disk of `cache_dir`; None to ask the system.

    Returns:
        The complete cache, or None to decode image files.

    Raises:
        UserError: if `frame_cache=packed` and the disk is too small.
    """
    if config.frame_cache == NONE:
        return None
    data_path, resize_size = Path(config.data_path), config.resize_size
    folder = cache_folder(annotations, data_path, resize_size, Path(config.cache_dir))
    if changed := origins.changed_clips(folder, annotations, data_path):
        say(
            "frame_cache",
            f"the frames of {len(changed)} clips have changed since they were packed, first "
            f"{changed[0]}; {folder} is not used. prepare_data would check them again",
        )
        digests = origins.content_digests(annotations, data_path).values()
        folder = cache_folder(
            annotations, data_path, resize_size, Path(config.cache_dir), combine_digests(digests)
        )
    if is_complete(folder):
        say("frame_cache", f"{folder} is used again")
        return folder
    keeps_features = config.train_layers == HEAD and config.augmentation not in MIXING_AUGMENTATIONS
    if config.frame_cache == AUTO and keeps_features:
        say("frame_cache", "none, since features of the clips are kept")
        return None
    if config.frame_cache == AUTO and config.num_epochs < 2:
        say("frame_cache", "none, since one epoch does not repay it")
        return None
    needed = estimated_bytes(annotations, data_path, resize_size)
    existing = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(existing).free if free_bytes is None else free_bytes
    sizes = f"{needed / _GIGABYTE:.2f} GB of {free / _GIGABYTE:.2f} GB free in {config.cache_dir}"
    if config.frame_cache == AUTO and needed > _MAX_DISK_SHARE * free:
        say("frame_cache", f"none, since it needs {sizes}, more than half")
        return None
    if needed > free:
        raise UserError(f"frame_cache: needs {sizes}. Needed: room, or frame_cache=none.")
    say("frame_cache", f"decoding all clips once, {sizes}, to {folder}")
    workers = available_cores() if config.num_workers == AUTO else int(config.num_workers)
    write_cache(annotations, data_path, resize_size, folder, workers)
    return folder


def estimated_bytes(annotations: Annotations, data_path: Path, resize_size: int) -> int:
    """Size of a cache, from one frame of each of a few clips.

    Raises:
        UserError: if a frame of these clips cannot be read.
    """
    clips = list(annotations.clips)
    sampled = clips[:: -(-len(clips) // _SAMPLED_CLIPS)]
    read = ImageFiles(data_path, resize_size)
    per_frame = sum(read(clip, [0]).numel() for clip in sampled) / max(len(sampled), 1)
    return round(per_frame * sum(clip.num_frames for clip in clips))


def open_frames(folder: Path | None, data_path: Path, resize_size: int) -> FrameReader:
    """The reader of the cache from `resolve_frame_cache`, or of image files without one."""
    return CachedFrames(folder) if folder else ImageFiles(data_path, resize_size)


class CachedFrames:
    """Reads clips from a frame cache.

    The files read last stay mapped, since mapping one takes ten times as long as reading a clip.
    Their pages belong to the system's cache, not to the process.
    """

    copies = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: npt.NDArray[np.bytes_] | None = None
        self._map = functools.lru_cache(_MAPPED_FILES)(map_file)

    def __call__(self, clip: Clip, offsets: Sequence[int]) -> Tensor:
        """Read frames of a clip as `ImageFiles` does, see there.

        Raises:
            UserError: if the cache lacks the clip or is damaged.
        """
        name = _name(clip)
        path = _file(self.folder, self._position(name) // CLIPS_PER_FILE)
        try:
            # A copy, since the mapping may end. NumPy copies rows ten times as fast as torch.
            return torch.from_numpy(self._map(path)[name][list(offsets)])
        except (OSError, SafetensorError, LookupError) as error:
            raise UserError(
                f"frame_cache: {path} cannot be read ({one_line(error)}). Needed: delete it, and "
                "the next run writes it again."
            ) from None

    def _position(self, name: str) -> int:
        if self._index is None:  # map it in each process, so that workers share its memory
            self._index = np.load(self.folder / INDEX, mmap_mode="r")
        key = name.encode()
        position = int(np.searchsorted(self._index, key))
        if position == len(self._index) or self._index[position] != key:
            raise UserError(f"frame_cache: {self.folder} lacks clip {name}. Delete it.")
        return position

    def __reduce__(self) -> tuple[type["CachedFrames"], tuple[Path]]:
        return CachedFrames, (self.folder,)  # mappings cannot be sent to another process


def map_file(path: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """The clips of a cache file by name, each uint8 (T, 3, h, w), mapped: no frame is read yet."""
    return {name: frames.numpy() for name, frames in load_file(path).items()}


class _Writer(Dataset[int]):
    """Item i of this data set writes file i, so that the workers of a DataLoader write a cache."""

    def __init__(self, annotations: Annotations, read: ImageFiles, folder: Path) -> None:
        by_name = _by_name(annotations)
        with atomic_write(folder / INDEX) as partial, partial.open("wb") as file:
            np.save(file, np.array([name.encode() for name in by_name], dtype=np.bytes_))
        self.clips, self.read, self.folder = list(by_name.values()), read, folder

    def __len__(self) -> int:
        return _num_files(len(self.clips))

    def __getitem__(self, number: int) -> int:
        clips = self.clips[number * CLIPS_PER_FILE : (number + 1) * CLIPS_PER_FILE]
        frames = {_name(c): self.read(c, range(c.num_frames)).contiguous() for c in clips}
        path = _file(self.folder, number)
        try:
            with atomic_write(path) as partial:
                save_file(frames, partial)
                # safetensors makes files that only their owner may read; a cache may be shared.
                partial.chmod((self.folder / INDEX).stat().st_mode)
        except (OSError, SafetensorError) as error:
            raise cannot_write("cache_dir", path, error) from None
        return number


def _name(clip: Clip) -> str:
    return f"{clip.video}:{clip.segment[0]}-{clip.segment[1]}"


def _by_name(annotations: Annotations) -> dict[str, Clip]:
    """The clips in the order of a cache; one that is in several splits is cached once."""
    return dict(sorted({_name(clip): clip for clip in annotations.clips}.items()))


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"


def _num_files(num_clips: int) -> int:
    return -(-num_clips // CLIPS_PER_FILE)
