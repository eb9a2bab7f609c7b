"""Files that only their owner can read."""

from __future__ import annotations

import contextlib
import os
import tempfile


def write_privately(path: str, text: str) -> None:
    """Replace a file as a whole by one of mode 0600, in a folder that need not exist yet."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    fd, new = tempfile.mkstemp(prefix=".", suffix=".new", dir=folder)
    try:
        with open(fd, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(new)
        raise
    if os.name != "nt":
        fd = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(fd)
        os.close(fd)
