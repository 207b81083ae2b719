"""Views of a video: which frames, which pixels, each frame decoded once."""

from pathlib import Path

import pytest
import torch

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation import views
from k400tiny_lib.evaluation.views import ViewDataset, ViewProtocol, check_views, crop_views
from k400tiny_lib.models.loaded import Geometry
from tests.helpers.evaluation import write_annotated_clips

GEOMETRY = Geometry(clip_len=4, resize=(36,), crop_size=32)


@pytest.mark.parametrize("num_clips", [1, 2, 3, 4])
@pytest.mark.parametrize("num_crops", [1, 3])
def test_the_center_view_is_the_same_whatever_the_protocol(
    tmp_path: Path, num_clips: int, num_crops: int
) -> None:
    data_path, _, annotations = write_annotated_clips(tmp_path, num_clips=1)
    clips = annotations.splits["test"]
    single = ViewDataset(clips, data_path, GEOMETRY, ViewProtocol(1, 1))[0][0]
    protocol = ViewProtocol(num_clips, num_crops)
    shown = ViewDataset(clips, data_path, GEOMETRY, protocol)[0][0]
    assert torch.equal(shown[protocol.center], single[0])
    assert len(shown) == protocol.num_loaded == max(protocol.num_views, protocol.center + 1)


def test_three_crops_lie_at_both_ends_and_in_the_middle_of_the_long_side() -> None:
    frames = torch.zeros((2, 32, 64, 3), dtype=torch.uint8)
    frames[:, :, :] = torch.arange(64, dtype=torch.uint8)[:, None]
    crops = crop_views(frames, Geometry(2, (32,), 32), 3)
    assert [int(crop[0, 0, 0, 0]) for crop in crops] == [0, 16, 32]


def test_a_frame_that_several_views_share_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_path, _, annotations = write_annotated_clips(tmp_path, num_clips=1)
    decoded: list[int] = []
    original = views.read_frames

    def counting(folder: Path, indices: list[int]) -> torch.Tensor:
        decoded.extend(indices)
        return original(folder, indices)

    monkeypatch.setattr(views, "read_frames", counting)
    ViewDataset(annotations.splits["test"], data_path, GEOMETRY, ViewProtocol(4, 3))[0]
    assert decoded
    assert len(decoded) == len(set(decoded))


def test_more_views_than_frames_are_refused_in_one_line() -> None:
    clips = [Clip("long", (0, 9), 0, "a"), Clip("short", (3, 5), 0, "b")]
    check_views(clips, ViewProtocol(3, 1))
    with pytest.raises(UserError, match=r"^num_clips: 4 views, but short has 3 frames\. Needed"):
        check_views(clips, ViewProtocol(4, 1))
