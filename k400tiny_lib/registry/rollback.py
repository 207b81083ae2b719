"""Makes a version champion by hand: its ONNX model and its video classifier, or neither."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from k400tiny_lib.config import AUTO, Config
from k400tiny_lib.config.model_names import (
    DEFAULT_MODEL,
    default_model_name,
    default_video_model_name,
)
from k400tiny_lib.errors import UserError, listed
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.registry.promotion import (
    CHAMPION,
    champion_of,
    equals,
    make_champion,
    set_alias,
    version_with,
    versions_of,
)
from k400tiny_lib.registry.video_model import (
    ONNX_MODEL_TAG,
    follow_champion,
    register_sibling,
    sibling_of,
)
from k400tiny_lib.tracking.models import NOT_THERE, NotLoadable, open_registered
from k400tiny_lib.tracking.runs import MODEL_VERSION_TAG, VIDEO_VERSION_TAG

_SHOWN = 10


@dataclass(frozen=True)
class Champion:
    """A registered model, its champion, and its champion before."""

    name: str
    version: str
    before: str | None

    @property
    def text(self) -> str:
        """Now and before, in a line."""
        before = f"version {self.before}" if self.before else "there was none"
        return f"models:/{self.name}@champion is version {self.version} (before: {before})"


def promote_by_hand(config: Config, wait_s: float = 1.0) -> tuple[Champion, Champion]:
    """Make a version of the ONNX model champion, and its sibling that of the video classifiers.

    A sibling that is missing, or that cannot be loaded, is registered again from the ONNX file.

    Args:
        config: `version` and the two names.
        wait_s: as for `promote` of the promotion rule.

    Returns:
        The champions of the two models, the ONNX model first.

    Raises:
        UserError: if there is no such model or version, it cannot be loaded, or another export
            took the name at the same moment. The former champions are kept.
    """
    name = _onnx_name(config.registered_model_name)
    version = _version(name, config.version)
    number = str(version.version)
    uri = f"models:/{name}/{number}"
    open_registered(uri, name, device="cpu", parameter="version")
    video_name = _video_name(config.video_model_name, version)
    if not _has_loadable_sibling(version, video_name):
        register_sibling(uri, version, video_name)
    before, video_before = champion_of(name), champion_of(video_name)
    with _both_or_none({name: before, video_name: video_before}):
        make_champion(name, number, before)
        follow_champion(name, video_name)
        time.sleep(wait_s)
        if (now := champion_of(name)) != number:
            raise _Overtaken(
                f"version: an export made version {now} of {name} champion at the same moment. "
                "Needed: the same command once more."
            )
    video = champion_of(video_name) or ""
    return Champion(name, number, before), Champion(video_name, video, video_before)


def log_champions(onnx: Champion, video: Champion) -> None:
    """Tag the active run with the new champions and those before."""
    for tag, champion in ((MODEL_VERSION_TAG, onnx), (VIDEO_VERSION_TAG, video)):
        mlflow.set_tag(tag, f"{champion.name}/{champion.version}")
        mlflow.set_tag(f"{tag}_before", f"{champion.name}/{champion.before or 'none'}")


class _Overtaken(UserError):
    """Another export has set the champion, which must stay."""


@contextmanager
def _both_or_none(champions: dict[str, str | None]) -> Iterator[None]:
    """Give the names back to the champions of before if the block fails."""
    try:
        yield
    except _Overtaken:
        raise
    except BaseException:
        for name, version in champions.items():
            with suppress(MlflowException):  # the registry cannot be reached
                if version is None:
                    MlflowClient().delete_registered_model_alias(name, CHAMPION)
                else:
                    set_alias(name, CHAMPION, version)
        raise


def _onnx_name(name: str) -> str:
    """The registered model that is meant, the default architecture's before the others."""
    if name != AUTO:
        if not _exists(name):
            raise UserError(
                f"registered_model_name: there is no registered model {name}. Needed: the name of "
                "one that export_onnx registered."
            )
        return name
    default = default_model_name(DEFAULT_MODEL)
    if _exists(default):
        return default
    names = [name for name in map(default_model_name, ARCHITECTURES) if _exists(name)]
    if len(names) != 1:
        known = f"there are {' and '.join(names)}" if names else f"there is no {default}"
        raise UserError(f"registered_model_name: {known}. Needed: the name of a registered model.")
    return names[0]


def _video_name(name: str, version: ModelVersion) -> str:
    """The registered video classifier: as given, or where the ONNX model's siblings are."""
    if name != AUTO:
        if not _exists(name):
            raise UserError(
                f"video_model_name: there is no registered model {name}. Needed: the name of the "
                f"video classifiers of {version.name}."
            )
        return name
    found = mlflow.search_model_versions(
        filter_string=equals(f"tags.{ONNX_MODEL_TAG}", version.name)
    )
    names = sorted({v.name for v in found if v.tags.get(ONNX_MODEL_TAG) == version.name})
    if len(names) > 1:
        raise UserError(
            f"video_model_name: {' and '.join(names)} hold video classifiers of {version.name}. "
            "Needed: one of these names."
        )
    architecture = version.tags.get("architecture", DEFAULT_MODEL)
    return names[0] if names else default_video_model_name(architecture)


def _exists(name: str) -> bool:
    try:
        MlflowClient().get_registered_model(name)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return False
        raise
    return True


def _version(name: str, text: str) -> ModelVersion:
    """The version that a number or an alias means."""
    versions = {str(version.version): version for version in versions_of(name)}
    number = text.lstrip("0") if text.isdecimal() else version_with(text, name)
    if number in versions:
        return versions[number]
    kind = "version" if text.isdecimal() else "alias"
    aliases = MlflowClient().get_registered_model(name).aliases
    raise UserError(
        f"version: {name} has no {kind} {text}. Needed: one of its versions "
        f"({listed(list(reversed(versions)), _SHOWN) or 'it has none'}) or aliases "
        f"({listed(sorted(aliases), _SHOWN) or 'it has none'})."
    )


def _has_loadable_sibling(version: ModelVersion, video_name: str) -> bool:
    sibling = sibling_of(version.name, str(version.version), video_name)
    if sibling is None:
        print(f"{video_name}: has nothing of version {version.version}; made again", flush=True)
        return False
    uri = f"models:/{video_name}/{sibling.version}"
    try:
        open_registered(uri, video_name, device="cpu", parameter="video_model_name")
    except NotLoadable as error:
        print(f"{uri}: cannot be loaded ({error.reason}); made again", flush=True)
        return False
    return True
