"""Log events to Diaspora Streams, and read them, as the person you are at Globus.

    import diaspora_streams

    with diaspora_streams.Logger("weather") as log:
        log.log({"temperature": 21.5})

It needs nothing but Python and either the command ``diaspora`` or a Kafka client. It signs in
with what ``diaspora login`` has stored, or with what the environment says; see from_env.
"""

from ._errors import (
    Closed,
    Conflict,
    DiasporaError,
    EventError,
    InsecureFile,
    Invalid,
    LoginRequired,
    NoProfile,
    NotFound,
    PermissionDenied,
    SpoolFull,
    TimedOut,
    Unauthenticated,
    Unavailable,
    Untrusted,
)
from ._event import Event
from ._fabric import Fabric, from_env
from ._logger import Logger
from ._source import TokenSource
from ._store import Token

__all__ = [
    "Closed",
    "Conflict",
    "DiasporaError",
    "Event",
    "EventError",
    "Fabric",
    "InsecureFile",
    "Invalid",
    "Logger",
    "LoginRequired",
    "NoProfile",
    "NotFound",
    "PermissionDenied",
    "SpoolFull",
    "TimedOut",
    "Token",
    "TokenSource",
    "Unauthenticated",
    "Unavailable",
    "Untrusted",
    "from_env",
]
