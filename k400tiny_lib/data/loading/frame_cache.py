"""The packed frame cache: every clip decoded once, at the working short side, in mapped files.

A pack is a directory named by the digest of what it holds. `clips.npy` lists its clips in sorted
order; file number i holds the clips from 16 i on, one Arrow record batch each, uncompressed, so
that reading a frame is reading memory. A file gets its name when it is complete: a killed packing
leaves whole files, which the next one keeps, and scraps, which it removes.

Training and its validation read packs. Evaluation does not: it resizes as the exported graph does.
"""

import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from k400tiny_lib.config import AUTO, NONE, Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.data.loading.loader import FrameReader, batches, one_thread
from k400tiny_lib.data.loading.readers import ImageFiles
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.files import combine_digests
from k400tiny_lib.media.frames import clip_digest
from k400tiny_lib.system import available_cores

FORMAT = 1  # count it up when the files change
CLIPS_PER_FILE = 16
INDEX = "clips.npy"
PARTIAL = ".part"
_MAPPED_FILES = 256  # of 30 MB each; a process may have 65,000
_SCHEMA = pa.schema([("frames", pa.binary()), ("shape", pa.list_(pa.int32(), 4))])
_ROOM = 0.5  # share of the free disk that `auto` takes at most
_PROBES = 16  # clips looked at to estimate the size of a pack
_GIGABYTE = 1e9


def pack_folder(annotations: Annotations, data_path: Path, resize_size: int, root: Path) -> Path:
    """Where the pack of these clips is, or would be: below `root`, named by their content.

    Splits and labels do not matter, so another seed uses the same pack. The decoder's and the
    resizer's versions do.
    """
    names = _index_of(annotations)
    content = annotations.data_digest or combine_digests(
        clip_digest(data_path / video) for video in sorted({c.video for c in annotations.clips})
    )
    digest = combine_digests(
        [str(FORMAT), cv2.__version__, torch.__version__, str(resize_size), content]
        + [name.decode() for name in names]
    )
    return root.absolute() / digest


def is_complete(folder: Path) -> bool:
    """Whether a pack has all of its files."""
    try:
        count = len(np.load(folder / INDEX, mmap_mode="r"))
    except (OSError, ValueError):
        return False
    return all(_file(folder, number).exists() for number in range(_num_files(count)))


def pack_clips(
    annotations: Annotations, data_path: Path, resize_size: int, folder: Path, num_workers: int
) -> None:
    """Write what a pack lacks; processes that want the same pack wait for the first.

    The frames are those that `ImageFiles` reads: a pack changes no pixel.

    Args:
        annotations: whose clips to pack, with all frames of their segments.
        data_path: directory of the clip folders.
        resize_size: short side of the packed frames.
        folder: the pack, of `pack_folder`.
        num_workers: processes that decode; 0 for this one.

    Raises:
        UserError: if a clip cannot be read or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for scrap in folder.glob(f"*{PARTIAL}"):
                scrap.unlink(missing_ok=True)
            _write_index(_index_of(annotations), folder)
            files = _PackFiles(annotations, ImageFiles(data_path, resize_size), folder)
            missing = [n for n in range(len(files)) if not _file(folder, n).exists()]
            loader = DataLoader(
                files,
                sampler=missing,
                batch_size=None,
                num_workers=min(num_workers, len(missing)),
                worker_init_fn=one_thread,
            )
            progress = tqdm(batches(loader), "packing", len(missing), unit="file", disable=None)
            for _ in progress:
                pass
    except OSError as error:
        raise UserError(f"cache_dir: {folder} cannot be written: {error.strerror}.") from None


def settle_frame_cache(config: Config, annotations: Annotations) -> Path | None:
    """Decide where frames come from, pack them if that is the decision, and print it.

    Args:
        config: the parameters of train.
        annotations: the clips.

    Returns:
        The complete pack, or None to decode image files.

    Raises:
        UserError: if packing is asked for and not possible.
    """
    if config.frame_cache == NONE:
        return None
    data_path, resize_size = Path(config.data_path), config.resize_size
    folder = pack_folder(annotations, data_path, resize_size, Path(config.cache_dir))
    if is_complete(folder):
        print(f"frame_cache: packed frames of {folder} are used again", flush=True)
        return folder
    if config.frame_cache == AUTO and config.num_epochs < 2:
        print("frame_cache: none, since one epoch is not worth packing", flush=True)
        return None
    needed = estimated_bytes(annotations, data_path, resize_size)
    free = _free_bytes(folder)
    sizes = f"{needed / _GIGABYTE:.2f} GB of {free / _GIGABYTE:.2f} GB free in {config.cache_dir}"
    if config.frame_cache == AUTO and needed > _ROOM * free:
        print(f"frame_cache: none, since packing needs {sizes}, more than half", flush=True)
        return None
    if needed > free:
        raise UserError(f"frame_cache: packing needs {sizes}. Needed: room, or frame_cache=none.")
    print(f"frame_cache: packing once, {sizes}, to {folder}", flush=True)
    workers = available_cores() if config.num_workers == AUTO else int(config.num_workers)
    pack_clips(annotations, data_path, resize_size, folder, workers)
    return folder


def estimated_bytes(annotations: Annotations, data_path: Path, resize_size: int) -> int:
    """Size of a pack, from the frames of a few clips.

    Raises:
        UserError: if a frame of these clips cannot be read.
    """
    clips = list(annotations.clips)
    probes = clips[:: -(-len(clips) // _PROBES)]
    read = ImageFiles(data_path, resize_size)
    per_frame = sum(read(clip, [0]).numel() for clip in probes) / max(len(probes), 1)
    return round(per_frame * sum(clip.num_frames for clip in clips))


def open_frames(folder: Path | None, data_path: Path, resize_size: int) -> FrameReader:
    """The reader of a pack, or of image files where there is none.

    Args:
        folder: what `settle_frame_cache` returned.
        data_path, resize_size: as for `ImageFiles`.
    """
    return PackedFrames(folder) if folder else ImageFiles(data_path, resize_size)


class PackedFrames:
    """Reads clips from a pack.

    It keeps the files mapped that it read last, since opening one costs ten times a read; their
    pages belong to the system's cache, not to the process.
    """

    copies = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._start()

    def _start(self) -> None:
        self._index: npt.NDArray[np.bytes_] | None = None
        self._open = functools.lru_cache(_MAPPED_FILES)(_map_file)

    def __call__(self, clip: Clip, offsets: Sequence[int]) -> Tensor:
        """Read frames of a clip.

        Args:
            clip: whose frames.
            offsets: positions within the clip's segment.

        Returns:
            uint8 (T, 3, h, w), RGB in [0, 255], T = len(offsets), min(h, w) = resize_size.

        Raises:
            UserError: if the pack lacks the clip or is damaged.
        """
        number, record = divmod(self._find(clip), CLIPS_PER_FILE)
        path = _file(self.folder, number)
        try:
            frames = self._open(path)[record]
            return torch.from_numpy(frames[list(offsets)])  # a copy: the mapping may end
        except (OSError, pa.ArrowInvalid, ValueError) as error:
            raise UserError(
                f"frame_cache: {path} cannot be read ({one_line(error)}). Needed: delete it, and "
                "the next run packs it again."
            ) from None

    def _find(self, clip: Clip) -> int:
        if self._index is None:  # mapped in each process anew, so that workers share it
            self._index = np.load(self.folder / INDEX, mmap_mode="r")
        name = _name(clip)
        position = int(np.searchsorted(self._index, name))
        if position == len(self._index) or self._index[position] != name:
            raise UserError(f"frame_cache: {self.folder} lacks clip {clip.video}. Delete it.")
        return position

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.folder = folder
        self._start()


def _map_file(path: Path) -> list[npt.NDArray[np.uint8]]:
    """The clips of a file, each uint8 (T, 3, h, w), without reading one."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    records = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    # The third buffer of a binary column holds its bytes; asking for its value would copy them.
    return [
        np.frombuffer(record.column("frames").buffers()[2], np.uint8).reshape(
            record.column("shape")[0].as_py()
        )
        for record in records
    ]


class _PackFiles(Dataset[int]):
    """The files of a pack; getting item i writes file i. Workers of a DataLoader thus pack."""

    def __init__(self, annotations: Annotations, read: ImageFiles, folder: Path) -> None:
        by_name = {_name(clip): clip for clip in annotations.clips}
        self.clips = [by_name[name] for name in _index_of(annotations)]
        self.read = read
        self.folder = folder

    def __len__(self) -> int:
        return _num_files(len(self.clips))

    def __getitem__(self, number: int) -> int:
        path = _file(self.folder, number)
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        clips = self.clips[number * CLIPS_PER_FILE : (number + 1) * CLIPS_PER_FILE]
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for clip in clips:
                frames = self.read(clip, range(clip.num_frames)).contiguous().numpy()
                ends = pa.py_buffer(np.array([0, frames.nbytes], np.int32))
                columns = [  # pa.array would copy the frames
                    pa.BinaryArray.from_buffers(pa.binary(), 1, [None, ends, pa.py_buffer(frames)]),
                    pa.array([frames.shape], _SCHEMA.field("shape").type),
                ]
                writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        partial.replace(path)
        return number


def _name(clip: Clip) -> bytes:
    return f"{clip.video}:{clip.segment[0]}-{clip.segment[1]}".encode()


def _index_of(annotations: Annotations) -> npt.NDArray[np.bytes_]:
    """The clips in the order of a pack, sorted and each once."""
    return np.unique(np.array([_name(clip) for clip in annotations.clips], dtype=np.bytes_))


def _write_index(index: npt.NDArray[np.bytes_], folder: Path) -> None:
    partial = folder / f"{INDEX}.{os.getpid()}{PARTIAL}"
    with partial.open("wb") as file:
        np.save(file, index)
    partial.replace(folder / INDEX)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.arrow"


def _num_files(num_clips: int) -> int:
    return -(-num_clips // CLIPS_PER_FILE)


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free
