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
from mlflow.exceptions import MlflowException

from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.calibration import loss_at
from k400tiny_lib.evaluation.comparison import align, compare_predictions
from k400tiny_lib.evaluation.predictions import probabilities_of, read_predictions
from k400tiny_lib.export.parity import Probabilities
from k400tiny_lib.export.scoring import ExportClips
from k400tiny_lib.tracking.models import open_registered

CHAMPION, CHALLENGER = "champion", "challenger"
PREDICTIONS = "export/predictions.csv"  # in the run of an export
TEST_DIGEST_TAG = "test_digest"  # of a version: the clips that its predictions are of
_LOSS_DIGITS = 4  # two runs of one model differ in the digits after these
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


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
        """Decide against a champion's version, if any; it stays where nothing can be compared."""
        if champion is None:
            return PromotionDecision(True, "there was none")
        if self.policy != "better":
            return PromotionDecision(self.policy == "always", f"promote={self.policy}")
        if self.predictions is None:
            reason = f"{self.not_scored}, so it was not compared with version {champion}"
            return PromotionDecision(False, reason)
        try:
            other = self._predictions_of(champion)
        except UserError as error:
            reason = f"it cannot be compared with version {champion}: {error}"
            return PromotionDecision(False, reason)
        return compare_to_champion(self.predictions, other, f"version {champion}")

    def _predictions_of(self, version: str) -> pd.DataFrame:
        """The predictions of a version: stored by its export, or computed from its graph."""
        stored = _stored_predictions(self.name, version, self.clips.test_digest)
        if stored is not None:
            return align(read_predictions(stored, "promote"), self.clips.test, "promote")
        model = open_registered(
            f"models:/{self.name}/{version}", self.name, device="cpu", parameter="promote"
        )
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
        f"{len(table)} clips (difference {paired.difference:+.1f}, 95 % interval "
        f"{paired.low:+.1f} to {paired.high:+.1f}, McNemar p {paired.mcnemar_p:.2g})"
    )
    if ours[0] == theirs[0]:
        reason += f", loss {-ours[1]:.4f} against {-theirs[1]:.4f}"
    return PromotionDecision(ours > theirs, reason)


def ranking_key(table: pd.DataFrame) -> tuple[int, float]:
    """Models are ordered by the clips labeled correctly, then by the negative loss, in 4 digits."""
    targets = table["target"].to_numpy()
    loss = loss_at(probabilities_of(table), targets, 1.0)
    return int((table["predicted"] == table["target"]).sum()), -round(loss, _LOSS_DIGITS)


def champion_of(name: str) -> str | None:
    """The version of a registered model with the alias `champion`, None where there is none.

    Raises:
        MlflowException: if the registry cannot be asked, which does not mean that there is none.
    """
    try:
        return str(MlflowClient().get_model_version_by_alias(name, CHAMPION).version)
    except MlflowException as error:
        if error.error_code in _NOT_THERE:
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
        MlflowClient().set_registered_model_alias(promotion.name, CHAMPION, version)
        if promotion.policy != "better":
            return decision
        time.sleep(wait_s)
        if champion_of(promotion.name) == version:
            return decision


def make_challenger(name: str) -> None:
    """Give the alias `challenger` to the newest version, whichever of several exports is last."""
    client = MlflowClient()
    newest = max(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
    client.set_registered_model_alias(name, CHALLENGER, str(newest))
