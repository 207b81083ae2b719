"""The descriptions of registered versions: model cards in markdown.

A card names its own version, not an alias: it is read after another version has become champion.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from k400tiny_lib.plots import short_text

_LIMIT = 5000  # of the registry's database
_CLASSES_SHOWN = 20
_CLASSIC = "?workflowType=machine_learning"  # MLflow's UI would otherwise open for GenAI


def model_card(name: str, version: str, metadata: Mapping[str, Any], parity: float) -> str:
    """Describe a version: the model, its score and on which clips, its use, its limits.

    Args:
        name: of the registered model.
        version: number of the version.
        metadata: of the graph.
        parity: largest difference of a probability between ONNX Runtime and PyTorch on the same
            pixels.
    """
    classes, num_frames = metadata["class_names"], _num_frames(metadata)
    shown = ", ".join(_literal(short_text(label)) for label in classes[:_CLASSES_SHOWN])
    shown += ", ..." if classes[_CLASSES_SHOWN:] else ""
    any_length = " (the one it was trained on; any T works)" if metadata["frames_free"] else ""
    quantize = metadata["quantize"]
    precision = "float32" if quantize == "none" else f"{quantize}, made from float32"
    text = f"""\
# {_literal(name)}

{metadata["architecture"]} for {len(classes)} classes ({shown}), {precision}. \
Weights: {metadata["training_run_id"] or "a checkpoint without a run"}.

## Score

{_score(metadata)} {_calibration(metadata)}

Largest difference of a probability between float32 ONNX and PyTorch on the same pixels: \
{parity:.1e}. Proven in ONNX Runtime; see the documentation for other runtimes.

## Use

`frames`: uint8 (N, T, H, W, 3), RGB, any N, H and W, T = {num_frames}{any_length}; \
{metadata["sampling"]}. `probabilities`: float32 (N, {len(classes)}). Resizing \
{_resizing(metadata)}, cropping to {metadata["crop_size"]} px and normalization are inside.

```python
import json, mlflow, numpy as np
model = mlflow.pyfunc.load_model({_python_text(f"models:/{name}/{version}")})
frames = np.zeros((1, {num_frames}, 336, 336, 3), dtype=np.uint8)
probabilities = model.predict({{"frames": frames}})["probabilities"]
print(json.loads(model.metadata.metadata["class_names"])[probabilities[0].argmax()])
```

## Limits

{_limits(metadata)}
"""
    return text[:_LIMIT]


def video_card(
    name: str, version: str, onnx_model: str, onnx_version: str, metadata: Mapping[str, Any]
) -> str:
    """Describe a version of the video classifier: its ONNX model, score, requests and classes.

    Args:
        name: of the registered video classifier.
        version: number of the version.
        onnx_model, onnx_version: the version of the ONNX model inside it.
        metadata: of the graph; some keys are missing in graphs of before.
    """
    uri, onnx_uri = f"models:/{name}/{version}", f"models:/{onnx_model}/{onnx_version}"
    page = f"#/models/{quote(onnx_model, safe='')}/versions/{onnx_version}{_CLASSIC}"
    classes = metadata["class_names"]
    text = f"""\
# {_literal(name)}

From a whole video to labels, without PyTorch: a decoder and the model \
[{_literal(onnx_uri)}]({page}), {metadata.get("architecture", "of an unknown architecture")} for \
{len(classes)} classes.

## Score

{_score(metadata)} {_calibration(metadata)}

## Use

```bash
mlflow models serve --env-manager local -p 5001 \\
  -m {shlex.quote(uri)}
base64 -w0 video.mp4 |
  jq -Rs '{{dataframe_split: {{columns: ["video"], data: [[.]]}}, params: {{top_k: 3}}}}' |
  curl -s localhost:5001/invocations -H 'Content-Type: application/json' -d @-
```

```python
import base64, pathlib, requests
video = base64.b64encode(pathlib.Path("video.mp4").read_bytes()).decode()
table = {{"columns": ["video"], "data": [[video]]}}
request = {{"dataframe_split": table, "params": {{"top_k": 3}}}}
answer = requests.post("http://localhost:5001/invocations", json=request).json()
print(answer["predictions"])
```

The answer has a row per video: `labels` and their `probabilities`, best first; `known`, false \
where the largest probability is below the confidence threshold ({_threshold(metadata)}); `error`, \
why a video could not be labeled.

## Limits

{_limits(metadata)}

## Classes

"""
    return text[:_LIMIT] + _that_fit(classes, _LIMIT - len(text))


def _num_frames(metadata: Mapping[str, Any]) -> int:
    views = metadata.get("views_in_graph", 1)  # graphs of before have no `num_frames`
    return int(metadata.get("num_frames", views * metadata["clip_len"]))


def _that_fit(labels: Sequence[str], room: int) -> str:
    """As many labels as fit into this number of characters, and how many more there are."""
    literal = [_literal(short_text(label)) for label in labels]
    text = ", ".join(literal)
    shown = len(literal)
    while shown and len(text) > room:
        shown -= 1
        text = f"{', '.join(literal[:shown])} and {len(literal) - shown} more"
    return text if shown else ""


def _literal(label: str) -> str:
    """A label as markdown that shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", label)


def _python_text(text: str) -> str:
    """A string literal of Python."""
    return json.dumps(text, ensure_ascii=False)


def _resizing(metadata: Mapping[str, Any]) -> str:
    size, smoothed = metadata["resize_size"], metadata["antialias"]
    target = (
        f"the short side to {size} px" if isinstance(size, int) else f"to {size[0]}x{size[1]} px"
    )
    return f"{target} {'with' if smoothed else 'without'} antialiasing"


def _calibration(metadata: Mapping[str, Any]) -> str:
    """How the probabilities were calibrated, in a sentence."""
    if sentence := metadata.get("calibration"):
        return str(sentence)
    temperature = metadata.get("temperature", 1)
    if temperature == 1:
        return "Probabilities are not calibrated."
    return f"Probabilities are calibrated with temperature {temperature:.3f}."


def _threshold(metadata: Mapping[str, Any]) -> str:
    threshold = metadata.get("confidence_threshold", 0)
    return f"{threshold:.3g}" if threshold else "this model has none"


def _limits(metadata: Mapping[str, Any]) -> str:
    marked = (
        " An answer with a probability below the `confidence_threshold` of its metadata, "
        f"{_threshold(metadata)}, counts as unknown: `predict` and the served model mark it so."
        if metadata.get("confidence_threshold", 0)
        else ""
    )
    return (
        f"It always answers with one of its classes, whatever the video shows.{marked} It looks at "
        "the center of the frame only. The score is one of clips like those it was measured on."
    )


def _score(metadata: Mapping[str, Any]) -> str:
    if "test_acc1" not in metadata:
        return "It was not measured on test clips."
    low, high = metadata["test_acc1_interval"]
    return (
        f"Top-1 {metadata['test_acc1']:.1f} % (95 % interval over sources {low:.1f} to {high:.1f}) "
        f"on {metadata['test_clips']} test clips{_classes(metadata)}. "
        f"Protocol: {metadata['protocol']}. Data digest {metadata['data_digest'] or 'not noted'}, "
        f"test split {metadata['test_digest']}."
    )


def _classes(metadata: Mapping[str, Any]) -> str:
    total = len(metadata["class_names"])
    tested = metadata.get("test_classes", total)  # versions of before have no such number
    return f" of {tested} of the {total} classes, none of the others" if tested < total else ""
