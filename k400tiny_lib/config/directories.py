"""Directories that must be on this machine, as parameters name them."""

import re

from k400tiny_lib.config.parameters import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import expand

# Training writes there, atomically and under a lock, and maps the files.
_LOCAL = {
    "checkpoint_dir": "the run keeps best.pt as an artifact",
    "cache_dir": "packed frames are mapped into memory",
}
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters at least: C:/ is a drive


def with_local_directories(config: Config) -> Config:
    """Expand `~` and `file://` URIs of directories, and refuse those of another place.

    Raises:
        UserError: for a remote URI.
    """
    changes = {}
    for name, reason in _LOCAL.items():
        value = getattr(config, name)
        if _URI.match(value) and not value.startswith("file:"):
            raise UserError(
                f"{name}: {value} is not a directory of this machine. Needed: a path or file://...;"
                f" {reason}."
            )
        changes[name] = expand(re.sub("^file:/(?!/)", "file:///", value))
    return config.replace(**changes)
