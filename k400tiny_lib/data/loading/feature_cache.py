"""The feature cache: the input of a frozen model's head, computed once for each clip and view.

A directory is named by the digest of everything that the features of a split depend on: frames,
weights of the backbone, geometry, augmentation, versions. Each view is a NumPy file in it, float32
(clips, C) in the order of the split. A file gets its name when it is complete: a killed run leaves
only whole files, which the next one keeps, and a larger `feature_views` adds to those of a smaller
one. What training may change from run to run (lr, num_epochs, batch_size) is not in the name.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.config.parameters import MIXING_AUGMENTATIONS
from k400tiny_lib.config.value_types import ALL_LAYERS, HEAD
from k400tiny_lib.console import progress, say
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.data.loading import frame_origins as origins
from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.loader import batches, make_loader, worker_count
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import atomic_write, cannot_write, combine_digests

T = TypeVar("T")
Loader = DataLoader[tuple[Tensor, int, int]]
Features = npt.NDArray[np.float32]

FORMAT = 1  # increase it when the features or their files change
FOLDER = "features"  # below cache_dir
# The batches must not depend on the number of processes, or the last bits of the features would.
_LARGEST_BATCH = 8
_NETWORKS = ("torch", "torchvision", "pytorchvideo", "timm")


class Team(Protocol):
    """The training processes together; see `distributed.process.Process`."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def local_world_size(self) -> int: ...
    def any_rank(self, *flags: bool) -> tuple[bool, ...]: ...
    def gather(self, value: T) -> list[T]: ...


def resolve_features(config: Config, annotations: Annotations) -> str | None:
    """Decide whether features are kept, and print where they are not or are those of no training.

    Returns:
        A digest of the frames as they are now; None to compute the features of each batch again, or
        if more than the head learns.

    Raises:
        UserError: if a frame cannot be read or nothing can be written in `cache_dir`.
    """
    if config.train_layers != ALL_LAYERS and config.weights == config.load_model == NONE:
        say(
            "train_layers",
            f"{config.train_layers}, but the backbone starts from scratch: its features are "
            "random. Better: weights or load_model",
        )
    if config.train_layers != HEAD:
        return None
    reason = ""
    if config.frame_cache == NONE:
        reason = "frame_cache=none decodes all clips in each epoch"
    elif config.augmentation in MIXING_AUGMENTATIONS:
        reason = f"augmentation={config.augmentation} mixes the pixels of a batch"
    if reason:
        say("features", f"not kept, since {reason}; each epoch computes them again")
        return None
    names = sorted({clip.video for clip in annotations.clips})
    folder = Path(config.cache_dir).absolute() / FOLDER / f"frames-{combine_digests(names)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            return origins.present_content(folder, annotations, Path(config.data_path))
    except OSError as error:
        raise cannot_write("cache_dir", folder, error) from None


def feature_folder(
    config: Config, clips: Sequence[Clip], dataset: ClipDataset, key: Sequence[str]
) -> Path:
    """The directory of the features of a split, whether it exists or not.

    Args:
        config: the parameters of train.
        clips: those of the split, in their order.
        dataset: reads them; in training their order, the seed and the augmentation count.
        key: digests of the frames and of the backbone, and its precision.
    """
    names = [f"{clip.video} {clip.segment}" for clip in clips]
    settings = [config.model, config.clip_len, config.resize_size, config.crop_size]
    if dataset.training:
        settings += [config.augmentation, config.seed]
        names = [
            f"{name} {clip.target in dataset.no_flip}"
            for name, clip in zip(names, clips, strict=True)
        ]
    versions = [FORMAT, cv2.__version__, *map(_version, _NETWORKS)]
    digest = combine_digests([*map(str, [*versions, *settings]), *key, *names])
    return Path(config.cache_dir).absolute() / FOLDER / digest


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def with_features(
    loader: Loader,
    clips: Sequence[Clip],
    views: int,
    *,
    config: Config,
    key: Sequence[str],
    compute: Callable[[Tensor], Tensor],
    team: Team,
) -> Loader:
    """The loader of features in place of clips, in the same batches.

    Features that the cache lacks are computed first; every process must call it.

    Args:
        loader: of the clips of a split.
        clips: those of the split, in their order.
        views: number of views; view v is what a clip looks like in epoch v.
        config: the parameters of train.
        key: digests of the frames and of the backbone, and its precision.
        compute: uint8 (N, 3, T, H, W) clips to their float32 (N, C) features, on any device.
        team: the processes.

    Raises:
        UserError: if a clip cannot be read, its features are not finite, or the disk is full.
    """
    dataset = loader.dataset
    assert isinstance(dataset, ClipDataset)
    folder = feature_folder(config, clips, dataset, key)
    _write_missing(folder, dataset, views, config, compute, team)
    return DataLoader(
        CachedFeatures(dataset, folder, views),
        batch_size=loader.batch_size,
        sampler=loader.sampler,
        drop_last=loader.drop_last,
        pin_memory=loader.pin_memory,
        generator=loader.generator,
    )


def _write_missing(
    folder: Path,
    dataset: ClipDataset,
    views: int,
    config: Config,
    compute: Callable[[Tensor], Tensor],
    team: Team,
) -> None:
    """Write the missing views of a split; each process computes a share.

    Each node writes what its own disk lacks.

    Raises:
        UserError: if a clip cannot be read, its features are not finite, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A process alone waits for another that computes the same. A group does not: its other
        # processes would wait at a collective, which has a timeout.
        alone = team.world_size == 1
        with FileLock(folder / ".lock") if alone else nullcontext():
            lacking = [_read(folder, view, len(dataset)) is None for view in range(views)]
            missing = [v for v, is_missing in enumerate(team.any_rank(*lacking)) if is_missing]
            if team.rank == 0:
                say("features", _state(folder, dataset, len(missing), views))
            size = min(config.batch_size, _LARGEST_BATCH)
            workers = worker_count(config.num_workers, team.local_world_size, dataset)
            share = _share(len(dataset), size, team)
            loader = make_loader(dataset, share, batch_size=size, num_workers=workers)
            with progress(None, len(missing) * len(share), "features") as bar:
                for view in missing:
                    dataset.epoch = view
                    parts = []
                    for clips, _, positions in batches(loader):
                        parts.append(compute(clips).cpu().numpy())
                        _check_finite(parts[-1], positions, dataset)
                        bar.update(len(clips))
                    _write(folder, view, _joined(team.gather((share, parts)), len(dataset)))
    except OSError as error:
        raise cannot_write("cache_dir", folder, error) from None


def _state(folder: Path, dataset: ClipDataset, missing: int, views: int) -> str:
    if not missing:
        return f"{folder} is used again"
    kind = "training" if dataset.training else "validation"
    of_views = f", {missing} of {views} views" if dataset.training else ""
    return f"computing those of {len(dataset)} {kind} clips{of_views}, to {folder}"


def _share(count: int, size: int, team: Team) -> list[int]:
    """The positions of the batches r, r + n, r + 2n, ... for process r of n."""
    starts = range(size * team.rank, count, size * team.world_size)
    return [position for start in starts for position in range(start, min(start + size, count))]


def _joined(shares: Sequence[tuple[list[int], list[Features]]], count: int) -> Features:
    [width] = {part.shape[1] for _, parts in shares for part in parts}
    features = np.empty((count, width), np.float32)
    for positions, parts in shares:
        if parts:
            features[positions] = np.concatenate(parts)
    return features


def _check_finite(features: Features, positions: Tensor, dataset: ClipDataset) -> None:
    broken = ~np.isfinite(features).all(1)
    if broken.any():
        video = dataset.clips[int(positions[int(broken.argmax())])].video
        raise UserError(
            f"amp: the backbone's features of clip {video} are not finite. Needed: amp=off, or "
            "other weights."
        )


def _file(folder: Path, view: int) -> Path:
    return folder / f"view{view:04d}.npy"


def _write(folder: Path, view: int, features: Features) -> None:
    with FileLock(folder / ".writing"):  # the other processes of the node have the same features
        if _read(folder, view, len(features)) is None:
            with atomic_write(_file(folder, view)) as part, part.open("wb") as file:
                np.save(file, features)


def _read(folder: Path, view: int, count: int) -> Features | None:
    """A view, mapped into memory; None if there is no whole file of it."""
    try:
        features: Features = np.load(_file(folder, view), mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return features if len(features) == count else None


class CachedFeatures(Dataset[tuple[Tensor, int, int]]):
    """The features of a split in place of its clips, float32 (C,), with target and position.

    Attributes:
        pixels: the data set of the clips that the features were computed from.
        epoch: to be set before each pass: the epochs take turns in the views.
    """

    def __init__(self, pixels: ClipDataset, folder: Path, views: int) -> None:
        """Map the files.

        Raises:
            UserError: if one cannot be read.
        """
        self.pixels, self.clips, self.epoch = pixels, pixels.clips, 0
        self._targets = [pixels.clips[position].target for position in range(len(pixels))]
        self._views = [_read(folder, view, len(pixels)) for view in range(views)]
        if any(view is None for view in self._views):
            raise UserError(f"cache_dir: {folder} has just been changed. Needed: start again.")

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        view = self._views[self.epoch % len(self._views)]
        assert view is not None
        return torch.from_numpy(view[position].copy()), self._targets[position], position
