"""Logger: events that are safe once a call has returned."""

from __future__ import annotations

import atexit
import importlib.util
import os
import threading
import time
from datetime import datetime
from types import TracebackType
from typing import Any, Callable, Iterable, Mapping, Optional, Protocol, Union

from . import _accesskey, _spool
from ._errors import Closed, DiasporaError, EventError, Invalid, SpoolFull, TimedOut, Unauthenticated
from ._event import Encoded, Event, Headers, IDs, check_claimable, encode

MAX_PENDING_BYTES = 64 << 20  # as in the Go library
EVENT_OVERHEAD = 512
TIMEOUT_SECONDS = 60.0
CLOSE_SECONDS = 600.0
EXIT_SECONDS = 30.0  # for the Loggers that a program has not closed

TRANSPORTS = ("spool", "kafka-python", "confluent-kafka")
_MODULES = {"kafka-python": "kafka", "confluent-kafka": "confluent_kafka"}

Done = Callable[[Optional[DiasporaError]], None]


class Transport(Protocol):
    """A way to the cluster."""

    name: str

    def send(self, event: Encoded, done: Done) -> None: ...
    def trouble(self) -> Optional[DiasporaError]: ...
    def close(self, timeout: float) -> str: ...
    def abandon(self) -> None: ...


class Logger:
    """Logs events to a topic. Threads may share it, and so may processes after a fork.

    When ``log`` returns, the event is safe. ``transport`` says where:

    - "spool": on the local disk. The command ``diaspora`` sends it from there as soon as the
      cluster is reachable, even if this program has ended. Used if the command is installed,
      beside this Python or on PATH.
    - "kafka-python", "confluent-kafka": in the cluster. Used if the package is installed.

    Without ``transport=``, the first of these that is installed is used. ``timeout`` is how long,
    in seconds, a call waits for its event to be safe. ``close_wait`` is how long close, with a
    spool, keeps waiting while the cluster acknowledges nothing. ``environ`` replaces os.environ.
    """

    def __init__(
        self,
        topic: str,
        *,
        transport: Optional[str] = None,
        timeout: float = TIMEOUT_SECONDS,
        close_wait: float = 5.0,
        environ: Optional[Mapping[str, str]] = None,
    ) -> None:
        self.topic = check_claimable(topic)
        self.transport = choose(transport)
        if key_file := (os.environ if environ is None else environ).get("DIASPORA_KEY_FILE"):
            _accesskey.read(key_file)  # if it cannot be used, that is an error now, and not at the first event
        self._timeout, self._close_wait, self._environ = timeout, close_wait, environ
        self._closed, self._close_at_exit = False, True
        self._to: Optional[Transport] = None  # None also in a fork, until its first event
        self._reset()
        self._to = self._connect()
        _open.add(self)

    def __repr__(self) -> str:
        return f"Logger({self.topic!r}, transport={self.transport!r})"

    def _reset(self) -> None:
        self._mutex = threading.Lock()  # guards _to and _closed
        self._to = None
        self._ids = IDs()  # also new in a fork, or two processes would make the same
        self._room = _Room(MAX_PENDING_BYTES)

    def _connect(self) -> Transport:
        if self.transport == "spool":
            binary = _spool.find_binary()
            if binary is None:
                raise DiasporaError("the command diaspora is not installed any more")
            spool = _spool.SpoolTransport(binary, self.topic, self._environ, self._close_wait)
            spool.open()
            return spool
        from . import _kafka

        make = _kafka.KafkaPythonTransport if self.transport == "kafka-python" else _kafka.ConfluentTransport
        return make(self.topic, self._environ, self._timeout)

    @property
    def pending(self) -> int:
        """The number of events that are not safe yet, in all threads."""
        return self._room.events

    def log(
        self,
        value: Any,
        *,
        key: Union[str, bytes, None] = None,
        headers: Optional[Headers] = None,
        time: Optional[datetime] = None,
        id: str = "",
        timeout: Optional[float] = None,
    ) -> str:
        """Log an event, and return its ID once the event is safe. See Event for the arguments.

        It raises Invalid if the event itself is refused, for instance because it is too large,
        and TimedOut if there is no result in time. Another error says why no event can be logged.
        """
        batch = _Batch()
        deadline = _Deadline(self._timeout if timeout is None else timeout)
        event = self._send(Event(value, key, headers, time, id), batch.result(0), deadline)
        while not batch.wait(0, deadline.left()):
            if deadline.left() <= 0:
                raise self._late(deadline, event.id)
        if batch.failed:
            raise batch.failed[0]
        return event.id

    def log_many(self, events: Iterable[Any], *, timeout: Optional[float] = None) -> int:
        """Log events one after the other, without waiting for each, and return their number once all are safe.

        Each is a value, or an Event. ``timeout`` is how long to wait while no event becomes safe.
        It raises EventError if events were refused; all others are safe. Another error says why
        no event can be logged. It then stops, and events before it may be logged or not.
        """
        batch, count = _Batch(), 0
        deadline = _Deadline(self._timeout if timeout is None else timeout)
        for index, item in enumerate(events):
            done = batch.result(index)
            count = index + 1
            deadline.renew_if(batch.progress())
            try:
                self._send(item if isinstance(item, Event) else Event(item), done, deadline)
            except DiasporaError as e:
                if not e.of_event:
                    raise
                done(e)
            if batch.fatal is not None:
                break
        while not batch.wait(0, min(1.0, deadline.left())):
            deadline.renew_if(batch.progress())
            if deadline.left() <= 0:
                raise self._late(deadline, "")
        if batch.fatal is not None:
            raise batch.fatal
        if batch.failed:
            first = min(batch.failed)
            raise EventError(f"{len(batch.failed)} of {count} events were not logged; the first is at index {first}: {batch.failed[first]}", batch.failed)
        return count

    def send(self, event: Event, done: Done, timeout: float = 0) -> None:
        """Pass an event on without waiting for it to be safe. done is called with None when it is, or with an error.

        It waits up to timeout for room, if too many events are pending. done runs in a thread of
        the Logger, and must not wait for it.
        """
        self._send(event, done, _Deadline(timeout))

    def _send(self, event: Event, done: Done, deadline: _Deadline) -> Encoded:
        try:
            encoded = encode(event, self._ids)
            size = encoded.size() + EVENT_OVERHEAD
            if size > MAX_PENDING_BYTES:
                raise Invalid(f"the event has {size - EVENT_OVERHEAD} bytes, which is more than any cluster takes")
        except Invalid as e:
            e.of_event = True
            raise
        room = self._room
        if not room.acquire(size, deadline):
            raise self._late(deadline, encoded.id)

        def finished(error: Optional[DiasporaError]) -> None:
            room.release(size)
            done(error)

        try:
            self._open_transport().send(encoded, finished)
        except BaseException:
            room.release(size)
            raise
        return encoded

    def _open_transport(self) -> Transport:
        with self._mutex:
            if self._closed:
                raise Closed(f'log to topic "{self.topic}": the Logger is closed')
            if self._to is None:
                self._to = self._connect()
            return self._to

    def _late(self, deadline: _Deadline, event_id: str) -> DiasporaError:
        trouble = self._to.trouble() if self._to is not None else None
        if isinstance(trouble, (SpoolFull, Unauthenticated)):
            return trouble
        why = f": {trouble}" if trouble is not None else ""
        return TimedOut(f'log to topic "{self.topic}": no result after {deadline.seconds:g} s{why}', event_id)

    def flush(self, timeout: Optional[float] = None) -> bool:
        """Wait until no event is pending, and return whether that is so in time."""
        return self._room.wait_empty(self._timeout if timeout is None else timeout)

    def close(self, timeout: float = CLOSE_SECONDS) -> str:
        """Send what is pending, and end. Return "" if the cluster has acknowledged all events.

        Otherwise return a sentence that says how many events are in the spool and why. They are
        not lost: the next Logger, or "diaspora spool drain", sends them. If somebody has to act
        before they can be sent, for instance to log in, close raises the error that says so.

        With a spool, the wait ends when the cluster acknowledges nothing for ``close_wait`` seconds.
        ``timeout`` limits the whole wait.
        """
        with self._mutex:
            to, self._to, self._closed = self._to, None, True
        _open.discard(self)
        return "" if to is None else to.close(timeout)

    def _close_reporting(self, timeout: float = CLOSE_SECONDS) -> None:
        """Close where nobody gets what close returns: report it instead."""
        if pending := self.close(timeout):
            _spool.diagnostics.warning('topic "%s": %s', self.topic, pending)

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        try:
            self._close_reporting()
        except DiasporaError as e:
            if error is None:
                raise
            _spool.diagnostics.warning('close the Logger of topic "%s": %s', self.topic, e)  # the first error matters more

    def _after_fork(self) -> None:
        to = self._to
        self._reset()
        if to is not None:
            to.abandon()


def choose(transport: Optional[str]) -> str:
    """Return the transport to use: the one that is asked for, or the first that is installed."""
    if transport is not None and transport not in TRANSPORTS:
        raise Invalid(f"there is no transport {transport!r}; choose one of {', '.join(TRANSPORTS)}")
    for name in TRANSPORTS if transport is None else (transport,):
        if _spool.find_binary() is not None if name == "spool" else importlib.util.find_spec(_MODULES[name]) is not None:
            return name
    if transport == "spool":
        raise DiasporaError("transport spool: the command diaspora is neither beside this Python nor on PATH; install it, or choose another transport")
    if transport is not None:
        raise DiasporaError(f"transport {transport}: the package is not installed; run: pip install {transport}")
    raise DiasporaError(
        "there is no way to send events: install the command diaspora, which keeps events on disk while the cluster is unreachable; "
        "or run: pip install kafka-python, or: pip install confluent-kafka"
    )


class _Deadline:
    """A limit for a wait, in seconds from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def renew_if(self, progress: bool) -> None:
        if progress:
            self._end = time.monotonic() + self.seconds


class _Batch:
    """Collects the results of events."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())  # guards the fields below
        self._open = 0
        self._finished = self._seen = 0
        self.failed: dict[int, DiasporaError] = {}
        self.fatal: Optional[DiasporaError] = None  # why no event can be logged

    def result(self, index: int) -> Done:
        with self._changed:
            self._open += 1

        def done(error: Optional[DiasporaError]) -> None:
            with self._changed:
                self._open -= 1
                self._finished += 1
                if error is not None:
                    self.failed[index] = error
                    if not error.of_event:
                        self.fatal = self.fatal or error
                if self._open == 0:
                    self._changed.notify_all()

        return done

    def progress(self) -> bool:
        """Tell whether there were results since the last call."""
        with self._changed:
            seen, self._seen = self._seen, self._finished
            return self._seen != seen

    def wait(self, open_events: int, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._open <= open_events, seconds)


class _Room:
    """Bounds the memory of the events that are pending."""

    def __init__(self, size: int) -> None:
        self._changed = threading.Condition(threading.Lock())  # guards the fields below
        self._left = size
        self.events = 0

    def acquire(self, size: int, deadline: _Deadline) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: self._left >= size, deadline.left()):
                return False
            self._left -= size
            self.events += 1
            return True

    def release(self, size: int) -> None:
        with self._changed:
            self._left += size
            self.events -= 1
            self._changed.notify_all()

    def wait_empty(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.events == 0, seconds)


_open: set[Logger] = set()  # so that a Logger whose events are pending is closed, even if the program has dropped it


def keep_open(logger: Logger) -> None:
    """Leave it to the caller to close a Logger at the end of the program."""
    logger._close_at_exit = False


def _close_all() -> None:
    """Close the Loggers that the program has not closed."""
    for logger in [each for each in _open if each._close_at_exit]:
        try:
            logger._close_reporting(EXIT_SECONDS)
        except DiasporaError as e:
            _spool.diagnostics.warning('close the Logger of topic "%s": %s', logger.topic, e)


def _after_fork() -> None:
    _spool.starting.release()
    for logger in list(_open):
        logger._after_fork()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_spool.starting.acquire, after_in_parent=_spool.starting.release, after_in_child=_after_fork)
