"""The directory of a training: which one, whose it is, and a lock that ends with its process.

`.lock` in the directory says who trains there, or did. It is also how `resume=auto` finds the
directory of an interrupted training with the same settings.
"""

import dataclasses
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path

from k400tiny_lib.config import AUTO, NONE, PARAMETERS, STEPS, Config
from k400tiny_lib.console import say
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import cannot_write, combine_digests, file_digest
from k400tiny_lib.models.checkpoint import BEST, LAST, PREVIOUS, newest_checkpoint, run_of

LOCK = ".lock"
ROOT = Path("checkpoints")  # of the directories that checkpoint_dir=auto names

# Not part of what a training is: inputs that are compared by content or replaced by the checkpoint,
# and the number of processes.
NOT_IDENTITY = {name for name, p in PARAMETERS.items() if not p.affects_result} | {
    *("data_path", "annotations", "weights", "load_model", "resume"),
    *("nproc_per_node", "nnodes"),
}
_HELD = (errno.EACCES, errno.EAGAIN)
_READ_SECONDS = 2.0  # the holder writes who it is right after it has the lock


@dataclass(frozen=True)
class Holder:
    """The process that has locked a directory.

    Attributes:
        run_id: its MLflow run.
        pid, host: of the process.
        group: the rendezvous of a training on several nodes, which share their directory; "" else.
    """

    run_id: str = ""
    pid: int = 0
    host: str = ""
    group: str = ""


@dataclass(frozen=True)
class Training:
    """The last training in a directory.

    Attributes:
        identity: from `training_identity`.
        ended: whether it has come to its end and its results are logged.
    """

    identity: str = ""
    ended: bool = False


@dataclass
class Hold:
    """A directory that this process may train in.

    Attributes:
        joined: whether another node of this training holds the lock.
        former: the training before this one.
    """

    joined: bool
    former: Training
    _config: Config
    _record: Callable[[Training], None]

    def begin(self) -> None:
        """Note that the training of this process is now the last one here."""
        self._record(Training(training_identity(self._config)))

    def finish(self) -> None:
        """Note that it has come to its end; call it when its results are logged."""
        self._record(Training(training_identity(self._config), ended=True))


def training_identity(config: Config) -> str:
    """What a training is, as one digest: its settings, its clips and the weights it starts from.

    Args:
        config: the parameters of train with local paths in place of URIs.
    """
    names = sorted(set(STEPS["train"].params) - NOT_IDENTITY)
    parts = [f"{name}={getattr(config, name)}" for name in names]
    for name in ("annotations", "load_model"):
        value = getattr(config, name)
        parts.append(file_digest(Path(value)) if value not in (NONE, AUTO) else value)
    return combine_digests([*parts, config.weights])


def resolve_checkpoint_dir(config: Config, run_id: str) -> Config:
    """Turn `checkpoint_dir` into a directory, and make it.

    `auto` is the newest one of an interrupted training with the same settings for `resume=auto`,
    and else one named after the MLflow run.

    Raises:
        UserError: if it cannot be made.
    """
    folder = Path(config.checkpoint_dir)
    if config.checkpoint_dir == AUTO:
        former = find_interrupted(training_identity(config)) if config.resume == AUTO else None
        folder = former or ROOT / run_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write("checkpoint_dir", folder.absolute(), error) from None
    return config.replace(checkpoint_dir=str(folder))


def find_interrupted(identity: str, root: Path = ROOT) -> Path | None:
    """The directory of the newest training of an identity that has not come to its end."""
    checkpoints = [
        path
        for file in root.glob(f"*/{LOCK}")
        if (training := _read(file)[1]).identity == identity and not training.ended
        for path in (file.with_name(LAST), file.with_name(PREVIOUS))
        if path.exists()
    ]
    newest_first = sorted(checkpoints, key=lambda path: path.stat().st_mtime, reverse=True)
    return next((p.parent for p in newest_first if newest_checkpoint(p.parent)), None)


@contextmanager
def hold_folder(config: Config, run_id: str) -> Iterator[Hold]:
    """Lock the directory of a training for the duration of the block.

    The lock ends with the process, however that ends. The nodes of one training may share a
    directory: the first to come holds it for all.

    Args:
        config: the parameters of train, with a directory as `checkpoint_dir`.
        run_id: the MLflow run.

    Raises:
        UserError: if another training holds it, or the directory cannot be written to.
    """
    path = Path(config.checkpoint_dir, LOCK)
    group = config.rdzv_endpoint if config.nnodes > 1 else ""
    me = Holder(run_id, os.getpid(), socket.gethostname(), group)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise cannot_write("checkpoint_dir", path.parent.absolute(), error) from None
    try:
        if _lock(descriptor, path.parent):
            former = _read(path)[1]
            _write(descriptor, me, former)
            yield Hold(False, former, config, partial(_write, descriptor, me))
            return
        holder = _read_when_written(path)
        if not group or holder.group != group:
            raise UserError(
                f"checkpoint_dir: {path.parent} is in use by the training of run "
                f"{holder.run_id or 'unknown'} (process {holder.pid} on {holder.host}). Needed: "
                "another checkpoint_dir, or that training ended."
            )
        yield Hold(True, Training(), config, lambda training: None)
    finally:
        os.close(descriptor)


def clear_for(config: Config, run_id: str, resumed_run: str | None, former: Training) -> None:
    """Move checkpoints of another run out of the way if its training has ended, else refuse.

    Args:
        config: the parameters of train with `checkpoint_dir` and `resume` resolved.
        run_id: the MLflow run.
        resumed_run: the run that wrote the checkpoint `resume`; None without one.
        former: the last training in the directory.

    Raises:
        UserError: naming the run whose training could still be continued.
    """
    folder = Path(config.checkpoint_dir)
    present = [path for name in (LAST, PREVIOUS, BEST) if (path := folder / name).exists()]
    if not present or Path(config.resume).absolute().parent == folder.absolute():
        return
    owner = next(filter(None, map(run_of, present)), "unknown")
    if owner in (run_id, resumed_run):
        return
    if not former.ended:
        can_resume = present[0].name != BEST
        raise UserError(
            f"checkpoint_dir: {folder} holds {present[0].name} of run {owner}, whose training has "
            f"not ended. Needed: {'resume=auto to continue it, or ' if can_resume else ''}another "
            "checkpoint_dir."
        )
    names = chain([f"run-{owner}"], (f"run-{owner}-{number}" for number in count(2)))
    kept = next(path for name in names if not (path := folder / name).exists())
    kept.mkdir()
    for path in present:
        path.replace(kept / path.name)
    say(
        "checkpoint_dir",
        f"the checkpoints of run {owner}, whose training has ended, are kept in {kept}",
    )


def _lock(descriptor: int, folder: Path) -> bool:
    """Take the lock; False if it is taken, True as well where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        say(
            "checkpoint_dir",
            f"the file system of {folder} has no locks ({error.strerror}); see to it that no other "
            "training uses the directory",
        )
    return True


def _write(descriptor: int, holder: Holder, training: Training) -> None:
    content = {"holder": dataclasses.asdict(holder), "training": dataclasses.asdict(training)}
    with suppress(OSError):  # a full disk; the first checkpoint says so
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(content).encode(), 0)


def _read(path: Path) -> tuple[Holder, Training]:
    try:
        content = json.loads(path.read_text())
        return Holder(**content["holder"]), Training(**content["training"])
    except (OSError, ValueError, TypeError, KeyError):
        return Holder(), Training()


def _read_when_written(path: Path) -> Holder:
    end = time.monotonic() + _READ_SECONDS
    while not (holder := _read(path)[0]).run_id and time.monotonic() < end:
        time.sleep(0.05)
    return holder
