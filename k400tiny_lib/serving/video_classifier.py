"""The model behind `mlflow models serve`: from a whole video to labels.

`served_model.py` makes it known to MLflow. PyTorch is not imported.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_EXHAUSTED
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.media.video import Limits, sample_video
from k400tiny_lib.serving.onnx_classifier import OnnxClassifier, open_classifier, return_memory
from k400tiny_lib.serving.request_rows import decoded_video, path_below
from k400tiny_lib.serving.serving_config import checked_config, is_server
from k400tiny_lib.serving.turns import BusyError, Turns, Work

TOP_K = 5
COLUMNS = ("labels", "probabilities", "known", "error")
_THREADS = 32  # of the server; all but three wait for their turn
_COLUMNS_NEEDED = "a table with a column `video` (base64) or `path`"

_logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """A row of the answer: labels, best first, or why there are none."""

    labels: list[str]
    probabilities: list[float]
    known: bool
    error: str = ""
    cause: UserError | MlflowException | None = None


class VideoClassifier(PythonModel):
    """From a table with a column `video` (base64) or `path` to labels with probabilities."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the ONNX file that is stored with the model.

        Raises:
            MlflowException: if the configuration is wrong, one line.
        """
        if is_server():
            _prepare_server()
        try:
            self.config: Mapping[str, Any] = checked_config(context.model_config or {})
            self.turns = Turns()
            self.model: OnnxClassifier = open_classifier(
                Path(context.artifacts["onnx"]), self.config["num_threads"], self.config["device"]
            )
        except UserError as error:
            raise MlflowException.invalid_parameter_value(f"model_config: {error}") from None

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Label videos.

        Args:
            context: not used, `load_context` has read it.
            model_input: a row per video: `video`, its bytes or these in base64, or `path`, a file
                below `video_root`.
            params: `top_k`, labels per video.

        Returns:
            A row per video, with the index of the input: `labels` and their `probabilities`, best
            first; `known`, whether the model is sure enough; `error`, why a video has no labels,
            empty for the others.

        Raises:
            MlflowException: for a bad request, and if none of the videos can be labeled, with what
                is wrong with the first; one line. The scoring server answers with 400, with 429 if
                it has too much to do, and with 500 if the fault is its own.
        """
        try:
            rows, top_k = self._rows(model_input), _checked_top_k(params)
            with self.turns.request(
                self.config["max_seconds"], self.config["max_total_pixels"]
            ) as work:
                answers = [
                    self._answer(row, top_k, work, is_last=number == len(rows))
                    for number, row in enumerate(rows, start=1)
                ]
            _raise_if_none(answers)
        except BusyError as error:
            raise MlflowException(str(error), RESOURCE_EXHAUSTED) from None
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        except MlflowException:
            raise
        except Exception:
            raise _own_fault() from None
        finally:
            return_memory()
        columns = {name: [getattr(answer, name) for answer in answers] for name in COLUMNS}
        return pd.DataFrame(columns, index=model_input.index)

    def _rows(self, model_input: pd.DataFrame) -> list[dict[Any, Any]]:
        if not isinstance(model_input, pd.DataFrame):
            raise UserError(f"a {type(model_input).__name__}. Needed: {_COLUMNS_NEEDED}.")
        if not len(model_input):
            raise UserError("no videos. Needed: rows with `video` (base64) or `path`.")
        if not {"video", "path"} & set(model_input.columns):
            # MLflow drops the others, and the content of a list or a series.
            raise UserError(f"no column `video` or `path`. Needed: {_COLUMNS_NEEDED}.")
        if len(model_input) > (most := self.config["max_videos"]):
            raise UserError(f"{len(model_input)} videos. Needed: at most {most} (max_videos).")
        rows: list[dict[Any, Any]] = model_input.to_dict("records")
        return rows

    def _answer(self, row: Mapping[Any, Any], top_k: int, work: Work, is_last: bool) -> Answer:
        try:
            return self._label(row, top_k, work, is_last)
        except UserError as error:
            return Answer([], [], False, one_line(error, limit=500), error)
        except Exception:
            fault = _own_fault()
            return Answer([], [], False, fault.message, fault)

    def _label(self, row: Mapping[Any, Any], top_k: int, work: Work, is_last: bool) -> Answer:
        video, name = self._video(row)
        limits = Limits(self.config["max_frames"], self.config["max_pixels"], work.check)
        with work.turn(is_last):
            try:
                sampled = sample_video(
                    video,
                    self.model.clip_len,
                    views=self.model.views,
                    limits=limits,
                    max_bad_frames=float(self.config["max_bad_frames"]),
                )
            except UserError as error:
                # Whoever asks need not know where the directory is.
                raise type(error)(str(error).replace(str(video), name)) if name else error from None
            work.check(0)
            probabilities = self.model.predict(sampled.frames[None])[0]
        best = self.model.best(probabilities, top_k)
        labels, values = [label for label, _ in best], [value for _, value in best]
        return Answer(labels, values, self.model.is_known(probabilities))

    def _video(self, row: Mapping[Any, Any]) -> tuple[Path | bytes, str]:
        """The video of a row, and what the row calls it: a file below video_root, or bytes."""
        # A missing value is None or NaN.
        given = {name: v for name, v in row.items() if isinstance(v, str | bytes)}
        most = float(self.config["max_megabytes"])
        if set(given) == {"path"}:
            name = str(given["path"])
            return path_below(str(self.config["video_root"]), name, most), repr(name)
        if set(given) == {"video"}:
            return decoded_video(given["video"], most), ""
        raise UserError(
            f"{' and '.join(map(str, given)) or 'nothing'} given. Needed: `video` (base64) or "
            "`path`."
        )


def _raise_if_none(answers: Sequence[Answer]) -> None:
    """Raise the error of the first video if no video has labels."""
    first = answers[0].cause
    if first is None or not all(answer.error for answer in answers):
        return
    if isinstance(first, MlflowException):
        raise first
    others = f" (none of the {len(answers)} videos can be labeled)" if len(answers) > 1 else ""
    raise type(first)(f"video 1: {answers[0].error}{others}")


def _checked_top_k(params: Mapping[str, Any] | None) -> int:
    top_k = (params or {}).get("top_k", TOP_K)
    if not isinstance(top_k, int) or top_k < 1:
        raise UserError(f"top_k: {top_k} is not allowed. Needed: at least 1.")
    return top_k


def _own_fault() -> MlflowException:
    """The answer to an error that is not the caller's; its details are for the server's log."""
    _logger.exception("A video could not be labeled.")
    return MlflowException("The server failed on this video; its log says why.")


def _prepare_server() -> None:
    """Set MLflow's server up, which loads the model within its event loop."""
    # By default it has 4 threads more than there are processors. Requests that wait for one are
    # not seen here: their time goes by, and short ones wait behind long ones.
    with suppress(RuntimeError):  # no event loop in this thread
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
    # It sends its stack trace to whoever sent a body that it cannot read.
    serialize = MlflowException.serialize_as_json

    def without_trace(error: MlflowException) -> str:
        trace = error.json_kwargs.pop("stack_trace", None)
        if trace:
            _logger.warning("A request was refused.\n%s", trace)
        return str(serialize(error))

    MlflowException.serialize_as_json = without_trace  # type: ignore[method-assign]
