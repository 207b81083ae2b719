"""The bytes of a video in the forms in which people send them."""

import base64
import textwrap

import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.serving.request_rows import decoded_video

CONTENT = bytes(range(256)) * 3 + b"\xff\xfe\xfd\xfb"  # has + and / in base64, and padding
COMMON, URL_SAFE = (
    encode(CONTENT).decode() for encode in (base64.b64encode, base64.urlsafe_b64encode)
)


@pytest.mark.parametrize(
    "text",
    [
        COMMON,
        COMMON.rstrip("="),
        URL_SAFE,
        URL_SAFE.rstrip("="),
        textwrap.fill(COMMON, 76),
        f"\n {COMMON}\r\n",
        f"data:video/mp4;base64,{COMMON}",
        f"DATA:video/webm;codecs=vp9;BASE64,{URL_SAFE}",
        f"data:;base64,{COMMON}",
    ],
)
def test_base64_is_taken_in_all_its_forms(text: str) -> None:
    assert "+" in COMMON
    assert COMMON.endswith("=")
    assert decoded_video(text, 1) == CONTENT


def test_bytes_are_taken_as_they_are() -> None:
    assert decoded_video(CONTENT, 1) == CONTENT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no/base64!", "^not base64"),
        ("caf\xe9", "^not base64"),
        ("A", "^not base64"),
        ("AA=A", "^not base64"),
        ("http://localhost/video.mp4", "^an address, and not base64"),
        ("data:video/mp4,AAAA", "^a data: URI without base64"),
        ("data:" + "A" * 100, "^a data: URI without base64"),
        ("A" * 2000, r"^0.0 MB\. Needed: at most 0.001 MB"),
        (bytes(1500), r"^0.0 MB\. Needed: at most 0.001 MB"),
    ],
)
def test_what_is_no_video_is_refused_with_a_hint(content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        decoded_video(content, 0.001)
    assert "Needed: " in str(caught.value)
