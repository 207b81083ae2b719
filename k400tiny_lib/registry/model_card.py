"""The description of a registered version: a model card in markdown."""

import re
from collections.abc import Mapping
from typing import Any

from k400tiny_lib.plots import short_text

_LIMIT = 5000  # of the registry's database
_CLASSES_SHOWN = 20


def model_card(name: str, metadata: Mapping[str, Any], parity: float) -> str:
    """Describe a version: the model, its score and on which clips, its use, its limits.

    Args:
        name: of the registered model.
        metadata: of the graph.
        parity: largest difference of a probability between ONNX Runtime and PyTorch.
    """
    classes, views = metadata["class_names"], metadata["views_in_graph"]
    shown = ", ".join(_literal(short_text(name)) for name in classes[:_CLASSES_SHOWN])
    shown += ", ..." if classes[_CLASSES_SHOWN:] else ""
    num_frames = views * metadata["clip_len"]
    any_length = " (the one it was trained on; any T works)" if metadata["frames_free"] else ""
    quantize = metadata["quantize"]
    precision = "float32" if quantize == "none" else f"{quantize}, made from float32"
    temperature = metadata["temperature"]
    calibrated = (
        f"Probabilities are calibrated with temperature {temperature:.3f}."
        if temperature != 1
        else "Probabilities are not calibrated."
    )
    text = f"""\
# {name}

{metadata["architecture"]} for {len(classes)} classes ({shown}), {precision}. \
Weights: {metadata["training_run_id"] or "a checkpoint without a run"}.

## Score

{_score(metadata)} {calibrated}

Largest difference of a probability between float32 ONNX and PyTorch: {parity:.1e}.

## Use

`frames`: uint8 (N, T, H, W, 3), RGB, any N, H and W, T = {num_frames}{any_length}; \
{metadata["sampling"]}. `probabilities`: float32 (N, {len(classes)}). Resizing \
{_resizing(metadata)}, cropping to {metadata["crop_size"]} px and normalization are inside.

```python
import json, mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/{name}@champion")
frames = np.zeros((1, {num_frames}, 336, 336, 3), dtype=np.uint8)
probabilities = model.predict({{"frames": frames}})["probabilities"]
print(json.loads(model.metadata.metadata["class_names"])[probabilities[0].argmax()])
```

## Limits

It always answers with one of its classes, whatever the video shows, and looks at the center of \
the frame only. The score is one of clips like those it was measured on.
"""
    return text[:_LIMIT]


def _literal(label: str) -> str:
    """A label as markdown that shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", label)


def _resizing(metadata: Mapping[str, Any]) -> str:
    size, smoothed = metadata["resize_size"], metadata["antialias"]
    target = (
        f"the short side to {size} px" if isinstance(size, int) else f"to {size[0]}x{size[1]} px"
    )
    return f"{target} {'with' if smoothed else 'without'} antialiasing"


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
