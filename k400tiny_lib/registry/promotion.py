"""The promotion rule: which version of a registered model is `champion`.

A version beats another one if it labels more of the same test clips correctly or, where these are
equal, has a lower loss. That is a total order, the same for everybody, so that exports at the same
moment end with the same champion. The interval of the paired difference and McNemar's test say
whether a difference is more than chance. They are reported, not required: they define no order, and
on a small test split no new version could ever win.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.calibration import loss_at
from k400tiny_lib.evaluation.comparison import align, compare_predictions
from k400tiny_lib.evaluation.predictions import probabilities_of, read_predictions
from k400tiny_lib.export.parity import Probabilities
from k400tiny_lib.export.scoring import ExportClips
from k400tiny_lib.serving.onnx_classifier import OnnxClassifier
from k400tiny_lib.tracking.models import NOT_THERE, NotLoadable, open_registered

CHAMPION, CHALLENGER = "champion", "challenger"
PREVIOUS = "previous"  # alias of the champion before the present one
PREDICTIONS = "export/predictions.csv"  # in the run of an export
TEST_DIGEST_TAG = "test_digest"  # of a version: the clips that its predictions are of
_LOSS_DIGITS = 4  # two runs of one model differ in the digits after these


@dataclass(frozen=True)
class PromotionDecision:
    """Whether a new version becomes `champion`, and why."""

    promoted: bool
    reason: str

    @property
    def text(self) -> str:
        """The decision as a tag."""
        return f"{'champion' if self.promoted else 'challenger'}: {self.reason}"


@dataclass(frozen=True)
class Promotion:
    """Decides whether a new version replaces a champion.

    Attributes:
        policy: `better`, `always` or `never`; where there is no champion, the version becomes one.
        name: of the registered model.
        clips: the data that the new version was exported with.
        predictions: its predictions table of the test clips, or None.
        not_scored: why there is none.
    """

    policy: str
    name: str
    clips: ExportClips
    predictions: pd.DataFrame | None = None
    not_scored: str = ""

    def decide(self, champion: str | None) -> PromotionDecision:
        """Decide against a champion's version, if any; it stays where nothing can be compared.

        A champion that cannot be loaded by anybody loses. One that cannot be reached stays.
        """
        if champion is None:
            return PromotionDecision(True, "there was none")
        if self.policy != "better":
            return PromotionDecision(self.policy == "always", f"promote={self.policy}")
        try:
            model = open_registered(
                f"models:/{self.name}/{champion}", self.name, device="cpu", parameter="promote"
            )
            if self.predictions is None:
                reason = f"{self.not_scored}, so it was not compared with version {champion}"
                return PromotionDecision(False, reason)
            other = self._predictions_of(champion, model)
        except NotLoadable as error:
            reason = f"the champion, version {champion}, cannot be loaded ({error.reason})"
            return PromotionDecision(True, reason)
        except UserError as error:
            reason = f"it cannot be compared with version {champion}: {str(error).rstrip('.')}"
            return PromotionDecision(False, f"{reason}; the entry point promote decides by hand")
        return compare_to_champion(self.predictions, other, f"version {champion}")

    def _predictions_of(self, version: str, model: OnnxClassifier) -> pd.DataFrame:
        """The predictions of a version: stored by its export, or computed from its graph."""
        stored = _stored_predictions(self.name, version, self.clips.test_digest)
        if stored is not None:
            return align(read_predictions(stored, "promote"), self.clips.test, "promote")
        if reason := self.clips.reason_not_to_score(model.class_names):
            raise UserError(reason)

        def predict(frames: torch.Tensor) -> Probabilities:
            return model.predict(frames.numpy())

        clips = replace(self.clips, clip_len=model.clip_len, views=model.views)
        return clips.predictions(predict)


def _stored_predictions(name: str, version: str, digest: str) -> Path | None:
    """The predictions that an export stored, if they are of the test clips with this digest."""
    registered = MlflowClient().get_model_version(name, version)
    if registered.tags.get(TEST_DIGEST_TAG) != digest or not registered.run_id:
        return None
    uri = f"runs:/{registered.run_id}/{PREDICTIONS}"
    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except Exception:  # every artifact store raises its own; the version is then scored again
        return None


def compare_to_champion(
    table: pd.DataFrame, champion: pd.DataFrame, name: str
) -> PromotionDecision:
    """Decide between a new version and the champion by `ranking_key`.

    Args:
        table, champion: predictions tables of the two, of the same clips in the same order.
        name: of the champion, for the reason.
    """
    paired = compare_predictions(table, table["predicted"], champion["predicted"])
    ours, theirs = ranking_key(table), ranking_key(champion)
    reason = (
        f"top-1 {paired.acc1:.1f} % against {paired.other_acc1:.1f} % of {name} on the same "
        f"{len(table)} clips (difference {_signed(paired.difference)}, 95 % interval "
        f"{_signed(paired.low)} to {_signed(paired.high)}, McNemar p {paired.mcnemar_p:.2g})"
    )
    if ours[0] == theirs[0]:
        reason += f", loss {-ours[1]:.4f} against {-theirs[1]:.4f}"
    return PromotionDecision(ours > theirs, reason)


def _signed(points: float) -> str:
    """A difference in points with its sign; no "-0.0"."""
    return f"{points:+z.1f}"  # no -0.0


def ranking_key(table: pd.DataFrame) -> tuple[int, float]:
    """Models are ordered by the clips labeled correctly, then by the negative loss, in 4 digits."""
    targets = table["target"].to_numpy()
    loss = loss_at(probabilities_of(table), targets, 1.0)
    return int((table["predicted"] == table["target"]).sum()), -round(loss, _LOSS_DIGITS)


def champion_of(name: str) -> str | None:
    """The version of a registered model with the alias `champion`; see `version_with`."""
    return version_with(CHAMPION, name)


def version_with(alias: str, name: str) -> str | None:
    """The version of a registered model with an alias, None where there is none.

    Raises:
        MlflowException: if the registry cannot be asked, which does not mean that there is none.
    """
    try:
        return str(MlflowClient().get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        raise


def promote(version: str, promotion: Promotion, wait_s: float = 1.0) -> PromotionDecision:
    """Give a new version the alias `champion` if it is promoted.

    The registry has no locks. A decision holds only while the champion that it was made against is
    still the champion, so that is read again before the alias is set and, for an export that sets
    it at the same moment, once more `wait_s` later.

    Args:
        version: number of the new version.
        promotion: the rule.
        wait_s: longer than another export takes from reading the alias to setting it.
    """
    while True:
        champion = champion_of(promotion.name)
        decision = promotion.decide(champion)
        if champion_of(promotion.name) != champion:  # a comparison can take minutes
            continue
        if not decision.promoted:
            return decision
        make_champion(promotion.name, version, before=champion)
        if promotion.policy != "better":
            return decision
        time.sleep(wait_s)
        if champion_of(promotion.name) == version:
            return decision


def make_challenger(name: str) -> None:
    """Give the alias `challenger` to the newest version, whichever of several exports is last."""
    newest = versions_of(name)[-1]
    set_alias(name, CHALLENGER, str(newest.version))


def make_champion(name: str, version: str, before: str | None) -> None:
    """Give the alias `champion` to a version, and `previous` to the champion before it, if any."""
    set_alias(name, CHAMPION, version)
    if before is not None and before != version:
        set_alias(name, PREVIOUS, before)


def set_alias(name: str, alias: str, version: str) -> None:
    """Give an alias of a registered model to a version, also where another process does so now.

    MLflow's SQL store looks for the alias and adds it where there is none, so of two processes that
    add it at the same moment one fails. Once the other has added it, it is there to be changed.
    """
    client = MlflowClient()
    try:
        client.set_registered_model_alias(name, alias, version)
    except MlflowException:
        if version_with(alias, name) is None:  # not a race: nobody has added it
            raise
        client.set_registered_model_alias(name, alias, version)


def versions_of(name: str) -> list[ModelVersion]:
    """All versions of a registered model, oldest first; none where there is no such model."""
    found = mlflow.search_model_versions(filter_string=equals("name", name))
    return sorted((v for v in found if v.name == name), key=lambda v: int(v.version))


def equals(field: str, text: str) -> str | None:
    """A filter of MLflow's searches, None where it cannot be written: the caller filters again.

    Filters have no escapes: a text with one kind of quotes is put into the other kind.
    """
    quote = '"' if "'" in text else "'"
    return None if quote in text else f"{field} = {quote}{text}{quote}"
