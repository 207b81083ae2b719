"""From clips to batches, in worker processes or in a thread that reads ahead."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload

import cv2
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from k400tiny_lib.config import AUTO
from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading.augmentation import LIGHT, augment, own_generator, seeded
from k400tiny_lib.data.loading.temporal_sampling import jittered_indices, uniform_indices
from k400tiny_lib.data.loading.transforms import centre_crop
from k400tiny_lib.errors import UserError
from k400tiny_lib.system import available_cores

# Reads frames of a clip by their offsets in its segment: uint8 (T, 3, h, w) at the working short
# side, RGB in [0, 255]. `decoding.ImageFiles` and `packing.PackedFrames` are such readers; one
# whose attribute `copies` is true does nothing but copy memory.
FrameReader = Callable[[Clip, Sequence[int]], Tensor]

_MAX_AUTO_WORKERS = 8

# Before any process is forked: a child that finds OpenCV's pool of threads started, and its threads
# gone, waits for them for ever. Decoding an image takes one thread anyway.
cv2.setNumThreads(1)


class ClipTable(Sequence[Clip]):
    """Clips as Arrow columns.

    Forked workers share them. A list of Python objects they would copy bit by bit, since looking
    at an object writes its reference count (pytorch#13246).
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._columns = (
            pa.array([clip.video for clip in clips], pa.string()),
            pa.array([clip.segment[0] for clip in clips], pa.int32()),
            pa.array([clip.segment[1] for clip in clips], pa.int32()),
            pa.array([clip.target for clip in clips], pa.int32()),
            pa.array([clip.group for clip in clips], pa.string()),
        )

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, position: int) -> Clip: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Clip]: ...
    def __getitem__(self, position: int | slice) -> Clip | Sequence[Clip]:
        if isinstance(position, slice):
            return [self[number] for number in range(*position.indices(len(self)))]
        video, first, last, target, group = (column[position].as_py() for column in self._columns)
        return Clip(video, (first, last), target, group)


class ClipDataset(Dataset[tuple[Tensor, int, int]]):
    """The clips of a split as uint8 tensors (C, T, crop, crop), with target and position.

    Randomness depends on (seed, epoch, position) alone: neither the number of workers nor a
    resumed run changes what a clip looks like in an epoch.

    Attributes:
        epoch: set it before each pass over the loader.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        read: FrameReader,
        *,
        clip_len: int,
        crop_size: int,
        training: bool = False,
        augmentation: str = "none",
        no_flip: frozenset[int] = frozenset(),
        seed: int = 0,
    ) -> None:
        """Describe the clips; nothing is read yet.

        Args:
            clips: the clips of the split.
            read: where frames come from.
            clip_len: frames of a clip that the model sees.
            crop_size: side of the square crop, at most the short side that `read` gives.
            training: jitter the frame indices and augment; else uniform indices, centre crop.
            augmentation: as for `augment`.
            no_flip: targets of clips that are never mirrored.
            seed: of all randomness.
        """
        self.clips = ClipTable(clips)
        self.read = read
        self.clip_len = clip_len
        self.crop_size = crop_size
        self.training = training
        self.augmentation = augmentation
        self.no_flip = no_flip
        self.seed = seed
        self.epoch = 0

    @property
    def is_light(self) -> bool:
        """Whether a clip is only copied and cropped: sending it between processes costs more."""
        return getattr(self.read, "copies", False) and (
            not self.training or self.augmentation in LIGHT
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        clip = self.clips[position]
        numbers = (self.seed, self.epoch, position)
        if not self.training:
            offsets = uniform_indices(clip.num_frames, self.clip_len)
            images = centre_crop(self.read(clip, offsets.tolist()), self.crop_size)
        elif self.augmentation in LIGHT:
            images = self._training_frames(clip, own_generator(*numbers))
        else:
            with seeded(*numbers) as generator:
                images = self._training_frames(clip, generator)
        # (T, C, H, W) -> (C, T, H, W)
        return images.transpose(0, 1).contiguous(), clip.target, position

    def _training_frames(self, clip: Clip, generator: torch.Generator) -> Tensor:
        offsets = jittered_indices(clip.num_frames, self.clip_len, generator)
        images = self.read(clip, offsets.tolist())
        may_flip = clip.target not in self.no_flip
        return augment(images, self.crop_size, self.augmentation, may_flip, generator)


def worker_count(
    num_workers: int | str, processes_per_node: int, dataset: ClipDataset | None = None
) -> int:
    """Loader processes for one training process.

    Args:
        num_workers: a number, or `auto`: none where clips are light, else the node's cores shared.
        processes_per_node: training processes on this node.
        dataset: what they read; None where it is never light.
    """
    if num_workers != AUTO:
        return int(num_workers)
    if dataset is not None and dataset.is_light:
        return 0
    return max(1, min(_MAX_AUTO_WORKERS, available_cores() // processes_per_node))


def make_loader(
    dataset: Dataset[tuple[Tensor, int, int]],
    sampler: Sampler[int] | Sequence[int],
    *,
    batch_size: int,
    num_workers: int,
    drop_last: bool = False,
) -> DataLoader[tuple[Tensor, int, int]]:
    """Batches of (uint8 (N, ...) clips, int64 (N,) targets, int64 (N,) positions)."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_outlive_signals,
        # A loader draws a seed for its workers each time; of its own, so that dropout's generator
        # does not notice when an epoch is continued with a second loader.
        generator=torch.Generator(),
    )


def batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Iterate over a loader; what a user can mend comes out as the one line it is.

    Without worker processes, light clips are read by a thread, one batch ahead.

    A DataLoader wraps what a worker raises into an exception of the same type whose message is the
    worker's traceback.

    Raises:
        UserError: as the worker raised it.
    """
    ahead = not loader.num_workers and getattr(loader.dataset, "is_light", False)
    try:
        yield from _read_ahead(iter(loader)) if ahead else loader
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from None


def _read_ahead(iterator: Iterator[Any]) -> Iterator[Any]:
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def read() -> Any:
        if gpu is not None:  # pinning memory asks for it, and each thread has its own
            torch.cuda.set_device(gpu)
        return next(iterator, None)

    with ThreadPoolExecutor(1, "loader") as thread:
        following = thread.submit(read)
        while (batch := following.result()) is not None:
            following = thread.submit(read)
            yield batch


def one_thread(worker: int) -> None:
    """Keep a loader process on one core; PyTorch's own threads are off there already."""
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)


def _outlive_signals(worker: int) -> None:
    # A signal goes to all processes of a group, and training needs its clips to finish the step.
    # Loader processes end with the one that started them.
    one_thread(worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
