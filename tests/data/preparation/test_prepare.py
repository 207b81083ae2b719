"""From sources to annotations: damage is dropped and named, everything else is as it should be."""

import json
import shutil
from functools import partial
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.data.annotations import SPLITS, Annotations
from k400tiny_lib.data.preparation import validation
from k400tiny_lib.data.preparation.prepare import Prepared, prepare
from k400tiny_lib.data.sources.base import open_source
from k400tiny_lib.data.sources.drawing import CLASSES
from k400tiny_lib.data.sources.rendered import RenderedSample, render_sample
from k400tiny_lib.errors import UserError
from k400tiny_lib.tracking.runs import local_copy
from k400tiny_lib.workflow.command import parse_arguments
from tests.conftest import write_clip, write_data
from tests.helpers.damages import DAMAGES
from tests.helpers.frames import data_digest
from tests.helpers.videos import write_video


def open_and_prepare(config: Config) -> Prepared:
    return prepare(config, open_source(config))


def frames_config(data: tuple[Path, Path], tmp_path: Path, **more: object) -> Config:
    data_path, gt_csv = data
    return Config(
        data_path=str(data_path), gt_csv=str(gt_csv), output_dir=str(tmp_path / "out"), **more
    )


def test_good_clips_are_all_kept_and_the_digest_is_that_of_the_data(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    prepared = open_and_prepare(frames_config(tiny_data, tmp_path))
    assert prepared.report["num_clips"] == 24
    assert prepared.report["dropped"] == []
    assert prepared.report["sources_in_several_splits"] == 0
    assert prepared.annotations.data_digest == data_digest(tiny_data[0])
    text = prepared.annotations.to_json()
    assert Annotations.from_json(text, "x") == prepared.annotations
    assert open_and_prepare(frames_config(tiny_data, tmp_path / "b")).annotations.to_json() == text


@pytest.mark.parametrize("on_bad_clip", ["drop", "fail"])
@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["folder_name,youtube_id,label", "a,s,"], "it has no label"),
        (["folder_name,youtube_id,label", "../a,s,x"], "its name leaves data_path"),
        (
            ["folder_name,youtube_id,label", "a,s,x", "a,s,y"],
            "rows with contradicting labels: x, y",
        ),
        (["file,label", "../a.mp4,x"], "its name leaves data_path"),
        (["file,label", ",x"], "it names no file"),
    ],
)
def test_a_csv_of_which_no_row_can_be_used_is_one_line(
    tmp_path: Path, lines: list[str], reason: str, on_bad_clip: str
) -> None:
    write_clip(tmp_path / "in" / "a", seed=0)
    write_video(tmp_path / "in" / "b.mp4")
    (tmp_path / "gt.csv").write_text("\n".join(lines) + "\n")
    config = frames_config((tmp_path / "in", tmp_path / "gt.csv"), tmp_path)
    with pytest.raises(UserError) as raised:
        open_and_prepare(config.replace(on_bad_clip=on_bad_clip))
    expected = "on_bad_clip: 1 clips are bad" if on_bad_clip == "fail" else "data_path: none of the"
    assert str(raised.value).startswith(expected)
    assert reason in str(raised.value)


def spoil(data_path: Path, gt_csv: Path) -> dict[str, str]:
    """Damage one clip or row of each kind; returns the dropped names and their reasons."""
    table = pd.read_csv(gt_csv, dtype=str)
    names = table["folder_name"].tolist()
    expected = {}
    victims = iter(names[::6] + names[1::6] + names[2::6])
    for act, reason in DAMAGES.values():
        victim = next(victims)
        act(data_path / victim / "frame02.jpg")
        expected[victim] = reason
    gone, contradicted, twice, spaced = (next(victims) for _ in range(4))
    shutil.rmtree(data_path / gone)
    label = table.set_index("folder_name")["label"]
    other = next(name for name in set(label) if name != label[contradicted])
    rows = [
        (contradicted, "v", other),
        (twice, table.set_index("folder_name")["youtube_id"][twice], label[twice]),
        ("../outside", "v", label[twice]),
    ]
    write_clip(data_path.parent / "outside", seed=99)
    table.loc[table["folder_name"] == spaced, "label"] = f" {label[spaced].upper()} "
    extra = pd.DataFrame(rows, columns=table.columns)
    pd.concat([table, extra]).to_csv(gt_csv, index=False)
    return expected | {
        gone: "no such folder",
        contradicted: "rows with contradicting labels",
        "../outside": "its name leaves data_path",
    }


def test_exactly_the_damaged_clips_are_dropped_and_named(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", sources_per_class=8)
    expected = spoil(*data)
    prepared = open_and_prepare(frames_config(data, tmp_path))
    dropped = {clip["video"]: clip["reason"] for clip in prepared.report["dropped"]}
    assert dropped.keys() == expected.keys()
    for video, reason in expected.items():
        assert dropped[video].startswith(reason)
    assert prepared.report["num_clips"] == 48 - len(expected) + 1  # ../outside is none of the 48
    assert len(prepared.report["duplicate_rows"]) == 1
    assert len(prepared.report["repaired_labels"]) == 1
    assert prepared.report["num_classes"] == 3
    with pytest.raises(UserError, match=f"^on_bad_clip: {len(expected)} clips are bad") as error:
        open_and_prepare(frames_config(data, tmp_path, on_bad_clip="fail"))
    assert all(video in str(error.value) for video in expected)


def test_identical_clips_under_two_sources_share_a_split(tmp_path: Path) -> None:
    data_path, gt_csv = write_data(tmp_path / "data")
    table = pd.read_csv(gt_csv)
    mine = table[table["label"] == table["label"][0]]["folder_name"].tolist()
    for copy, original in zip(mine[2::2], mine[:-2:2], strict=True):  # each source like the last
        shutil.rmtree(data_path / copy)
        shutil.copytree(data_path / original, data_path / copy)
    with pytest.raises(UserError, match="has clips of 1 source"):
        open_and_prepare(frames_config((data_path, gt_csv), tmp_path))
    write_clip(data_path / "fresh1", seed=101)
    write_clip(data_path / "fresh2", seed=102)
    rows = [("fresh1", "f1", table["label"][0]), ("fresh2", "f2", table["label"][0])]
    extra = pd.DataFrame(rows, columns=table.columns)
    pd.concat([table, extra]).to_csv(gt_csv, index=False)
    prepared = open_and_prepare(frames_config((data_path, gt_csv), tmp_path))
    same = prepared.table[prepared.table["folder_name"].isin(mine)]
    assert same["split"].nunique() == 1
    assert prepared.report["identical_clips"] == [mine[::2]]


def test_csv_and_directory_that_do_not_belong_together_are_refused(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    config = frames_config((tmp_path, tiny_data[1]), tmp_path)
    message = r"24 of 24 folders do not exist in .* first 'v000"
    with pytest.raises(UserError, match=message):
        open_source(config).check()
    with pytest.raises(UserError, match=message):
        open_and_prepare(config)


def test_the_source_digest_follows_content_and_not_times(
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_path, gt_csv = (Path(shutil.copytree(tiny_data[0], tmp_path / "f")), tiny_data[1])
    config = frames_config((data_path, gt_csv), tmp_path)
    assert open_source(config).is_ready()
    first = open_source(config).digest()
    victim = next(data_path.iterdir()) / "frame01.jpg"
    victim.touch()
    assert open_source(config).digest() == first
    with monkeypatch.context() as patch:
        patch.setattr(validation, "check_clip", lambda folder: pytest.fail("read again"))
        assert open_source(config).digest() == first
        open_and_prepare(config)
    victim.write_bytes(victim.read_bytes() + b"x")
    assert open_source(config).digest() != first


@pytest.fixture(scope="module")
def class_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos in three class folders, all different."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(9):
        write_video(root / "abc"[number % 3] / f"v{number}.avi", 4 + number)
    return root


def test_videos_in_class_folders_become_clips(class_videos: Path, tmp_path: Path) -> None:
    config = Config(data_path=str(class_videos), output_dir=str(tmp_path), decode_workers=2)
    open_source(config).check()
    assert not open_source(config).is_ready()
    prepared = open_and_prepare(config)
    assert prepared.report["num_clips"] == 9
    assert sorted(prepared.annotations.categories) == ["a", "b", "c"]
    assert prepared.report["frames_per_clip"] == {"min": 40, "max": 40}
    assert open_source(config).is_ready()
    before = open_source(config).digest()
    shutil.rmtree(open_source(config).directory / "a" / "v0")
    assert not open_source(config).is_ready()
    open_and_prepare(config)
    assert open_source(config).digest() == before


def test_everything_may_lie_in_an_object_store(
    class_videos: Path,
    tiny_data: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # local copies go to .k400tiny
    memory = fsspec.filesystem("memory")
    memory.put(str(tiny_data[0]), "/bucket/frames", recursive=True)
    memory.put(str(tiny_data[1]), "/bucket/labels.csv")
    uris = Config(
        data_path="memory://bucket/frames",
        gt_csv="memory://bucket/labels.csv",
        output_dir="memory://bucket/out",
    )
    local = open_and_prepare(frames_config(tiny_data, tmp_path))
    open_source(uris).check()
    text = open_and_prepare(uris).annotations.to_json()
    assert text == local.annotations.to_json()
    memory.pipe("/bucket/annotations.json", text.encode())
    assert local_copy("memory://bucket/annotations.json", "annotations").read_text() == text
    frames = local_copy("memory://bucket/frames", "data_path")
    assert data_digest(frames) == local.annotations.data_digest


def test_decoded_frames_are_written_to_a_remote_output_dir(
    class_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(
        data_path=f"file://{class_videos}", output_dir="memory://results", decode_workers=2
    )
    open_and_prepare(config)
    folder = open_source(config).directory
    written = fsspec.filesystem("memory").find(f"/results/{folder.name}")
    assert len(written) == 9 * 40
    local = (folder / "a" / "v0" / "frame07.jpg").read_bytes()
    assert fsspec.filesystem("memory").cat(f"/results/{folder.name}/a/v0/frame07.jpg") == local


def test_the_rendered_sample_is_a_source_like_any_other(tmp_path: Path) -> None:
    small = partial(
        render_sample, num_sources_per_class=3, clips_per_source=1, num_frames=2, size=32, workers=1
    )
    config = Config(output_dir=str(tmp_path))
    assert isinstance(open_source(config), RenderedSample)
    source = RenderedSample(config, small)
    source.check()
    assert not source.is_ready()
    prepared = prepare(config, source)
    assert prepared.report["num_clips"] == 3 * len(CLASSES)
    assert source.is_ready()
    assert open_source(config).digest() == source.digest()


def test_prepare_data_takes_the_scheduler_of_dask_by_its_short_name() -> None:
    config = parse_arguments("prepare_data", ["--scheduler", "tcp://head:8786"])
    assert config is not None
    assert config.dask_scheduler == "tcp://head:8786"
    assert resolve("train", {"data_path": "x", "annotations": "y"}).scheduler == "cosine"


def test_the_report_is_json_and_states_the_share_of_each_class(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    report = json.loads(json.dumps(open_and_prepare(frames_config(tiny_data, tmp_path)).report))
    for shares in report["fractions_per_class"].values():
        assert sum(shares[name] for name in SPLITS) == pytest.approx(1, abs=2e-4)  # four digits
    assert report["random_split_would_leak"]["of"] == 5  # 24 * 0.2, rounded
