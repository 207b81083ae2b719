"""File names of a frame folder: which pictures are the frames of the clip, and their order."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
FLOW, THUMBNAIL, SECOND_FORMAT = "optical flow", "thumbnail", "second format of a frame"
_COMPANIONS = {
    FLOW: ("flow", "flowx", "flowy", "optical"),
    "depth map": ("depth",),
    "mask": ("mask", "masks"),
    THUMBNAIL: ("thumb", "thumbs", "thumbnail", "preview", "cover", "poster", "folder", "icon"),
}
_KIND_BY_WORD = {word: kind for kind, words in _COMPANIONS.items() for word in words}
_PAIRS = {"x": "y", "y": "x", "u": "v", "v": "u"}  # of the components of optical flow
_MIN_FRAMES = 2  # pictures are left out only next to as many frames
_DIGITS = re.compile(r"(\d+)")
_WORDS = re.compile(r"[^\W\d_]+")
_DECIMALS = re.compile(r"\d+(\.\d+)?")
_NUMBER = re.compile(r"(?P<before>|.*?\D)(?P<whole>\d+)(?P<fraction>\.\d+)?(?P<after>\D*)")
_SIGNED = re.compile(r"[+-]?\d+(\.\d+)?")


@dataclass(frozen=True)
class FrameNames:
    """The pictures of a folder by what they are.

    Attributes:
        frames: names of the frames, in natural order.
        left_out: names of pictures that are no frames of the clip -> what they are.
        patterns: how the frames are named, `#` for a number, and how many, where that is not one
            pattern; else empty.
    """

    frames: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    patterns: dict[str, int] = field(default_factory=dict)


def is_frame(name: str) -> bool:
    """Whether a file name is that of a picture; hidden files are none."""
    return name.lower().endswith(FRAME_SUFFIXES) and not name.startswith(".")


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key: frame2 before frame10, ties such as frame01 and frame1 as text."""
    parts = _DIGITS.split(name)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)], name


def choose_frames(names: Iterable[str]) -> FrameNames:
    """Find the frames among the pictures of a folder, and their order.

    Next to two or more numbered frames, pictures of optical flow, depth maps, masks, thumbnails and
    second formats of a frame are left out. Names that are numbers with signs or decimals are
    ordered as numbers.

    Args:
        names: of the pictures (see `is_frame`).
    """
    keys = {name: natural_order(name) for name in names}
    # Nearly every folder has one pattern of names; it is read each time that the clip is.
    if len({tuple(parts[::2]) for parts, _ in keys.values()}) == 1:
        one = sorted(keys, key=keys.__getitem__)
        is_number = "." in _stem(one[0]) or one[0].startswith(("-", "+"))
        return FrameNames(_by_value(one) if is_number else one)
    left_out = _second_formats(keys)
    left_out |= _companions([name for name in keys if name not in left_out])
    frames = _by_value(sorted(keys.keys() - left_out.keys(), key=keys.__getitem__))
    return FrameNames(frames, left_out, _patterns(frames))


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _pattern(name: str) -> str:
    return _DECIMALS.sub("#", _stem(name)).lower()


def _second_formats(names: Iterable[str]) -> dict[str, str]:
    """Numbered names that differ from another in the suffix alone, which fewer names have."""
    common = Counter(name.rpartition(".")[2].lower() for name in names)

    def preference(name: str) -> tuple[int, int, str]:
        suffix = name.rpartition(".")[2].lower()
        return -common[suffix], FRAME_SUFFIXES.index(f".{suffix}"), name

    by_stem: dict[str, list[str]] = {}
    for name in names:
        if _DIGITS.search(_stem(name)):
            by_stem.setdefault(_stem(name), []).append(name)
    return {
        name: SECOND_FORMAT
        for same in by_stem.values()
        for name in sorted(same, key=preference)[1:]
    }


def _companions(names: Sequence[str]) -> dict[str, str]:
    """Pictures that accompany the frames, by the words in their names."""
    patterns = {_pattern(name) for name in names}

    def kind(name: str) -> str:
        pattern = _pattern(name)
        for word in _WORDS.finditer(pattern):
            if (known := _KIND_BY_WORD.get(word[0])) is not None:
                return known
            if (other := _PAIRS.get(word[0])) is not None:
                start, end = word.span()
                if f"{pattern[:start]}{other}{pattern[end:]}" in patterns:
                    return FLOW
        return ""

    left_out = {name: what for name in names if (what := kind(name))}
    rest = [name for name in names if name not in left_out and _DIGITS.search(_stem(name))]
    return left_out if len(rest) >= _MIN_FRAMES else {}


def _patterns(names: Sequence[str]) -> dict[str, int]:
    """The patterns of the names, if there are several and one has a number."""
    if all(_SIGNED.fullmatch(_stem(name)) for name in names):
        return {}
    counts = Counter(_pattern(name) for name in names)
    return dict(counts) if len(counts) > 1 and any("#" in pattern for pattern in counts) else {}


def _by_value(names: list[str]) -> list[str]:
    """Reorder names in natural order by value, if they are numbers with signs or decimals.

    A minus is a sign only where the whole stem is a number: frame-1 precedes frame-2. 1.9 and 1.10
    are counters, since a decimal has no zero at its end.
    """
    stems = [_stem(name) for name in names]
    if all(_SIGNED.fullmatch(stem) for stem in stems):
        signed = [stem.startswith(("-", "+")) for stem in stems]
        padded = any(stem.lstrip("+-").startswith("0") and len(stem) > 2 for stem in stems)
        if any(signed) and not (all(signed) and padded):  # -001, -002: a dash before a counter
            return sorted(names, key=lambda name: Decimal(_stem(name)))
    matches = [match for stem in stems if (match := _NUMBER.fullmatch(stem))]
    fractions = [match["fraction"] for match in matches if match["fraction"]]
    around = {(match["before"], match["after"]) for match in matches}
    is_decimal = len(matches) == len(names) and len(around) == 1 and fractions
    if not is_decimal or any(text.endswith("0") and text != ".0" for text in fractions):
        return names
    values = {
        name: Decimal(match["whole"] + (match["fraction"] or ""))
        for name, match in zip(names, matches, strict=True)
    }
    return sorted(names, key=values.__getitem__)
