"""The predictions table depends on model and clips alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.evaluation.predictions import Rows, make_table, predict_clips, probabilities_of
from k400tiny_lib.evaluation.views import Protocol, ViewDataset
from k400tiny_lib.models.loaded import LoadedModel, load_model
from k400tiny_lib.models.weights import model_input
from tests.helpers.evaluation import write_annotated_clips, write_checkpoint

PROTOCOL = Protocol(num_clips=2, num_crops=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Annotations, LoadedModel]:
    root = tmp_path_factory.mktemp("predictions")
    data_path, _, annotations = write_annotated_clips(root)
    checkpoint = write_checkpoint(root / "best.pt")
    subject = load_model(Config(checkpoint=str(checkpoint)), annotations.categories)
    return data_path, annotations, subject


@pytest.fixture(scope="module")
def one_by_one(evaluated: tuple[Path, Annotations, LoadedModel]) -> pd.DataFrame:
    return predict(evaluated, 1, 1)


def predict(
    evaluated: tuple[Path, Annotations, LoadedModel], processes: int, batch_size: int
) -> pd.DataFrame:
    data_path, annotations, subject = evaluated
    clips = annotations.splits["test"]
    parts = [
        predict_clips(
            subject.model,
            clips,
            range(len(clips))[rank::processes],
            data_path,
            subject.geometry,
            PROTOCOL,
            batch_size=batch_size,
            num_workers=0,
            device=CPU,
        )
        for rank in range(processes)
    ]
    return make_table(clips, parts)


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 3), (9, 64)])
def test_neither_batch_size_nor_shares_change_the_table(
    evaluated: tuple[Path, Annotations, LoadedModel],
    one_by_one: pd.DataFrame,
    processes: int,
    batch_size: int,
) -> None:
    expected, actual = one_by_one, predict(evaluated, processes, batch_size)
    exact = ["video", "group", "target", "predicted", "clip_predicted"]
    pd.testing.assert_frame_equal(actual[exact], expected[exact])
    # Convolutions add up in another order for another batch: float32 rounding.
    np.testing.assert_allclose(probabilities_of(actual), probabilities_of(expected), atol=1e-5)


def test_a_clip_gets_the_mean_of_the_probabilities_of_its_views(
    evaluated: tuple[Path, Annotations, LoadedModel], one_by_one: pd.DataFrame
) -> None:
    data_path, annotations, subject = evaluated
    table = one_by_one
    views = ViewDataset(annotations.splits["test"], data_path, subject.geometry, PROTOCOL)[2][0]
    with torch.inference_mode():
        each = subject.model(model_input(subject.model, views)).softmax(1)
    np.testing.assert_allclose(
        probabilities_of(table)[2], each[: PROTOCOL.num_views].mean(0), atol=1e-5
    )
    assert table["clip_predicted"][2] == each[PROTOCOL.centre].argmax()


def test_a_clip_that_is_missing_or_counted_twice_is_no_table(
    evaluated: tuple[Path, Annotations, LoadedModel],
) -> None:
    clips = evaluated[1].splits["test"]
    twice = np.array([0, 1, 2, 3, 4, 5, 5])
    for positions in (twice, twice[:6]):
        rows = Rows(positions, np.ones((len(positions), 3)) / 3, positions)
        with pytest.raises(ValueError, match="once each"):
            make_table(clips, [rows])
