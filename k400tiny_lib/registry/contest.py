"""A new version against the present champion: both on the same test clips."""

import dataclasses
from dataclasses import dataclass

import pandas as pd

from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.comparison import align
from k400tiny_lib.export.scoring import read_predictions
from k400tiny_lib.export.test_clips import ClipFrames
from k400tiny_lib.registry.promotion import Verdict, judge
from k400tiny_lib.registry.registry import load_registered, stored_predictions


@dataclass(frozen=True)
class Contest:
    """Judges the new version against whoever is champion.

    Attributes:
        name: of the registered model.
        frames: the clips.
        table: the predictions of the new version on the test clips, or None.
        reason: why there are none.
    """

    name: str
    frames: ClipFrames
    table: pd.DataFrame | None
    reason: str

    def against(self, version: str) -> Verdict:
        """The verdict; what cannot be compared does not take the name away."""
        if self.table is None:
            return Verdict(False, f"{self.reason}, so it was not compared with version {version}")
        try:
            other = self._predictions_of(version)
        except UserError as error:
            return Verdict(False, f"it cannot be compared with version {version}: {error}")
        return judge(self.table, other, f"version {version}")

    def _predictions_of(self, version: str) -> pd.DataFrame:
        stored = stored_predictions(self.name, version, self.frames.test_digest)
        if stored is not None:
            return align(read_predictions(stored), self.frames.test)
        model = load_registered(f"models:/{self.name}/{version}", self.name)
        reason = self.frames.unusable(model.class_names)
        if reason:
            raise UserError(reason)
        own = dataclasses.replace(self.frames, clip_len=model.clip_len, views=model.views)
        return own.predictions(model.predict)
