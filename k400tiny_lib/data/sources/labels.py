"""Labels: one spelling per class, and class ids, those of Kinetics-400 where they fit."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

# In the order of the ids, as in the metadata of torchvision's weights; a test compares the two.
# Importing torchvision takes seconds, which main would spend each time.
_NAMES = Path(__file__).with_name("kinetics_400.txt")
KINETICS_400: tuple[str, ...] = tuple(_NAMES.read_text().splitlines())
_KINETICS_BY_KEY = {name.casefold(): name for name in KINETICS_400}


def categories_of(labels: Iterable[str]) -> dict[str, int]:
    """Map labels to class ids.

    Returns:
        All 400 classes of Kinetics-400 with their ids if every label is one of them, so that
        pretrained heads fit; otherwise the labels in alphabetical order.
    """
    present = set(labels)
    names = KINETICS_400 if present <= set(KINETICS_400) else sorted(present)
    return {label: index for index, label in enumerate(names)}


def unify_spelling(labels: "pd.Series[str]") -> tuple["pd.Series[str]", dict[str, str]]:
    """Give labels that differ only in case or spaces one spelling.

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
        text = " ".join(spelling.split())
        key = text.casefold()
        known = _KINETICS_BY_KEY.get(key) or _KINETICS_BY_KEY.get(key.replace("_", " "))
        unified[spelling] = known or chosen.setdefault(key, text)
    changed = {read: used for read, used in sorted(unified.items()) if read != used}
    return labels.map(unified), changed
