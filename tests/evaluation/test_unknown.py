"""Clips of none of the classes: all are found and read, and counted against the threshold."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.evaluation import Evaluation, evaluate_split
from k400tiny_lib.evaluation.predictions import probabilities_of, table_of_probabilities
from k400tiny_lib.evaluation.shift.unknown import UnknownRows, judge_unknown
from k400tiny_lib.evaluation.shift.unknown_clips import UnknownClips, digest_unknown, find_unknown
from k400tiny_lib.media.video import sample_video
from k400tiny_lib.models.loaded import load_model
from k400tiny_lib.models.weights import model_input
from tests.conftest import write_clip
from tests.helpers.evaluation import (
    clips_of,
    random_table,
    run_workers_here,
    write_annotated_clips,
    write_checkpoint,
)
from tests.helpers.videos import write_video


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """5 clips in val and in test; some of them are also the unknown clips, with a video."""
    root = tmp_path_factory.mktemp("unknown")
    data_path, annotations, _ = write_annotated_clips(root, num_clips=5)
    others = root / "others"
    shutil.copytree(data_path / "test1", others / "jump" / "test1")
    (others / "jump" / "linked").symlink_to(data_path / "test3")
    shutil.copytree(data_path / "test2", others / "ünï côde")
    write_video(others / "deep" / "down" / "clip 10.mp4", num_frames=9)
    write_video(others / "deep" / "down" / "clip 9.mkv", num_frames=9)
    (others / "broken.mp4").write_bytes(b"no video")
    write_clip(others / "torn", seed=0)
    (others / "torn" / "frame00.jpg").write_bytes(b"no picture")
    (others / "notes.txt").write_text("text")
    return Config(
        data_path=str(data_path),
        annotations=str(annotations),
        checkpoint=str(write_checkpoint(root / "best.pt")),
        unknown_path=str(others),
        batch_size=2,
        num_workers=0,
        robustness=False,
    )


NAMES = ["deep/down/clip 9.mkv", "deep/down/clip 10.mp4", "jump/linked", "jump/test1", "ünï côde"]


@pytest.fixture(scope="module")
def evaluation(config: Config) -> Evaluation:
    return evaluate(config)


def evaluate(config: Config, processes: int = 1) -> Evaluation:
    return evaluate_split(config, start_workers=lambda job: run_workers_here(job, processes))


@pytest.mark.parametrize("views", [(1, 1), (3, 3), (2, 1)])
def test_they_are_predicted_like_the_clips_of_the_split(
    config: Config, views: tuple[int, int]
) -> None:
    evaluation = evaluate(config.replace(num_clips=views[0], num_crops=views[1]))
    table = evaluation.unknown.table.set_index("video")
    assert list(table.index) == NAMES
    split = evaluation.table.set_index("video")
    for name, same in (("jump/test1", "test1"), ("jump/linked", "test3"), ("ünï côde", "test2")):
        # Another batch adds up in another order: float32 rounding.
        np.testing.assert_allclose(
            probabilities_of(table.loc[[name]]), probabilities_of(split.loc[[same]]), atol=1e-5
        )
    assert evaluation.unknown.marked.clips == 5


def test_a_video_is_read_as_predict_reads_it(config: Config, evaluation: Evaluation) -> None:
    table = evaluation.unknown.table.set_index("video")
    loaded = load_model(config)
    frames = sample_video(Path(config.unknown_path) / NAMES[0], 4).frames
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)
    clip = torch.nn.functional.interpolate(
        clip.transpose(0, 1).float(), (32, 32), mode="bilinear", antialias=True
    )
    clip = clip.round().to(torch.uint8).transpose(0, 1)[None]
    with torch.inference_mode():
        expected = loaded.model(model_input(loaded.model, clip)).double().softmax(1)
    np.testing.assert_allclose(probabilities_of(table.loc[[NAMES[0]]]), expected, atol=1e-3)


def test_what_cannot_be_read_is_named_and_counted_nowhere_else(evaluation: Evaluation) -> None:
    unknown = evaluation.unknown
    assert set(unknown.unreadable) == {"broken.mp4", "torn"}
    assert "frame00.jpg is no image" in unknown.unreadable["torn"]
    assert set(unknown.left_out) == {"notes.txt"}
    lines = unknown.describe()
    assert "of 5 are below the threshold" in lines[0]
    assert any(line.startswith("skipped: broken.mp4: ") for line in lines)
    assert "left out 1 (no video and no frame of a clip): 1 .txt" in lines


def test_any_number_of_processes_predicts_each_clip_once(
    config: Config, evaluation: Evaluation
) -> None:
    alone, shared = evaluation, evaluate(config, 6)  # more processes than clips
    np.testing.assert_allclose(
        probabilities_of(alone.unknown.table), probabilities_of(shared.unknown.table), atol=1e-6
    )


def test_scores_and_files_have_them(config: Config, evaluation: Evaluation) -> None:
    files = evaluation.files()["unknown.csv"].splitlines()
    assert files[0] == "video,predicted,confidence,known,prob_0,prob_1,prob_2"
    assert len(files) == 6
    shares = {"test_unknown_caught", "test_unknown_certain", "test_unknown_auroc"}
    assert shares <= set(evaluation.scores)
    assert "unknown clips: " in evaluation.summary
    assert not shares & set(evaluate(config.replace(unknown_path="none")).scores)


def test_one_video_and_one_frame_folder_are_clips_too(config: Config, tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4")
    assert dict(find_unknown(tmp_path / "one.mp4").clips) == {"one.mp4": tmp_path / "one.mp4"}
    write_clip(tmp_path / "frames", seed=1)
    assert dict(find_unknown(tmp_path / "frames").clips) == {"frames": tmp_path / "frames"}
    unknown = evaluate(config.replace(unknown_path=str(tmp_path / "frames"))).unknown
    assert list(unknown.table["video"]) == ["frames"]


def test_clips_of_which_none_can_be_decoded_leave_the_rest_of_the_evaluation(
    config: Config, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    evaluation = evaluate(config.replace(unknown_path=str(tmp_path)))
    assert list(evaluation.unknown.unreadable) == ["broken.mp4"]
    assert evaluation.unknown.scores() == {}
    assert "test_acc1" in evaluation.scores


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"unknown_path: .*missing does not exist\. Needed: a frame folder"),
        ("empty", r"unknown_path: .*empty holds no readable clips\. Needed: folders of"),
    ],
)
def test_a_path_without_clips_is_refused_before_anything_is_predicted(
    config: Config, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("text")

    def nobody(job: object) -> None:
        raise AssertionError("predicted")

    with pytest.raises(UserError, match=f"^{message}"):
        evaluate_split(config.replace(unknown_path=str(tmp_path / name)), start_workers=nobody)


def test_shares_and_auroc_are_those_of_the_calibrated_confidence() -> None:
    known, others = random_table(80), random_table(40, seed=5)
    p = probabilities_of(others) ** 0.5
    others = table_of_probabilities(clips_of(others), p / p.sum(1, keepdims=True))
    columns = [name for name in others if name.startswith("prob_")]
    rows = others[["video", *columns]].assign(problem="")
    rows.loc[0, "problem"] = "torn"
    clips = UnknownClips(dict.fromkeys(rows["video"], Path()), {}, {})
    answers = judge_unknown(UnknownRows(clips, rows), known, 2.0, 0.4)

    def confidence(table):
        squeezed = probabilities_of(table) ** 0.5
        return (squeezed / squeezed.sum(1, keepdims=True)).max(1)

    theirs, ours = confidence(others)[1:], confidence(known)
    np.testing.assert_allclose(answers.table["confidence"], theirs)
    assert list(answers.table["known"]) == list(theirs >= 0.4)
    assert answers.scores() == pytest.approx(
        {
            "unknown_caught": 100 * (theirs < 0.4).mean(),
            "unknown_certain": 100 * (theirs > 0.99).mean(),
            "unknown_auroc": roc_auc_score([1] * 80 + [0] * 39, [*ours, *theirs]),
        }
    )
    assert answers.unreadable == {others["video"][0]: "torn"}


def test_the_digest_is_that_of_the_clips_alone(tmp_path: Path) -> None:
    write_clip(tmp_path / "elsewhere" / "a", seed=1)
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "elsewhere" / "a")
    first = digest_unknown(root)
    (root / "notes.txt").write_text("text")
    assert digest_unknown(root) == first
    write_clip(tmp_path / "other", seed=2)
    shutil.copy(tmp_path / "other" / "frame00.jpg", root / "a" / "frame00.jpg")
    changed = digest_unknown(root)
    assert changed != first
    write_video(root / "b.mp4")
    assert digest_unknown(root) != changed
