"""docs/data.md: its recipes turn the export of a tool into a table; its lists are complete."""

import json
import re
from pathlib import Path

import pytest

from k400tiny_lib.data.tables.reading import read_table
from k400tiny_lib.data.tables.segments import add_times, unit_of
from k400tiny_lib.media.video import VIDEO_SUFFIXES
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "data.md").read_text()
RECIPES = dict(
    re.findall(r"^### From (.+?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
)

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><id>1</id><name>one</name><size>90</size><mode>interpolation</mode>
<labels><label><name>run</name></label></labels><source>match1.mp4</source></task></meta>
<track id="0" label="run" source="manual">
<box frame="3" outside="0" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"></box>
<box frame="4" outside="0" occluded="0" keyframe="0" xtl="1" ytl="1" xbr="9" ybr="9"></box>
<box frame="5" outside="1" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"></box>
</track>
<track id="1" label="jump" source="manual">
<box frame="6" outside="0" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"></box>
<box frame="8" outside="0" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"></box>
</track>
</annotations>
"""


def label_studio() -> str:
    def result(label: str, start: int, end: int) -> dict[str, object]:
        value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [label]}
        return {"type": "timelinelabels", "value": value, "from_name": "label", "to_name": "video"}

    results = [result("run", 4, 5), result("jump", 7, 9)]
    video = "/data/upload/1/0a1b2c3d-match1.mp4"
    return json.dumps([{"id": 1, "data": {"video": video}, "annotations": [{"result": results}]}])


ELAN = (
    "Begin Time - hh:mm:ss.ms\tBegin Time - ss.msec\tEnd Time - ss.msec\tAction\n"
    "00:00:03.000\t3.000\t4.000\trun\n00:00:06.000\t6.000\t8.000\tjump\n00:00:09.000\t9.0\t9.5\t\n"
)
BORIS = (
    "Observation id\tMedia file name\tSubject\tBehavior\tBehavior type\tStart (s)\tStop (s)\n"
    "o1\t/home/me/match1.mp4\tNo focal subject\trun\tSTATE\t3.0\t4.0\n"
    "o1\t/home/me/match1.mp4\tNo focal subject\tjump\tSTATE\t6.0\t8.0\n"
    "o1\t/home/me/match1.mp4\tNo focal subject\tblink\tPOINT\t7.0\t7.0\n"
)
VIA = """# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)
# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata
"1_a","[""match1.mp4""]",0,"[3,4]","[]","{""1"":""run""}"
"1_b","[""match1.mp4""]",0,"[6,8]","[]","{""1"":""jump""}"
"""
EXPORTS = {
    "CVAT": ("annotations.xml", CVAT),
    "Label Studio": ("export.json", label_studio()),
    "ELAN": ("elan/match1.txt", ELAN),
    "BORIS": ("events.tsv", BORIS),
    "VIA": ("via.csv", VIA),
}


def test_the_page_lists_the_suffixes_of_videos() -> None:
    [listed] = re.findall(r"\*\*Which files\.\*\* `(.*?)`", PAGE, re.DOTALL)
    assert sorted(listed.split()) == sorted(VIDEO_SUFFIXES)


def test_every_recipe_has_its_export() -> None:
    assert RECIPES.keys() == EXPORTS.keys()


@pytest.mark.parametrize("tool", RECIPES)
def test_a_recipe_gives_a_table_of_segments(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content = EXPORTS[tool]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    exec(compile(RECIPES[tool], tool, "exec"), {})
    rows = read_table("segments.csv").rows
    unit = unit_of(rows)
    assert unit is not None
    rows = add_times(rows, unit)
    expected = [["run", 3, 4, ""], ["jump", 6, 8, ""]]
    assert rows[["label", "start", "end", "problem"]].to_numpy().tolist() == expected
    assert set(rows["file"].str.removesuffix(".mp4")) == {"match1"}
