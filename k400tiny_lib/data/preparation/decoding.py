"""Decode videos into frame folders of 40 frames each, like the clips of K400-Tiny.

A clip shows a whole video or a segment of it. Its folder gets its name when it is complete, and has
the digest of its video in a hidden file. While the video is the same, it is not decoded again. So a
killed run continues where it was, and leaves no incomplete folder.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from k400tiny_lib.console import progress
from k400tiny_lib.data.preparation import decoding_worker
from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.data.preparation.decoding_worker import (
    FrameSettings,
    Task,
    VideoFile,
    decode,
    local_file,
)
from k400tiny_lib.data.preparation.executors import map_unordered, open_executor
from k400tiny_lib.files import file_digest, is_remote
from k400tiny_lib.media.frames import is_frame
from k400tiny_lib.media.sampling import Segment

_SOURCE_FILE = ".source"  # in a finished folder: what it was decoded from, see `_Source`
_DIGESTS = "digest"  # in the content index: video URI -> digest
_PROBLEMS = "problem"  # in the content index: video URI and segment -> what is wrong
_BATCH = 8  # segments of a file per task: few enough to bound the results in memory
_REMOTE_BATCH = 64  # a task copies its file once


class VideoPart(NamedTuple):
    """What a clip shows: a video, or a segment of it."""

    video: VideoFile
    segment: Segment | None = None


class Decodings(NamedTuple):
    """What is known about clips after they were decoded: name -> text."""

    bad: dict[str, str]  # reasons
    notes: dict[str, str]  # of clips that are used in spite of some damage


class _Source(NamedTuple):
    """What a finished folder was decoded from."""

    digest: str  # of the video
    segment: str = ""
    note: str = ""
    max_bad_frames: float = 0.0

    def is_current(self, digest: str, part: VideoPart, settings: FrameSettings) -> bool:
        """Whether decoding again would give the same; max_bad_frames matters for damage only."""
        same = (self.digest, self.segment) == (digest, _text(part.segment))
        return same and (not self.note or self.max_bad_frames == settings.max_bad_frames)


def digest_videos(videos: Iterable[VideoFile], index: ContentIndex) -> dict[VideoFile, str]:
    """Digest the bytes of videos, each once; unchanged ones are not read again.

    Returns:
        Video -> digest, empty for one that cannot be read.
    """
    # Without a stamp nothing tells whether a video is still the same.
    stored = index.load(_DIGESTS).items()
    known = {VideoFile(uri, stamp): digest for uri, (stamp, digest) in stored if stamp}
    digests: dict[VideoFile, str] = {}
    rows = []
    for video in dict.fromkeys(videos):
        if video in known:
            digests[video] = known[video]
            continue
        try:
            with local_file(video.uri) as path:
                digests[video] = file_digest(path)
        except OSError:  # decoding reports what is wrong with it
            digests[video] = ""
        else:
            rows.append((*video, digests[video]))
    if rows:
        index.save(_DIGESTS, rows)
    return digests


def plan(
    clips: Mapping[str, VideoPart], target: Path, settings: FrameSettings, index: ContentIndex
) -> tuple[dict[str, VideoPart], Decodings]:
    """Find out what has to be decoded.

    Returns:
        The clips without an up-to-date folder, and what is known about the others: those whose
        videos are bad, and the notes of those that are finished.
    """
    sources = {name: source for name in clips if (source := _read_source(target / name))}
    digests = digest_videos([clips[name].video for name in sources], index)
    problems = index.load(_PROBLEMS)
    todo: dict[str, VideoPart] = {}
    done = Decodings({}, {})
    for name, part in clips.items():
        source = sources.get(name)
        if source and source.is_current(digests[part.video], part, settings):
            if source.note:
                done.notes[name] = source.note
            continue
        key, signature = _problem_entry(part, settings)
        known, problem = problems.get(key, ("", ""))
        if problem and part.video.stamp and known == signature:
            done.bad[name] = problem
        else:
            todo[name] = part
    return todo, done


def decode_videos(
    clips: Mapping[str, VideoPart],
    target: Path,
    settings: FrameSettings,
    index: ContentIndex,
    *,
    scheduler: str,
    workers: int | str,
) -> Decodings:
    """Make a frame folder below `target` of every clip that has none yet.

    Workers decode and this process writes, so they need to read the videos, but not the target.
    Their number and their scheduler are those of `open_executor`; the index receives the results.

    Args:
        clips: names, of which none is a folder above another one, and what they show.
        target: directory of the frame folders.
        settings: of the frames.
        index: digests and problems of former runs.

    Returns:
        The clips that cannot be decoded, and notes about damaged ones: name -> text.

    Raises:
        UserError: if the workers cannot be used.
    """
    target.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    todo, done = plan(clips, target, settings, index)
    for name in done.bad:  # decoded with another max_bad_frames
        _remove_clip(target / name)
    if not todo:
        return done
    digests: dict[VideoFile, str] = {}  # grows while tasks are made
    tasks = _tasks(todo, digests, settings)
    with (
        open_executor(scheduler, workers, preload=(decoding_worker.__name__,)) as (executor, count),
        progress(None, len(todo), "decode") as bar,
    ):
        for task, (digest, results) in map_unordered(executor, count, decode, tasks):
            problems = []
            for (name, segment), decoded in zip(task.clips, results, strict=True):
                if decoded.problem:
                    entry = _problem_entry(VideoPart(task.video, segment), settings)
                    problems.append((*entry, decoded.problem))
                    done.bad[name] = decoded.problem
                    _remove_clip(target / name)
                    continue
                source = _Source(digest, _text(segment), decoded.note, settings.max_bad_frames)
                _write_folder(target, name, decoded.frames, source)
                if decoded.note:
                    done.notes[name] = decoded.note
            bar.update(len(results))
            if digest:  # else it could not be read, which may be temporary
                if task.video not in digests:
                    index.save(_DIGESTS, [(*task.video, digest)])
                digests[task.video] = digest
                if problems:
                    index.save(_PROBLEMS, problems)
    return done


def _tasks(
    clips: Mapping[str, VideoPart], digests: Mapping[VideoFile, str], settings: FrameSettings
) -> Iterator[Task]:
    """Batches of clips of one file; a file whose digest is known by then is not read for it."""
    by_video = defaultdict[VideoFile, list[tuple[str, Segment | None]]](list)
    for name, part in clips.items():
        by_video[part.video].append((name, part.segment))
    for video, parts in by_video.items():
        size = _REMOTE_BATCH if is_remote(video.uri) else _BATCH
        for start in range(0, len(parts), size):
            batch = tuple(parts[start : start + size])
            yield Task(video, batch, settings, digests.get(video, ""))


def _problem_entry(part: VideoPart, settings: FrameSettings) -> tuple[str, str]:
    """Name and signature of what is wrong with a clip, in the content index."""
    signature = f"{part.video.stamp} {settings.digest} {settings.max_bad_frames}"
    return f"{part.video.uri}#{_text(part.segment)}", signature


def _text(segment: Segment | None) -> str:
    return "" if segment is None else f"{segment.start} {segment.end} {segment.unit}"


def _read_source(folder: Path) -> _Source | None:
    """What a folder was decoded from; None without a finished folder."""
    try:
        return _Source(*json.loads((folder / _SOURCE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_folder(target: Path, name: str, frames: Sequence[bytes], source: _Source) -> None:
    folder = target / name
    partial = target / f".part-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    digits = max(2, len(str(len(frames) - 1)))
    for number, frame in enumerate(frames):
        (partial / f"frame{number:0{digits}d}.jpg").write_bytes(frame)
    (partial / _SOURCE_FILE).write_text(json.dumps(source))
    _remove_clip(folder)  # decoded from a former version of the video
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(folder)
        return
    # It holds clips of a former run that gave them other names. The source comes last.
    for path in sorted(partial.iterdir(), reverse=True):
        path.rename(folder / path.name)
    partial.rmdir()


def _remove_clip(folder: Path) -> None:
    """Remove the frames of a clip, and its folder unless that holds the folders of other clips."""
    (folder / _SOURCE_FILE).unlink(missing_ok=True)  # first: without it the clip is not finished
    if folder.is_dir():
        for path in [path for path in folder.iterdir() if is_frame(path.name)]:
            path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def _remove_leftovers(target: Path) -> None:
    """Remove the incomplete folder of a killed run, but not that of another running process."""
    for partial in target.glob(".part-*"):
        if not psutil.pid_exists(int(partial.name.rpartition("-")[2])):
            shutil.rmtree(partial, ignore_errors=True)
