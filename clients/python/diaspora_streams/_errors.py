"""The errors of this package: one class for each condition that a program can act on.

The conditions, and the exit codes for scripts, are those of the Go library and of the
command ``diaspora``. No error contains a token, a secret or an event's value.
"""

from __future__ import annotations

from typing import Mapping, Optional


class DiasporaError(Exception):
    """The base class of all errors. Its text says what failed, why, and what to do next.

    The text may quote a server, so control characters in it are escaped.
    """

    exit_code = 1  # with which "diaspora" exits for this condition
    of_event = False  # the event itself is refused, and others may succeed

    def __init__(self, text: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


class Invalid(DiasporaError):
    """The request or a setting is wrong. Repeating the call does not help."""

    exit_code = 2


class InsecureFile(Invalid):
    """Other users can read or change a file that holds a secret, or that says where secrets are sent."""


class Unauthenticated(DiasporaError):
    """There is no credential, or it was rejected. A person has to act."""

    exit_code = 3


class LoginRequired(Unauthenticated):
    """No usable token is left. Only a new login helps."""


class NoProfile(LoginRequired):
    """Nothing says which fabric to use: no profile is stored, and no variable names one."""


class Untrusted(Unauthenticated):
    """A secret was not sent, because it does not belong to the host that it would have been sent to."""


class PermissionDenied(DiasporaError):
    """The identity that is signed in may not do this."""

    exit_code = 4


class NotFound(DiasporaError):
    """The topic, or another object, does not exist."""

    exit_code = 5


class Conflict(DiasporaError):
    """The object is in use, or belongs to somebody else."""

    exit_code = 6


class Unavailable(DiasporaError):
    """The cluster, the ACL endpoint or Globus Auth is unreachable. The same call may succeed later."""

    exit_code = 7

    def __init__(self, text: str, retry_after: float = 0) -> None:
        super().__init__(text)
        self.retry_after = retry_after  # seconds that the server asked to wait


class EventError(DiasporaError):
    """Some of several events were not logged. ``failed`` maps the index of each to its error."""

    exit_code = 8

    def __init__(self, text: str, failed: Mapping[int, DiasporaError] = {}) -> None:
        super().__init__(text)
        self.failed = dict(failed)


class SpoolFull(DiasporaError):
    """The spool takes no more events: it has reached its maximum size, its disk is full, or it is damaged."""

    exit_code = 9


class TimedOut(DiasporaError):
    """There was no result in time. The event may still be logged, under the ID in ``event_id``."""

    exit_code = 10

    def __init__(self, text: str, event_id: str = "") -> None:
        super().__init__(text)
        self.event_id = event_id


class Closed(DiasporaError):
    """The Logger was closed."""


class Spooled(DiasporaError):
    """Events are in the spool, and the cluster has not acknowledged them yet. They are not lost."""

    exit_code = 75


_BY_EXIT_CODE: dict[int, type[DiasporaError]] = {
    c.exit_code: c for c in (Invalid, Unauthenticated, PermissionDenied, NotFound, Conflict, Unavailable, EventError, SpoolFull, TimedOut, Spooled)
}


def from_exit_code(code: Optional[int], text: str) -> DiasporaError:
    """Return the error for a condition that the command ``diaspora`` has reported."""
    return _BY_EXIT_CODE.get(code or 1, DiasporaError)(text)
