"""Frames become the square that a player would show, whatever the shape and color of the video."""

import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.video import Image, Limits, sample_video
from tests.conftest import REPOSITORY
from tests.helpers.frames import resize_and_crop
from tests.helpers.videos import encode, moving

ONE = 65536  # in a display matrix
# a, b, c, d: a point (x, y) is shown at (a x + c y, b x + d y), y downwards. W is white, B black, R
# red, G green; the picture is WB over RG before.
MATRICES = {
    "as it is": ((1, 0, 0, 1), "WB/RG"),
    "a quarter clockwise": ((0, 1, -1, 0), "RW/GB"),
    "upside down": ((-1, 0, 0, -1), "GR/BW"),
    "a quarter counterclockwise": ((0, -1, 1, 0), "BG/WR"),
    "mirrored": ((-1, 0, 0, 1), "BW/GR"),
    "mirrored top to bottom": ((1, 0, 0, -1), "RG/WB"),
    "rows as columns": ((0, 1, 1, 0), "WR/BG"),
    "rows as columns, turned": ((0, -1, -1, 0), "GB/RW"),
    "all zeros": ((0, 0, 0, 0), "WB/RG"),
}
COLORS = {"W": (255, 255, 255), "B": (0, 0, 0), "R": (255, 0, 0), "G": (0, 255, 0)}


def quarters(size: tuple[int, int] = (64, 64)) -> Image:
    """White and black over red and green."""
    picture = np.zeros((*size, 3), np.uint8)
    half, middle = size[0] // 2, size[1] // 2
    picture[:half, :middle], picture[half:, :middle] = COLORS["W"], COLORS["R"]
    picture[half:, middle:] = COLORS["G"]
    return picture


def letters(image: Image) -> str:
    """Which color each quarter has."""
    side = len(image)
    rows = []
    for row in (side // 4, 3 * side // 4):
        pixels = [image[row, column].astype(int) for column in (side // 4, 3 * side // 4)]
        rows.append("".join(min(COLORS, key=lambda c: abs(p - COLORS[c]).sum()) for p in pixels))
    return "/".join(rows)


def with_matrix(content: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """A video with another display matrix in its track header."""
    a, b, c, d = (ONE * value for value in matrix)
    at = content.index(b"tkhd") + 44
    return content[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[at + 36 :]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("four") / "x.mp4"
    encode(path, [quarters((64, 96))] * 4)
    return path.read_bytes()


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_and_mirrored_as_a_player_does(four: bytes, name: str) -> None:
    matrix, expected = MATRICES[name]
    frames = sample_video(with_matrix(four, matrix), 3).frames
    assert [letters(frame) for frame in frames] == [expected] * 3


def test_an_angle_is_rounded_to_quarters(four: bytes) -> None:
    angle = np.radians(85)
    matrix = tuple(np.array([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)]))
    content = with_matrix(four, (0, 0, 0, 0))
    at = content.index(b"tkhd") + 44
    a, b, c, d = (int(ONE * value) for value in matrix)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    content = content[:at] + turned + content[at + 36 :]
    assert letters(sample_video(content, 2).frames[0]) == "RW/GB"


def test_an_orientation_within_the_stream_holds_for_all_frames(tmp_path: Path) -> None:
    path = tmp_path / "x.h264.mkv"
    options = {"bf": "0", "g": "100", "keyint_min": "100"}
    encode(tmp_path / "plain.mp4", [quarters()] * 12, "libx264", codec_options=options)
    with av.open(str(tmp_path / "plain.mp4")) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream_from_template(stream)
        insert = av.bitstream.BitStreamFilterContext(
            "h264_metadata=display_orientation=insert:flip=horizontal", stream
        )
        for number, packet in enumerate(source.demux(stream)):
            # Only the first frame says how it is to be shown.
            for changed in insert.filter(packet) if number == 0 else [packet]:
                if changed.size:
                    changed.stream = out
                    target.mux(changed)
    with av.open(str(path)) as container:
        sides = [frame.side_data.get("DISPLAYMATRIX") for frame in container.decode(video=0)]
    assert sides[0] is not None
    frames = sample_video(path, 5).frames
    assert [letters(frame) for frame in frames] == ["BW/GR"] * 5


@pytest.mark.parametrize(
    ("aspect", "is_applied"),
    [(Fraction(2), True), (Fraction(1, 2), True), (Fraction(100), False), (Fraction(1), False)],
)
def test_pixels_that_are_no_squares_are_shown_in_their_shape(
    tmp_path: Path, aspect: Fraction, is_applied: bool
) -> None:
    picture = next(moving(1, (64, 128) if aspect < 1 else (128, 64)))
    encode(tmp_path / "x.mp4", [picture] * 3, "libx264", pixel_aspect=aspect)
    frame = sample_video(tmp_path / "x.mp4", 2, side=64).frames[0]
    # In its shape all of the picture is seen, else the middle half.
    stretched = np.repeat(picture, 2, 0 if aspect < 1 else 1)
    expected = torch.from_numpy(stretched if is_applied else picture)[None]
    middle = resize_and_crop(expected, 64, 64)[:, 0].permute(1, 2, 0).numpy()
    assert np.abs(frame.astype(int) - middle).mean() < 10  # another picture: about 50


def natural(size: tuple[int, int]) -> Iterator[Image]:
    """Two frames with the detail of a photograph: noise at every scale, mostly in brightness."""
    rng = np.random.default_rng(0)
    for _ in range(2):
        picture = np.full((*size, 3), 128.0, np.float32)
        for cells in (4, 16, 64):
            gray = rng.normal(0, 24, (cells, cells, 1)) + rng.normal(0, 8, (cells, cells, 3))
            picture += cv2.resize(
                gray.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC
            )
        yield picture.clip(0, 255).astype(np.uint8)


SIZES = [
    *((1080, 1920), (1078, 1910), (720, 1280), (1280, 720), (240, 321), (336, 336)),
    *((500, 336), (120, 1000), (90, 160)),
]
INTERLACED = [(1080, 1920), (576, 720)]


@pytest.mark.parametrize(
    ("size", "is_interlaced"),
    [*((size, False) for size in SIZES), *((size, True) for size in INTERLACED)],
)
def test_pixels_are_those_of_torchvisions_antialiased_resize(
    tmp_path: Path, size: tuple[int, int], is_interlaced: bool
) -> None:
    height, width = (length // 2 * 2 for length in size)
    options = {"crf": "18", "preset": "ultrafast", "x264-params": f"interlaced={is_interlaced:d}"}
    encode(tmp_path / "x.mkv", natural((height, width)), "libx264", codec_options=options)
    with av.open(str(tmp_path / "x.mkv")) as container:
        full = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    expected = resize_and_crop(torch.from_numpy(full), 336, 336).permute(1, 2, 3, 0).numpy()
    difference = np.abs(sample_video(tmp_path / "x.mkv", 2).frames.astype(int) - expected)
    if size == (336, 336):
        assert not difference.any()
    # Both filter with the same triangle, but FFmpeg filters luma and color in planes, before it
    # makes RGB of them. PyAV's conversion without scaling also rounds down, by a level.
    assert difference.mean() < 1.75
    assert np.percentile(difference, 99) <= 5


def test_colors_keep_their_edges(tmp_path: Path) -> None:
    encode(tmp_path / "x.mkv", moving(2, (720, 1280)), "libx264", codec_options={"crf": "18"})
    with av.open(str(tmp_path / "x.mkv")) as container:
        full = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    expected = resize_and_crop(torch.from_numpy(full), 336, 336).permute(1, 2, 3, 0).numpy()
    difference = np.abs(sample_video(tmp_path / "x.mkv", 2).frames.astype(int) - expected)
    assert difference.mean() < 3  # at half the size of the square, 7


@pytest.mark.parametrize("matrix", [1, 5, 9])  # BT.709, BT.601, BT.2020
@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("size", [64, 40, 160])
def test_colors_are_those_that_were_encoded(
    tmp_path: Path, matrix: int, is_full: bool, size: int
) -> None:
    patches = np.array([(200, 60, 40), (30, 160, 90), (70, 80, 210), (128, 128, 128)], np.uint8)
    picture = np.repeat(np.repeat(patches.reshape(2, 2, 3), size // 2, 0), size // 2, 1)
    path = tmp_path / "x.mkv"
    color = {"colorspace": matrix, "color_range": 2 if is_full else 1}
    encode(path, [picture] * 2, "libx264", color=color, codec_options={"qp": "0"})
    frame = sample_video(path, 2, side=64).frames[0].astype(int)
    centers = frame[16::32, 16::32].reshape(4, 3)
    assert np.abs(centers - patches).max() <= 3  # 8-bit YUV itself is off by up to 2


def write_sizes(path: Path, sizes: list[tuple[int, int]]) -> None:
    """A Matroska file whose frame size changes on the way, after four frames each time."""
    stream, number = None, 0
    with av.open(str(path), "w") as target:
        for size in sizes:
            part = path.with_name("part.mkv")
            encode(part, [quarters(size)] * 4, "mjpeg", pix_fmt="yuvj420p")
            with av.open(str(part)) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = 40 * number
                        packet.stream, number = stream, number + 1
                        target.mux(packet)


def test_frames_of_several_sizes_become_one(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    write_sizes(path, [(64, 64), (160, 320), (48, 32)])
    sampled = sample_video(path, 12, side=64)
    assert sampled.num_frames == 12
    assert {letters(frame) for frame in sampled.frames} == {"WB/RG"}


def test_a_later_size_is_limited_too(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    write_sizes(path, [(64, 64), (1088, 1920)])
    assert sample_video(path, 2, limits=Limits(100, 1920 * 1088)).num_frames == 8
    with pytest.raises(UserError, match="cannot be decoded"):
        sample_video(path, 2, limits=Limits(100, 64 * 64))
    with pytest.raises(UserError, match=r"frames of 64x64. Needed: at most 4095 pixels"):
        sample_video(path, 2, limits=Limits(100, 4095))


def test_a_frame_size_that_no_camera_has_is_refused_before_decoding(tmp_path: Path) -> None:
    encode(tmp_path / "x.gif", moving(3, (32, 32)), "gif", pix_fmt="rgb8")
    content = (tmp_path / "x.gif").read_bytes()
    claimed = content[:6] + struct.pack("<HH", 16000, 16000) + content[10:]
    with pytest.raises(UserError, match=r"frames of 16000x16000\. Needed: at most 67108864 pixels"):
        sample_video(claimed, 2)


def test_the_same_bytes_whatever_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.mp4"
    encode(path, moving(20, (360, 640)), "libx264")
    results = []
    for cores in (1, 2, 8):
        monkeypatch.setattr(
            "k400tiny_lib.media.container.opening.available_cores", lambda cores=cores: cores
        )
        results.append(sample_video(path, 6).frames)
    assert all(np.array_equal(results[0], frames) for frames in results[1:])


def test_memory_does_not_grow_with_a_long_side(tmp_path: Path) -> None:
    path = tmp_path / "x.avi"
    encode(path, moving(3, (16, 16000)), "mjpeg", pix_fmt="yuvj420p")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from k400tiny_lib.media.video import sample_video\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(sample_video(Path(sys.argv[1]), 3).frames.shape)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    command = [sys.executable, "-c", code, str(path)]
    output = subprocess.run(
        command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    assert output[0] == "(3, 336, 336, 3)"
    assert int(output[1]) < 60  # MB; the scaled frame would take 340
