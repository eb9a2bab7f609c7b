"""Token files, as package globus of the Go library has them.

One file holds one login. It is for its owner's eyes only and replaced as a whole.
Writers take turns by flock(2) on the file NAME.lock next to it, whatever language
they are written in.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Iterator, Optional

from ._errors import DiasporaError, InsecureFile, LoginRequired, Unavailable

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

VERSION = 1
MAX_FILE_BYTES = 1 << 20
LOCK_POLL_SECONDS = 0.02

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@dataclass(frozen=True)
class Token:
    """An access token and what belongs to it. It prints as ``Token([redacted])``."""

    access_token: str
    refresh_token: str
    resource_server: str
    scope: str
    expiry: float  # when the access token stops working, in seconds since 1970
    obtained: float  # when it was issued; 0 if unknown

    def __repr__(self) -> str:
        return "Token([redacted])"

    __str__ = __repr__


class Damaged(DiasporaError):
    """A token file that cannot be read as one."""


class TokenFile:
    """One token file, which need not exist yet."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def read(self) -> dict[str, Any]:
        """Return the content. Nothing there is LoginRequired, nothing readable Damaged."""
        try:
            data = self._read_private()
        except FileNotFoundError:
            raise LoginRequired(f"login required: no tokens in {self.path}") from None
        except OSError as e:
            raise DiasporaError(f"read {self.path}: {e.strerror}") from None
        try:
            content = json.loads(data) if len(data) <= MAX_FILE_BYTES else None
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise Damaged(f"the token file is damaged: {self.path}; log in again")
        if content.get("version") != VERSION:
            raise DiasporaError(f"{self.path} was written by another version")
        for section in ("identity", "tokens"):
            if not isinstance(content.setdefault(section, {}), dict):
                raise Damaged(f"the token file is damaged: {self.path}; log in again")
        return content

    def _read_private(self) -> bytes:
        self._check_folder()
        fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        with open(fd, "rb") as f:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise DiasporaError(f"{self.path} is not a regular file")
            if os.name != "nt" and mode & 0o077:
                raise InsecureFile(f"others may use {self.path}; its tokens may be known: chmod 600 it, or log out and in again")
            return f.read(MAX_FILE_BYTES + 1)

    def _check_folder(self) -> None:
        folder = os.path.dirname(self.path)
        if os.name != "nt" and os.stat(folder).st_mode & 0o022:
            raise InsecureFile(f"others may write to {folder}: chmod 700 it")

    def write(self, content: dict[str, Any]) -> None:
        """Replace the file. The caller holds the lock."""
        self._check_folder()
        replace_file(self.path, json.dumps(content, indent=2) + "\n")

    def make_folder(self) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def lock(self, deadline: float, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
        """Wait for the turn to write, until the deadline.

        Where there are no locks, everybody passes: a refresh too many is better
        than no login. So it is where nothing can be written, for there is then
        no turn to take.
        """
        try:
            fd = os.open(self.path + ".lock", os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError:
            yield
            return
        try:
            while not _try_lock(fd):
                if clock() >= deadline:
                    raise Unavailable(f"wait for the lock on {self.path}: another program holds it")
                time.sleep(LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(fd)  # and with it the lock


def _try_lock(fd: int) -> bool:
    if fcntl is None:
        raise DiasporaError("this system has no flock, by which programs share a login; use an access key")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if e.errno not in _NO_LOCKS and e.errno != errno.EINTR:
            raise
        return e.errno != errno.EINTR
    return True


def token_of(content: dict[str, Any], resource_server: str) -> Optional[Token]:
    """Return a token of a file's content."""
    stored = content["tokens"].get(resource_server)
    if stored is None:
        return None
    try:
        return Token(
            access_token=str(stored["access_token"]),
            refresh_token=str(stored.get("refresh_token", "")),
            resource_server=resource_server,
            scope=str(stored.get("scope", "")),
            expiry=parse_time(stored["expiry"]),
            obtained=max(0.0, parse_time(stored["obtained"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise Damaged("the token file is damaged; log in again") from None


def replace_file(path: str, text: str) -> None:
    """Replace a file as a whole by one that only its owner can read. One process at a time may do this."""
    new = path + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.remove(new)  # an earlier process was killed here
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
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
    if os.name == "nt":  # folders cannot be synced there
        return
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)  # so that the rename survives a power cut
    finally:
        os.close(fd)


def set_token(content: dict[str, Any], token: Token) -> None:
    """Put a token into a file's content."""
    stored = {
        "access_token": token.access_token,
        "refresh_token": token.refresh_token,
        "scope": token.scope,
        "expiry": format_time(token.expiry),
        "obtained": format_time(token.obtained),
    }
    if not token.refresh_token:
        del stored["refresh_token"]
    content["tokens"][token.resource_server] = stored


_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(?:[Zz]|([+-])(\d\d):(\d\d))")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def parse_time(text: str) -> float:
    """Read a time of RFC 3339, as Go writes it: with up to nine decimals."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("not a time of RFC 3339")
    seconds, fraction, sign, hours, minutes = match.groups()
    utc = datetime.strptime(seconds, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    offset = timedelta(hours=int(hours), minutes=int(minutes)) if sign else timedelta()
    ahead = offset.total_seconds() * (-1 if sign == "-" else 1)
    return (utc - _EPOCH).total_seconds() + float(fraction or 0) - ahead


def format_time(seconds: float) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()
