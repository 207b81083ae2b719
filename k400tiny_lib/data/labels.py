"""Class ids: those of Kinetics-400 where all labels are Kinetics-400 names."""

from collections.abc import Iterable

from torchvision.models.video import R2Plus1D_18_Weights

KINETICS_400: tuple[str, ...] = tuple(R2Plus1D_18_Weights.KINETICS400_V1.meta["categories"])


def categories_of(labels: Iterable[str]) -> dict[str, int]:
    """Map labels to class ids.

    Returns:
        All 400 classes of Kinetics-400 with their ids if every label is one of them, so that
        pretrained heads fit; otherwise the labels in alphabetical order.
    """
    present = set(labels)
    names = KINETICS_400 if present <= set(KINETICS_400) else sorted(present)
    return {label: index for index, label in enumerate(names)}
