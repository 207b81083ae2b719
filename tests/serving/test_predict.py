"""`predict` on frame folders, videos and files that are neither."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from k400tiny_lib.data.loading.pytorchvideo_transforms import uniform_temporal_subsample
from k400tiny_lib.errors import UserError
from k400tiny_lib.media.sampling import uniform_indices
from k400tiny_lib.serving.inputs import find_inputs
from k400tiny_lib.serving.onnx_classifier import (
    OnnxClassifier,
    execution_providers,
    open_classifier,
)
from k400tiny_lib.serving.predict import label_inputs, read_clip
from tests.helpers.serving import CLASSES, CLIP_LEN, export_tiny
from tests.helpers.videos import write_video


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="module")
def model(onnx_file: Path) -> OnnxClassifier:
    return open_classifier(onnx_file)


def test_positions_are_pytorchvideos_whatever_the_length() -> None:
    for num_frames in [*range(1, 400), 3000, 54_000, 900_000]:
        frames = torch.arange(num_frames)
        for clip_len in (1, 2, 3, 4, 8, 16, 32, 40):
            expected = uniform_temporal_subsample(frames, clip_len, temporal_dim=0)
            assert uniform_indices(num_frames, clip_len).tolist() == expected.tolist()


def test_a_label_does_not_wait_for_pytorch() -> None:
    code = (
        "import sys, steps.predict, k400tiny_lib.workflow.cache, k400tiny_lib.tracking.models\n"
        "import k400tiny_lib.serving.predict, k400tiny_lib.serving.video_classifier\n"
        "print({'torch', 'matplotlib', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_serving_imports_neither_pytorch_nor_mlflow() -> None:
    code = (
        "import sys, k400tiny_lib.serving.onnx_classifier, k400tiny_lib.serving.predict\n"
        "print({'torch', 'torchvision', 'mlflow', 'k400tiny_lib.data'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_inputs_are_labeled_in_order_and_the_unreadable_reported(
    model: OnnxClassifier, tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = sorted(tiny_data[0].iterdir())[:2]
    (tmp_path / "clip2").symlink_to(first)
    (tmp_path / "clip10").symlink_to(second)
    (tmp_path / "clip3.mp4").write_bytes(b"no video")
    (tmp_path / "clip4.mp4").touch()
    (tmp_path / "clip5").mkdir()
    (tmp_path / "clip5" / "frame.jpg").write_bytes(b"no image")
    write_video(tmp_path / "clip6.mp4")
    table, failures, _ = label_inputs(model, find_inputs(tmp_path).clips, batch_size=4, top_k=2)
    assert list(table["input"]) == ["clip2"] * 2 + ["clip6.mp4"] * 2 + ["clip10"] * 2
    assert list(table["rank"]) == [1, 2] * 3
    assert [reason.partition(str(tmp_path))[2].partition(" ")[2] for reason in failures] == [
        "cannot be decoded: no video is found in it.",
        "is empty.",
        "is no image. Run prepare_data again, or mend the file.",
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_probabilities_are_those_of_each_clip_alone(
    model: OnnxClassifier, tiny_data: tuple[Path, Path], batch_size: int
) -> None:
    inputs = find_inputs(tiny_data[0]).clips[:5]
    table, failures, _ = label_inputs(model, inputs, batch_size, top_k=len(CLASSES))
    assert failures == []
    for path, rows in table.groupby("input"):
        frames = read_clip(tiny_data[0] / str(path), CLIP_LEN).frames
        [expected] = model.session.run(None, {"frames": frames[None]})
        actual = rows.set_index("label")["probability"][CLASSES]
        np.testing.assert_allclose(actual, expected[0], atol=1e-6)


def test_inputs_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^input: .*nowhere does not exist"):
        find_inputs(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no clips"):
        find_inputs(tmp_path)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((CLIP_LEN, 40, 48, 3), np.uint8),
        np.zeros((1, CLIP_LEN, 40, 48, 3), np.float32),
        np.zeros((1, CLIP_LEN, 40, 48, 4), np.uint8),
        np.zeros((0, CLIP_LEN, 40, 48, 3), np.uint8),
        np.zeros((1, CLIP_LEN, 0, 48, 3), np.uint8),
    ],
)
def test_frames_that_do_not_fit_are_refused_in_one_line(
    model: OnnxClassifier, frames: np.ndarray
) -> None:
    with pytest.raises(
        UserError, match=r"^frames: .* of shape \(.* Needed: uint8 of shape"
    ) as caught:
        model.predict(frames)
    assert "\n" not in str(caught.value)


def test_cuda_is_used_where_it_is_offered_and_searches_no_algorithms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    (name, options), fallback = execution_providers("auto")
    assert (name, options["cudnn_conv_algo_search"]) == ("CUDAExecutionProvider", "HEURISTIC")
    assert fallback == "CPUExecutionProvider"
    assert execution_providers("cpu") == ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered[1:])
    assert execution_providers("auto") == ["CPUExecutionProvider"]
    with pytest.raises(UserError, match=r"^device: .* offers no CUDA"):
        execution_providers("cuda")


def test_a_file_that_is_no_model_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"^model_uri: .* cannot be opened"):
        open_classifier(tmp_path / "model.onnx")
