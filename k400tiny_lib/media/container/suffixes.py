"""Which files are videos, by their names alone; imports no decoder."""

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3gpp", ".3g2", ".mj2", ".f4v", ".ismv"),
    *(".mkv", ".webm", ".avi", ".divx", ".flv", ".wmv", ".asf", ".ogv", ".ogm", ".gif"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mp2v", ".m2p", ".vob", ".mod", ".vro"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".tod", ".trp", ".mxf", ".rm", ".rmvb"),
)


def is_video(name: str) -> bool:
    """Whether a file name is that of a video; hidden files are not."""
    return name.lower().endswith(VIDEO_SUFFIXES) and not name.rpartition("/")[2].startswith(".")
