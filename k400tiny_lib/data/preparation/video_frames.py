"""One video decoded into the JPEG frames of a clip, on whichever machine does it."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch

from k400tiny_lib.data.loading.transforms import resize_and_crop
from k400tiny_lib.data.preparation.decoding import FrameSettings, Task
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import fetch_file, file_digest, is_remote
from k400tiny_lib.media.video import Image, sample_video


@dataclass(frozen=True)
class Decoded:
    """A decoded video: its digest and its frames as JPEG files; no frames, but a reason, if bad."""

    digest: str
    frames: tuple[bytes, ...]
    problem: str = ""


def decode(task: Task) -> Decoded:
    """Decode one video into JPEG frames: short side and centre crop as the settings say.

    The same video and settings give the same bytes, on whichever worker. What is wrong with the
    video is part of the result.
    """
    torch.set_num_threads(1)  # there is a worker per core already
    with tempfile.TemporaryDirectory() as folder:
        path = Path(task.uri)
        digest = ""
        try:
            if is_remote(task.uri):
                path = Path(folder, task.uri.rpartition("/")[2])
                fetch_file(task.uri, path)
            digest = file_digest(path)
            settings = task.settings
            frames = sample_video(path, settings.num_frames, lambda image: _jpeg(image, settings))
        except UserError as error:
            return Decoded(digest, (), str(error).replace(f"{path} ", "").rstrip("."))
        except OSError as error:
            return Decoded(digest, (), f"cannot be read: {error.strerror or error}")
    return Decoded(digest, tuple(frames))


def _jpeg(image: Image, settings: FrameSettings) -> bytes:
    frames = torch.from_numpy(image)[None]  # (H, W, C) -> (1, H, W, C)
    pixels = resize_and_crop(frames, settings.size, settings.size)[
        :, 0
    ]  # (C, 1, S, S) -> (C, S, S)
    bgr = pixels.flip(0).permute(1, 2, 0).contiguous().numpy()
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, settings.quality])
    return bytes(jpeg.tobytes())
