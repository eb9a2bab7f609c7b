"""Events: what a program logs, and how it is encoded."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import secrets
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Iterable, Mapping, Optional, Union

from ._errors import Invalid

HEADER_ID, HEADER_TIME = "diaspora-id", "diaspora-time"
RESERVED = "diaspora-"  # names of headers begin with it that only this package may set
MAX_ID_BYTES = 256

Headers = Union[Mapping[str, Union[str, bytes]], Iterable[tuple[str, Union[str, bytes]]]]

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}", re.ASCII)
_CLAIMABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,248}", re.ASCII)
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # of base 32, as in the Go library


@dataclass
class Event:
    """A value to log, with what belongs to it. Only the value is required.

    ``value`` is bytes, a str, None (a tombstone, which deletes the key from a compacted
    topic), or anything else that JSON can encode; numpy's numbers and arrays, and dates, count.
    Events with the same key keep their order. ``time`` is when the event happened, and
    defaults to now. A program that logs an event again should give it the same ``id``.
    """

    value: Any
    key: Union[str, bytes, None] = None
    headers: Optional[Headers] = None
    time: Optional[datetime] = None
    id: str = ""


@dataclass
class Encoded:
    """An event that can be sent."""

    id: str
    time: str  # RFC 3339, in UTC
    key: Optional[bytes]
    value: Optional[bytes]
    headers: list[tuple[str, bytes]]

    def size(self) -> int:
        """Return what counts against the limit of the cluster."""
        return len(self.key or b"") + len(self.value or b"") + sum(len(n.encode()) + len(v) for n, v in self.kafka_headers())

    def kafka_headers(self) -> list[tuple[str, bytes]]:
        return [*self.headers, (HEADER_TIME, self.time.encode()), (HEADER_ID, self.id.encode())]

    def line(self) -> bytes:
        """Return the event as a line of "diaspora produce --input ndjson"."""
        document: dict[str, Any] = {"id": self.id, "time": self.time, **_member("value", self.value)}
        if self.key is not None:
            document.update(_member("key", self.key))
        if self.headers:
            document["headers"] = [{"name": name, **_member("value", value)} for name, value in self.headers]
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _member(name: str, data: Optional[bytes]) -> dict[str, Optional[str]]:
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {name + "_base64": base64.b64encode(data).decode()}


class IDs:
    """Makes IDs that are unique without coordination: 80 random bits and a counter. Threads may share it."""

    def __init__(self) -> None:
        self._prefix = "".join(secrets.choice(_DIGITS) for _ in range(16)) + "-"
        self._numbers = itertools.count(1)

    def next(self) -> str:
        number, digits = next(self._numbers), ""
        while number:
            number, digit = divmod(number, 32)
            digits = _DIGITS[digit] + digits
        return self._prefix + digits


def check_topic(topic: str) -> str:
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
        raise Invalid("the topic's name is not one: it has letters, digits and underscores, and at most 249 characters")
    return topic


def check_claimable(topic: str) -> str:
    """Check the name of a topic to log to. Others than these may exist on a cluster, but nobody can claim them or get a right on them."""
    if not isinstance(topic, str) or not _CLAIMABLE.fullmatch(topic):
        raise Invalid(f"{topic!r} cannot be a topic: a name has letters, digits and underscores, does not begin with an underscore, and has at most 249 characters")
    return topic


def encode(event: Event, ids: IDs) -> Encoded:
    """Check an event, and convert it to bytes."""
    if event.value is None and event.key is None:
        raise Invalid("the value is None, which deletes a key, and there is no key")
    headers = []
    for name, value in event.headers.items() if isinstance(event.headers, Mapping) else event.headers or ():
        if not isinstance(name, str):
            raise Invalid("the name of a header must be a str")
        if name.startswith(RESERVED):
            raise Invalid(f'header "{name}": names that begin with "{RESERVED}" are reserved')
        headers.append((name, _bytes(value, f'header "{name}"')))
    if len(event.id.encode("utf-8", "replace")) > MAX_ID_BYTES:
        raise Invalid(f"the event's ID has more than {MAX_ID_BYTES} bytes")
    return Encoded(
        id=event.id or ids.next(),
        time=time_text(event.time),
        key=None if event.key is None else _bytes(event.key, "the key"),
        value=None if event.value is None else encode_value(event.value),
        headers=headers,
    )


def _bytes(value: Any, what: str) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if not isinstance(value, str):
        raise Invalid(f"{what} must be a str or bytes, not {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise Invalid(f"{what} is a str that is not text: it has half of a surrogate pair") from None


def encode_value(value: Any) -> bytes:
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return _bytes(value, "the value")
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=plain).encode()
    except ValueError:
        if _has_nan(value):
            raise Invalid("the value has a NaN or an infinity in it, which JSON does not have; log None or a str instead") from None
        raise Invalid("the value does not encode as JSON: it contains itself, or text that is not text") from None
    except (TypeError, RecursionError) as e:
        raise Invalid(f"the value does not encode as JSON: {e}") from None


def plain(value: Any) -> Any:
    """Be json's default: convert numpy's values, and dates."""
    for method in ("tolist", "isoformat"):
        if callable(getattr(value, method, None)):
            return getattr(value, method)()
    raise TypeError(f"there is no JSON for a {type(value).__name__}")


def _has_nan(value: Any, depth: int = 0) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if depth > 100:
        return False
    if isinstance(value, Mapping):
        return any(_has_nan(v, depth + 1) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_nan(v, depth + 1) for v in value)
    return hasattr(value, "tolist") and _has_nan(value.tolist(), depth + 1)


def time_text(moment: Optional[datetime]) -> str:
    """Return a time in RFC 3339, in UTC. A datetime without a time zone is local time, as Python has it."""
    seconds = time.time() if moment is None else moment.timestamp()
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"
    except (OverflowError, ValueError, OSError):
        raise Invalid("the event's time is out of range") from None
