"""Keeps tokens away from hosts that they are not meant for."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Optional

from diaspora_streams import Fabric, Token, Untrusted
from diaspora_streams._trust import host_of

# The hosts of the brokers that the original hard-codes. They are addresses of a cloud, which
# others can get once the original's fabric has given them up.
ORIGINAL_HOSTS = ("52.200.217.146", "54.210.46.108")

USE_OURS = "import KafkaConsumer or KafkaProducer from diaspora_logger instead of kafka"


def check_client(fabric: Fabric, token: Token) -> None:
    """Raise Untrusted if the Kafka client that asks for the token would send it to another host or in clear text.

    It returns if no Kafka client asks: then the program itself wants the token.
    """
    connection = _connection()
    if connection is not None:
        check_connection(fabric, token, _host(connection), str(connection.config.get("security_protocol")))


def check_connection(fabric: Fabric, token: Token, host: str, protocol: str) -> None:
    if host_of(host) in ORIGINAL_HOSTS:
        raise Untrusted(f"{host} is a broker of the original fabric, so no token is sent there; {USE_OURS}")
    fabric._check_host(host, token)
    want = fabric._protocol()
    if protocol != want:
        raise Untrusted(f"the client connects to {host} with {protocol}, so no token is sent there; set security_protocol={want!r}, or {USE_OURS}")


def _connection() -> Optional[Any]:
    """Return kafka-python's connection whose method asks for a token.

    kafka-python does not tell a token provider which broker the token is for, so this looks for the
    connection among the callers. It fails if kafka-python calls and there is none.
    """
    frame: Optional[FrameType] = sys._getframe(1)
    called = False
    while frame is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] == "kafka":
            called = True
            owner = frame.f_locals.get("self")
            if hasattr(owner, "config") and _host(owner):
                return owner
        frame = frame.f_back
    if called:
        raise Untrusted(f"this version of kafka-python does not show where it sends the token, so it gets none; {USE_OURS}")
    return None


def _host(connection: Any) -> str:
    """Return the host of a connection, which is in its transport in kafka-python 3."""
    return str(getattr(connection, "host", None) or getattr(getattr(connection, "transport", None), "host", None) or "")
