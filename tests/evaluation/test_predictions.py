"""The predictions table depends on the model and the clips alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.predictions import (
    make_table,
    predict_clips,
    probabilities_of,
    probability_columns,
    read_predictions,
)
from k400tiny_lib.evaluation.views import ViewDataset, ViewProtocol
from k400tiny_lib.models.loaded import LoadedModel, load_model
from k400tiny_lib.models.weights import model_input
from tests.helpers.evaluation import random_table, write_annotated_clips, write_checkpoint

PROTOCOL = ViewProtocol(num_clips=2, num_crops=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Annotations, LoadedModel]:
    root = tmp_path_factory.mktemp("predictions")
    data_path, _, annotations = write_annotated_clips(root)
    checkpoint = write_checkpoint(root / "best.pt")
    loaded = load_model(Config(checkpoint=str(checkpoint)), annotations.categories)
    return data_path, annotations, loaded


@pytest.fixture(scope="module")
def one_by_one(evaluated: tuple[Path, Annotations, LoadedModel]) -> pd.DataFrame:
    return predict(evaluated, 1, 1)


def predict(
    evaluated: tuple[Path, Annotations, LoadedModel], processes: int, batch_size: int
) -> pd.DataFrame:
    data_path, annotations, loaded = evaluated
    clips = annotations.splits["test"]
    parts = [
        predict_clips(
            loaded.model,
            clips,
            range(len(clips))[rank::processes],
            data_path,
            loaded.geometry,
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
    data_path, annotations, loaded = evaluated
    table = one_by_one
    views = ViewDataset(annotations.splits["test"], data_path, loaded.geometry, PROTOCOL)[2][0]
    with torch.inference_mode():
        each = loaded.model(model_input(loaded.model, views)).softmax(1)
    np.testing.assert_allclose(
        probabilities_of(table)[2], each[: PROTOCOL.num_views].mean(0), atol=1e-5
    )
    assert table["clip_predicted"][2] == each[PROTOCOL.center].argmax()


def test_a_clip_that_is_missing_or_counted_twice_is_no_table(
    evaluated: tuple[Path, Annotations, LoadedModel],
) -> None:
    clips = evaluated[1].splits["test"]
    twice = np.array([0, 1, 2, 3, 4, 5, 5])
    for positions in (twice, twice[:6]):
        part = probability_columns(np.ones((len(positions), 3)) / 3).set_index(positions)
        with pytest.raises(ValueError, match="once each"):
            make_table(clips, [part.assign(clip_predicted=0)])


def test_a_table_survives_its_file_and_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    table = random_table().assign(video=[f"{number:03d}" for number in range(60)])
    table.to_csv(tmp_path / "predictions.csv", index=False)
    pd.testing.assert_frame_equal(
        read_predictions(tmp_path / "predictions.csv", "evaluation"), table
    )
    (tmp_path / "other.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("other.csv", "missing.csv"):
        with pytest.raises(
            UserError, match=rf"^compare_with: .*{name} is not a table of predictio"
        ):
            read_predictions(tmp_path / name, "compare_with")
