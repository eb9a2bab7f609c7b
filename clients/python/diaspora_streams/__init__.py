"""Log events to Diaspora Streams, and read them, as the person you are at Globus.

    import diaspora_streams

    with diaspora_streams.Logger("weather") as log:
        log.log({"temperature": 21.5})

It needs nothing but Python and either the command ``diaspora`` or a Kafka client. It signs in
with what ``diaspora login`` has stored, or with what the environment says; see from_env.
"""

from ._consume import Consumer, Record, consume
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
from ._frame import to_dataframe
from ._handler import Handler
from ._logger import Logger
from ._source import TokenSource
from ._store import Token

__all__ = [
    "Closed",
    "Conflict",
    "Consumer",
    "DiasporaError",
    "Event",
    "EventError",
    "Fabric",
    "Handler",
    "InsecureFile",
    "Invalid",
    "Logger",
    "LoginRequired",
    "NoProfile",
    "NotFound",
    "PermissionDenied",
    "Record",
    "SpoolFull",
    "TimedOut",
    "Token",
    "TokenSource",
    "Unauthenticated",
    "Unavailable",
    "Untrusted",
    "consume",
    "from_env",
    "to_dataframe",
]
