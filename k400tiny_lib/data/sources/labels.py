"""Labels: one spelling per class, and class ids, those of Kinetics-400 where they fit."""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from k400tiny_lib.errors import listed

# In the order of the ids, as in the metadata of torchvision's weights; a test compares the two.
# Importing torchvision takes seconds, which main would spend each time.
_NAMES = Path(__file__).with_name("kinetics_400.txt")
KINETICS_400: tuple[str, ...] = tuple(_NAMES.read_text().splitlines())
_KINETICS_BY_KEY = {name.casefold(): name for name in KINETICS_400}
# Soft hyphen, zero-width spaces, marks of direction, byte order mark.
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
# Joiners have a meaning within Persian words and emoji, and none next to ASCII or at an end.
_USELESS_JOINER = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])")
_JOINER_OR_VARIANT = re.compile("[\u200c\u200d\ufe00-\ufe0f]")
# Cyrillic and Greek letters that are drawn like Latin ones.
_LOOK_ALIKE = str.maketrans("абвгеһіјкмнопрсѕтухԁԛԝαικνορτυχ", "abbrehijkmhonpcstyxdqwaikvoptux")
_LISTED = 5  # labels that a note names


def categories_of(labels: Iterable[str]) -> dict[str, int]:
    """Map labels to class ids.

    Returns:
        All 400 classes of Kinetics-400 with their ids if every label is one of them, so that
        pretrained heads fit; otherwise the labels in alphabetical order.
    """
    present = set(labels)
    names = KINETICS_400 if present <= set(KINETICS_400) else sorted(present)
    return {label: index for index, label in enumerate(names)}


def clean_label(label: str) -> str:
    """A label in composed Unicode (NFC), without invisible characters and needless spaces."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", label))
    return " ".join(_USELESS_JOINER.sub("", text).split())


def label_key(label: str) -> str:
    """The same for all spellings of a label that differ in case, spaces or Unicode form only."""
    return _JOINER_OR_VARIANT.sub("", clean_label(label)).casefold()


def unify_spelling(labels: "pd.Series[str]") -> tuple["pd.Series[str]", dict[str, str]]:
    """Give labels that differ only in case, spaces or Unicode form one spelling.

    This is the spelling of Kinetics-400 if the label is one of its names (also with underscores
    for spaces, as in names of class folders), else the most frequent one, else the first in the
    alphabet.

    Returns:
        The labels, and the changes: spelling as read -> spelling used.
    """
    counts = labels.value_counts()
    spellings = sorted(counts.index, key=lambda label: (-counts[label], label))
    chosen: dict[str, str] = {}
    unified: dict[str, str] = {}
    for spelling in spellings:
        key = label_key(spelling)
        known = _KINETICS_BY_KEY.get(key) or _KINETICS_BY_KEY.get(key.replace("_", " "))
        unified[spelling] = known or chosen.setdefault(key, clean_label(spelling))
    changed = {read: used for read, used in sorted(unified.items()) if read != used}
    return labels.map(unified), changed


def label_notes(read: "pd.Series[str]", used: "pd.Series[str]") -> list[str]:
    """Remarks about labels that were merged, look alike, or are nearly names of Kinetics-400.

    Args:
        read: the labels as they were read.
        used: the same after `unify_spelling`.
    """
    labels = sorted(set(used))
    return [*_merged(read, used), *_look_alikes(labels), *_near_kinetics(labels)]


def _merged(read: "pd.Series[str]", used: "pd.Series[str]") -> list[str]:
    counts = pd.crosstab(used, read)
    merged = []
    for label, row in counts.iterrows():
        clips = row[row > 0]
        if len(clips) > 1:
            spellings = [f"{_quoted(str(name))} ({count})" for name, count in clips.items()]
            merged.append(f"{_joined(spellings)} become {_quoted(str(label))}")
    if not merged:
        return []
    return [f"spellings of one label are merged (rows of each): {listed(merged, _LISTED, '; ')}"]


def _look_alikes(labels: list[str]) -> list[str]:
    by_look: dict[str, list[str]] = {}
    for label in labels:
        look = unicodedata.normalize("NFKC", label_key(label)).casefold().translate(_LOOK_ALIKE)
        by_look.setdefault(re.sub(r"[\s_-]+", "", look) or look, []).append(label)
    alike = [_joined(list(map(_spelled, same))) for same in by_look.values() if len(same) > 1]
    if not alike:
        return []
    return [f"labels that look alike stay separate classes: {listed(alike, _LISTED, '; ')}"]


def _near_kinetics(labels: list[str]) -> list[str]:
    others = [label for label in labels if label not in KINETICS_400]
    known = len(labels) - len(others)
    if not others or 2 * known <= len(labels):
        return []

    def described(label: str) -> str:
        near = difflib.get_close_matches(label.casefold().replace("_", " "), _KINETICS_BY_KEY, n=1)
        return f"{label!r}" + (f" (did you mean {_KINETICS_BY_KEY[near[0]]!r}?)" if near else "")

    names = listed([*map(described, others[:_LISTED]), *others[_LISTED:]], _LISTED)
    verb = "is" if len(others) == 1 else "are"
    return [
        f"{known} of {len(labels)} labels are names of Kinetics-400; {names} {verb} not, so the "
        "class ids are not those of Kinetics-400 and its pretrained heads do not fit"
    ]


def _quoted(label: str) -> str:
    """A label in quotes, with escapes where it would look like another."""
    return repr(label) if unicodedata.is_normalized("NFKC", label) else ascii(label)


def _spelled(label: str) -> str:
    return repr(label) if label.isascii() else f"{label!r} ({label!a})"


def _joined(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
