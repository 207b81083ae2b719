"""What a file is that FFmpeg was not allowed to read, or could not."""

# The first bytes, at an offset -> in words.
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89PNG", "a PNG picture"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"BM", "a BMP picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (8, b"WAVE", "a sound"),
    (0, b"ID3", "a sound"),
    (0, b"\xff\xfb", "a sound"),
    (0, b"fLaC", "a sound"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"#EXTM3U", "a list of other files"),
    (0, b"ffconcat", "a list of other files"),
    (0, b"version https://git-lfs", "a pointer of Git LFS (`git lfs pull` fetches the file)"),
    (0, b"\0\0\0\1\x67", "raw H.264 without a container"),
    (0, b"\0\0\1\x67", "raw H.264 without a container"),
    (0, b"\0\0\0\1\x09", "raw H.264 without a container"),
    (0, b"\0\0\0\1\x40", "raw HEVC without a container"),
    (0, b"YUV4MPEG2", "raw YUV4MPEG2"),
)
_PAGES = (b"<!doctype html", b"<html", b"<?xml")
HEAD = 512  # bytes that `kind_of` looks at


def kind_of(head: bytes) -> str:
    """What a file is by its first bytes, in words; empty if they do not tell."""
    if head.lstrip().lower().startswith(_PAGES):
        return "a web page"
    kinds = (kind for at, mark, kind in _SIGNATURES if head.startswith(mark, at))
    return next(kinds, "")
