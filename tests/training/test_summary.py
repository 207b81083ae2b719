"""What people see of a training run: its lines, images and summary."""

from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from k400tiny_lib.config import Config
from k400tiny_lib.config.steps import resolve
from k400tiny_lib.metrics_log import append_entry, read_entries
from k400tiny_lib.training.reporting import progress_line
from k400tiny_lib.training.sample_predictions import (
    draw_predictions,
    is_due,
    sample_predictions,
    save_predictions,
)
from k400tiny_lib.training.summary import read_results, summarize, write_results
from k400tiny_lib.training.worker import make_train_state
from tests.helpers.training import CPU, METRICS, annotate, config


def test_the_line_of_an_epoch_says_how_it_went_and_what_is_left() -> None:
    line = " ".join(progress_line(3, 10, METRICS, is_best=True, seconds=60.0).split())
    for part in (
        "epoch 3/10",
        "train loss 1.500 acc1 40.0",
        "val loss 1.200 acc1 50.0* acc5 90.0",
        "12.3 clips/s",
        "waiting for data 7%",
        "3.2 GB",
        "7 min left",
    ):
        assert part in line
    two_classes = {name: value for name, value in METRICS.items() if name != "val_acc5"}
    assert "acc5" not in progress_line(10, 10, two_classes, is_best=False, seconds=60.0)


@pytest.mark.parametrize(("num_epochs", "images"), [(1, 1), (7, 7), (20, 20), (45, 16), (500, 21)])
def test_a_run_of_any_length_has_about_twenty_images(num_epochs: int, images: int) -> None:
    due = [epoch for epoch in range(1, num_epochs + 1) if is_due(epoch, num_epochs)]
    assert due[0] == 1
    assert due[-1] == num_epochs
    assert len(due) == images


def test_an_image_shows_validation_clips_with_the_predictions_of_the_model(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    annotations = annotate(tiny_data[0])
    state = make_train_state(config(tiny_data[0], tmp_path), annotations, CPU)
    state.epoch = 2
    clips, targets, probabilities = sample_predictions(state)
    assert targets == [clip.target for clip in annotations.splits["val"]]
    batch, expected, _ = next(iter(state.val_loader))
    assert torch.equal(clips[:4], batch)
    assert targets[:4] == expected.tolist()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    random = torch.get_rng_state()
    images = save_predictions(state, annotations.categories, tmp_path)
    assert torch.equal(torch.get_rng_state(), random)  # resuming stays exact
    with Image.open(images["sample_predictions"]) as image:
        assert min(image.size) > 100
    state.epoch, state.config = 3, config(tiny_data[0], tmp_path, num_epochs=100)
    assert save_predictions(state, annotations.categories, tmp_path) == {}


def test_right_and_wrong_predictions_are_titled_as_such() -> None:
    shares = torch.tensor([[0.9, 0.1, 0.0], [0.3, 0.1, 0.6]])
    clips = torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8)
    figure: Figure = draw_predictions(clips, [0, 0], shares, {0: "a $ b $ c"})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["a $ b $ c: correct, 90%", "a $ b $ c: predicted 2, 60%"]
    assert matplotlib.get_backend().lower() == "agg"
    figure.canvas.draw()


def test_the_summary_names_the_best_epoch_and_commands_that_exist(tmp_path: Path) -> None:
    log = tmp_path / "metrics-1.jsonl"
    settings = Config(data_path="frames", annotations="a.json", num_epochs=9, patience=1)
    assert summarize(log, settings, "1") is None
    for epoch, accuracy in ((1, 40.0), (2, 60.0), (3, 60.0), (4, 50.0)):
        append_entry(log, METRICS | {"val_acc1": accuracy}, epoch)
    assert len(list(read_entries(log))) == 4
    results = summarize(log, settings, "1")
    assert results is not None
    assert results.metrics == {"best_epoch": 3, "best_val_acc1": 60.0}
    assert "val top-1 60.0 % after epoch 3; 4 of 9 epochs" in results.headline
    assert "in 4 min" in results.headline
    assert results.headline.partition(";")[0] in results.note
    assert "| train / val loss | 1.500 / 1.200 |" in results.note
    assert "| train / val acc1 | 40.0 / 60.0 % |" in results.note
    for line, step in zip(
        results.next_steps.splitlines(), ("evaluate", "export_onnx"), strict=True
    ):
        words = line.split()
        assert words[words.index("-e") + 1] == step
        parameters = [words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "-P"]
        assert resolve(step, dict(parameters)).checkpoint == "runs:/1/checkpoints/best.pt"
    assert read_results(log) is None
    write_results(results, log)
    assert read_results(log) == results
