"""The model behind `mlflow models serve`: from a whole video to labels.

MLflow runs this file when the model is loaded ("models from code"), with a copy of the library.
PyTorch is not imported.
"""

import base64
import binascii
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.video import Limits, sample_video
from k400tiny_lib.serving.onnx_classifier import OnnxClassifier, open_classifier

# The defaults of model_config. load_model(..., model_config={...}) overrides them and, for a served
# model, the environment variable SERVING_MODEL_CONFIG with the same as JSON.
DEFAULTS: dict[str, Any] = {
    # Directory of the files that a request may name by `path`; without one, `path` is refused.
    "video_root": "",
    "num_threads": "auto",
    "device": "auto",
    "max_videos": 16,
    "max_megabytes": 64,
    "max_frames": 36_000,  # 20 minutes at 30 a second
    "max_pixels": 3840 * 2160,
    "max_bad_frames": 0.1,  # share of a video's frames that may be damaged
}
TOP_K = 5
_AT_ONCE = 2  # one video is decoded while another is classified; more would only take memory


class VideoClassifier(PythonModel):
    """From a table with a column `video` (base64) or `path` to labels with probabilities."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the ONNX file that is stored with the model."""
        self.config: Mapping[str, Any] = DEFAULTS | dict(context.model_config or {})
        self.turns = threading.BoundedSemaphore(_AT_ONCE)
        self.model: OnnxClassifier = open_classifier(
            Path(context.artifacts["onnx"]), self.config["num_threads"], self.config["device"]
        )

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Label videos.

        Args:
            context: not used, `load_context` has read it.
            model_input: a row per video: `video`, its bytes in base64, or `path`, a file below
                `video_root`.
            params: `top_k`, labels per video.

        Returns:
            A row per video: `labels` and their `probabilities`, best first.

        Raises:
            MlflowException: for a bad request, one line; the scoring server answers with 400.
        """
        try:
            top_k = (params or {}).get("top_k", TOP_K)
            if top_k is None or top_k < 1:
                raise UserError(f"top_k: {top_k} is not allowed. Needed: at least 1.")
            if model_input.empty:
                raise UserError("no videos. Needed: rows with `video` (base64) or `path`.")
            if len(model_input) > self.config["max_videos"]:
                raise UserError(
                    f"{len(model_input)} videos. Needed: at most {self.config['max_videos']}."
                )
            labeled = [
                self._label(number, row, top_k)
                for number, row in enumerate(model_input.to_dict("records"), start=1)
            ]
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        labels = [[label for label, _ in best] for best in labeled]
        probabilities = [[probability for _, probability in best] for best in labeled]
        return pd.DataFrame({"labels": labels, "probabilities": probabilities})

    def _label(self, number: int, row: Mapping[Any, Any], top_k: int) -> list[tuple[str, float]]:
        limits = Limits(int(self.config["max_frames"]), int(self.config["max_pixels"]))
        try:
            # A missing value is None or NaN.
            video = self._video({name: v for name, v in row.items() if isinstance(v, str)})
            with self.turns:
                sampled = sample_video(
                    video,
                    self.model.clip_len,
                    views=self.model.views,
                    limits=limits,
                    max_bad_frames=float(self.config["max_bad_frames"]),
                )
                return self.model.best(self.model.predict(sampled.frames[None])[0], top_k)
        except UserError as error:
            raise UserError(f"video {number}: {error}") from None

    def _video(self, fields: Mapping[Any, str]) -> Path | bytes:
        """The video of a request: a file below video_root, or the bytes of the base64 text."""
        most = float(self.config["max_megabytes"])
        if set(fields) == {"path"}:
            path = self._path(fields["path"])
            size = path.stat().st_size
        elif set(fields) == {"video"}:
            text = "".join(fields["video"].split())  # base64 tools break lines
            size = len(text) * 3 // 4
        else:
            raise UserError(
                f"{' and '.join(map(str, fields)) or 'no text'} given. Needed: `video` (base64) or "
                "`path`."
            )
        if size > most * 1e6:
            raise UserError(f"{size / 1e6:.1f} MB. Needed: at most {most:g} MB.")
        if "path" in fields:
            return path
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise UserError("not base64. Needed: the bytes of a video file in base64.") from None

    def _path(self, name: str) -> Path:
        root = str(self.config["video_root"])
        if not root:
            raise UserError(
                "paths are refused here. Needed: `video` (base64), or a `video_root` in the "
                "model's configuration."
            )
        # Links are resolved first, so that one that leads out of the directory is refused too. The
        # message is the same for every refused path: it does not tell which files exist.
        try:
            path = Path(root, name).resolve()
            allowed = path.is_relative_to(Path(root).resolve()) and path.is_file()
        except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a null byte
            allowed = False
        if not allowed:
            raise UserError(f"there is no {name!r} below video_root.")
        return path


mlflow.models.set_model(VideoClassifier())
