"""A logging.Handler whose records become events."""

from __future__ import annotations

import base64
import json
import logging
import math
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Mapping, Optional, Union

from . import _spool
from ._errors import DiasporaError, SpoolFull, TimedOut
from ._event import Event
from ._logger import Logger, keep_open

MAX_VALUE_BYTES = 990_000  # the cluster takes about 1 MB for each event, with its key and headers
MAX_DEPTH = 32
FLUSH_SECONDS = 10.0
COMPLAIN_SECONDS = 60.0  # how often a record that is lost is reported on stderr

# Loggers of the code that sends the events. Each of their records would cause the next one.
OWN = ("diaspora_streams", "kafka", "aiokafka", "confluent_kafka")

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_LEVELS = ((40, "ERROR"), (30, "WARN"), (20, "INFO"), (-math.inf, "DEBUG"))


class Handler(logging.Handler):
    """Logs each record as an event: a JSON object with the member names of the Go library's slog handler.

    ``to`` is a topic, or a Logger that the program closes itself. With a topic, ``options`` are
    those of Logger. ``key`` is the key of every event. ``add_source`` adds the place of the
    call, and ``trace`` returns the trace ID and the span ID.

    A call does not wait until its record is safe. While too many records are pending, it waits
    up to ``drop_after`` seconds for room; then records are dropped until there is room again.
    The next event reports in ``lost`` how many were lost.
    """

    ignores_diagnostics = True  # see Fallback

    def __init__(
        self,
        to: Union[str, Logger],
        *,
        level: Union[int, str] = logging.NOTSET,
        key: Union[str, bytes, None] = None,
        add_source: bool = False,
        trace: Optional[Callable[[], tuple[str, str]]] = None,
        drop_after: float = 1.0,
        **options: Any,
    ) -> None:
        self.logger = Logger(to, **options) if isinstance(to, str) else to
        super().__init__(level)  # not before: logging.shutdown closes what this registers, even if there is no Logger
        self._owned = isinstance(to, str)
        if self._owned:
            keep_open(self.logger)  # until logging.shutdown closes this Handler
        self._key, self._add_source, self._trace, self._drop_after = key, add_source, trace, drop_after
        self._counts = threading.Lock()  # guards the next two
        self.lost = 0  # records that were dropped or refused
        self._untold = 0  # of these, those that no event has reported yet
        self._full = False  # the last record was dropped
        self._complained = -COMPLAIN_SECONDS

    def filter(self, record: logging.LogRecord) -> Any:
        """Drop records of the code that sends the events, before the Handler's lock, for which it might wait."""
        return record.name.partition(".")[0] not in OWN and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        told = 0
        try:
            with self._counts:
                told, self._untold = self._untold, 0
            value = self._document(record, told)
            moment = datetime.fromtimestamp(record.created, timezone.utc)

            def done(error: Optional[DiasporaError]) -> None:
                if error is not None:
                    self._lose(told)

            self.logger.send(Event(value, self._key, time=moment), done, 0 if self._full else self._drop_after)
            self._full = False
        except Exception as e:
            self._full = isinstance(e, (SpoolFull, TimedOut))
            self._lose(told)
            if time.monotonic() - self._complained >= COMPLAIN_SECONDS:
                self._complained = time.monotonic()
                self.handleError(record)

    def _lose(self, told: int) -> None:
        with self._counts:
            self.lost += 1
            self._untold += told + 1

    def _document(self, record: logging.LogRecord, lost: int) -> bytes:
        message, cut = _text(record.getMessage()), 0
        if len(message.encode()) > MAX_VALUE_BYTES // 4:
            message, cut = message.encode()[: MAX_VALUE_BYTES // 4 - 3].decode("utf-8", "ignore") + "…", 1
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": level_name(record.levelno),
            "msg": message,
        }
        if self._add_source:
            document["source"] = {"function": record.funcName, "file": record.pathname, "line": record.lineno}
        if self._trace is not None:
            document.update((name, text[:256]) for name, text in zip(("trace_id", "span_id"), self._trace()) if text)
        attributes: list[tuple[str, Any]] = [("logger", record.name)]
        if record.exc_info or record.exc_text:
            attributes.append(("exception", record.exc_text or _FORMATTER.formatException(record.exc_info)))  # type: ignore[arg-type]
        if record.stack_info:
            attributes.append(("stack", record.stack_info))
        attributes += [(name, value) for name, value in record.__dict__.items() if name not in _STANDARD]
        members = [_member(name, value) for name, value in document.items()]
        size = sum(len(m) + 1 for m in members) + 64
        names = {*document, "cut", "lost"}
        for name, value in attributes:
            unique, number = name, 1
            while unique in names:
                number += 1
                unique = f"{name}#{number}"
            names.add(unique)
            member = _member(unique, value)
            if size + len(member) > MAX_VALUE_BYTES:
                cut += 1
                continue
            size += len(member) + 1
            members.append(member)
        members += [_member(name, count) for name, count in (("cut", cut), ("lost", lost)) if count]
        return b"{" + b",".join(members) + b"}"

    def flush(self) -> None:
        """Wait until the pending records are safe, but not long."""
        self.logger.flush(FLUSH_SECONDS)

    def close(self) -> None:
        """Flush, and close the Logger unless the program has made it."""
        try:
            if self._owned:
                self.logger._close_reporting()
            else:
                self.flush()
        except DiasporaError as e:
            _spool.diagnostics.warning("close the Handler: %s", e)
        finally:
            super().close()


_FORMATTER = logging.Formatter()


def level_name(level: int) -> str:
    """Return a level as the Go library names it: levels between and above the four are like "INFO+2"."""
    for lowest, name in _LEVELS:
        if level >= lowest:
            above = (level - (10 if name == "DEBUG" else int(lowest))) * 4 // 10
            return f"{name}{above:+d}" if above else name
    raise AssertionError("unreachable")


def _member(name: str, value: Any) -> bytes:
    return f"{json.dumps(_text(name), ensure_ascii=False)}:{json.dumps(_plain(value, 0), ensure_ascii=False, separators=(',', ':'))}".encode()


def _text(text: str) -> str:
    """Replace what UTF-8 does not have: halves of surrogate pairs."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _plain(value: Any, depth: int) -> Any:
    """Convert a value to one that JSON has. It fails for none."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    try:
        if depth < MAX_DEPTH:
            if isinstance(value, Mapping):
                return {_text(str(k)): _plain(v, depth + 1) for k, v in value.items()}
            if isinstance(value, (list, tuple, set, frozenset)):
                return [_plain(v, depth + 1) for v in value]
        if isinstance(value, (bytes, bytearray)):
            return base64.b64encode(value).decode()
        if isinstance(value, timedelta):
            return int(value / timedelta(microseconds=1)) * 1000
        for method in ("tolist", "isoformat"):
            if depth < MAX_DEPTH and callable(getattr(value, method, None)):
                return _plain(getattr(value, method)(), depth + 1)
        return _text(str(value))
    except Exception as e:
        return f"!ERROR: {type(e).__name__} in the str of a {type(value).__name__}"
