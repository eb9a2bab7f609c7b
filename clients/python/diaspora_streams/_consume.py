"""Reading records, with kafka-python, confluent-kafka or the command ``diaspora``."""

from __future__ import annotations

import base64
import importlib.util
import json
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence, Union

from . import _spool
from ._errors import DiasporaError, Invalid, NotFound, Unavailable
from ._event import HEADER_ID, HEADER_TIME, check_topic, time_text
from ._fabric import from_env
from ._store import parse_time

POLL_SECONDS = 0.5
COMMIT_SECONDS = 1.0
ASK_SECONDS = 30.0
STALLED_SECONDS = 60.0  # how long a reader that is to end waits for records that exist

TRANSPORTS = ("kafka-python", "confluent-kafka", "diaspora")
_MODULES = {"kafka-python": "kafka", "confluent-kafka": "confluent_kafka"}

Position = Union[str, float, datetime]
Partition = tuple[str, int]


@dataclass(frozen=True)
class Record:
    """An event in the cluster."""

    topic: str
    partition: int
    offset: int
    time: datetime  # when the event happened
    stored: datetime  # when the cluster received it
    key: Optional[bytes]
    value: Optional[bytes]
    headers: tuple[tuple[str, Optional[bytes]], ...] = ()
    id: str = ""  # two records with the same ID are the same event, delivered twice

    def json(self) -> Any:
        """Return the value, parsed as JSON."""
        try:
            return json.loads(self.value or b"")
        except ValueError:
            raise Invalid(f'record of topic "{self.topic}" at partition {self.partition} offset {self.offset}: the value is not JSON') from None


def consume(
    topic: Union[str, Sequence[str]],
    *,
    from_: Optional[Position] = None,
    group: Optional[str] = None,
    follow: bool = True,
    transport: Optional[str] = None,
    environ: Optional[Mapping[str, str]] = None,
) -> Consumer:
    """Return an iterator over the records of a topic, or of several.

    ``from_`` is where to begin: "start", "end", or the time at which the cluster received the
    first record, as a datetime or in seconds since 1970. The default is "end", but "start" with a
    group or with ``follow=False``. With ``follow=False``, the iterator ends at what is the end of
    each partition when it begins.

    With a ``group``, it continues where the group stopped, and ``from_`` is for partitions that
    the group has never read. Consumers of one group share the work. A record counts as read when
    the next one is requested, or with ``commit``.

    ``transport`` is "kafka-python", "confluent-kafka" or "diaspora", which is the command. The
    default is the first that is installed. A group needs one of the first two.
    """
    topics = [check_topic(t) for t in ([topic] if isinstance(topic, str) else topic)]
    name = _choose(transport, group)
    start = _position(from_, "start" if group is not None or not follow else "end")
    op = "consume topic " + ", ".join(f'"{t}"' for t in topics)
    if name == "diaspora":
        return Consumer(name, _Command(op, topics, start, follow, environ), follow)
    make = _KafkaPython if name == "kafka-python" else _Confluent
    return Consumer(name, make(op, topics, start, group, follow, environ), follow)


def _choose(transport: Optional[str], group: Optional[str]) -> str:
    if transport is not None and transport not in TRANSPORTS:
        raise Invalid(f"there is no transport {transport!r}; choose one of {', '.join(TRANSPORTS)}")
    for name in TRANSPORTS if transport is None else (transport,):
        if name == "diaspora" and group is not None:
            break
        if _spool.find_binary() is not None if name == "diaspora" else importlib.util.find_spec(_MODULES[name]) is not None:
            return name
    if group is not None and transport in (None, "diaspora"):
        raise DiasporaError("a group needs a Kafka client; run: pip install kafka-python, or: pip install confluent-kafka")
    raise DiasporaError(
        f"{transport or 'a way to read records'} is not installed; run: pip install kafka-python, or: pip install confluent-kafka, or install the command diaspora"
    )


def _position(position: Optional[Position], default: str) -> Union[str, float]:
    """Return a position as "start", "end" or seconds since 1970."""
    if position is None:
        return default
    if isinstance(position, datetime):
        return position.timestamp()
    position = {"beginning": "start", "earliest": "start", "latest": "end"}.get(position, position) if isinstance(position, str) else position
    if position in ("start", "end") or isinstance(position, (int, float)) and not isinstance(position, bool):
        return position
    raise Invalid(f'from_ is {position!r}; it must be "start", "end", a datetime, or seconds since 1970')


class Consumer:
    """Iterates over records. Close it, or use it in a with statement, to free its connections early."""

    def __init__(self, transport: str, source: _Source, follow: bool) -> None:
        self.transport = transport
        self._source, self._follow = source, follow
        self._records = self._read()
        self._last: Optional[Record] = None  # the one that the caller is working on
        self._closed = False

    def __iter__(self) -> Consumer:
        return self

    def __next__(self) -> Record:
        if self._closed:
            raise StopIteration
        try:
            if self._last is not None:
                self._source.handled(self._last)
                self._last = None
            self._last = next(self._records)
            return self._last
        except BaseException:
            self.close()
            raise

    def _read(self) -> Iterator[Record]:
        progress = committed = time.monotonic()
        while True:
            records = self._source.poll()
            for record in records:
                yield record
                if time.monotonic() - committed >= COMMIT_SECONDS:
                    self._source.commit()
                    committed = time.monotonic()
            if records:
                progress = time.monotonic()
            if self._source.ended():
                return
            if not self._follow and time.monotonic() - progress > STALLED_SECONDS:
                raise Unavailable(f"{self._source.op}: the cluster has sent nothing for {STALLED_SECONDS:g} s")

    def commit(self) -> None:
        """Record that the group has read all records so far, the last one included."""
        if self._last is not None:
            self._source.handled(self._last)
        self._source.commit()

    def close(self) -> None:
        """Leave the group, and close the connections. It may be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            self._source.commit()
        finally:
            self._source.close()

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) is False:
            self._closed = True
            self._source.close()


class _Source:
    """A way to read records."""

    def __init__(self, op: str) -> None:
        self.op = op
        self._handled: dict[Partition, int] = {}  # the offset that follows, if it is not committed

    def poll(self) -> list[Record]:
        raise NotImplementedError

    def ended(self) -> bool:
        raise NotImplementedError

    def handled(self, record: Record) -> None:
        self._handled[record.topic, record.partition] = record.offset + 1

    def commit(self) -> None:
        self._handled.clear()

    def close(self) -> None:
        raise NotImplementedError


class _KafkaPython(_Source):
    """Reads with a KafkaConsumer of kafka-python, 2.0 to 3.0."""

    def __init__(
        self, op: str, topics: list[str], start: Union[str, float], group: Optional[str], follow: bool, environ: Optional[Mapping[str, str]]
    ) -> None:
        from kafka import KafkaConsumer, TopicPartition

        from . import _kafka

        super().__init__(op)
        self._explain: Callable[[BaseException], DiasporaError] = lambda e: _kafka.explain_kafka_python(op, e)
        self._group, self._start = group, start
        self._ends: dict[Partition, int] = {}  # where to end; empty if never
        self._assigned: set[Any] = set()  # partitions whose position is not set yet
        settings = _kafka.kafka_python_settings(from_env(environ))
        settings.update(group_id=group, enable_auto_commit=False, auto_offset_reset="latest" if start == "end" else "earliest")
        if _kafka.kafka_python_version() < (3, 0):
            # If two threads read one connection, the answer to a login may be missed. That must not take five minutes.
            settings.update(session_timeout_ms=10_000, request_timeout_ms=15_000)
        try:
            self._consumer = KafkaConsumer(**settings)
        except Exception as e:
            raise self._explain(e) from None
        try:
            partitions = [TopicPartition(t, p) for t in topics for p in sorted(self._partitions(t))]
            if not follow:
                self._ends = {(p.topic, p.partition): end for p, end in self._consumer.end_offsets(partitions).items()}
            if group is not None:
                self._subscribe(topics, start)
                return
            self._consumer.assign(partitions)
            for partition, offset in self._offsets(partitions, start).items():
                self._consumer.seek(partition, offset)
        except Exception as e:
            self._consumer.close()
            raise self._explain(e) from None

    def _partitions(self, topic: str) -> set[int]:
        found = self._consumer.partitions_for_topic(topic)
        if not found:
            raise NotFound(f"{self.op}: there is no topic of this name, or you may not read it; see: diaspora topic list")
        return set(found)

    def _offsets(self, partitions: list[Any], start: Union[str, float]) -> dict[Any, int]:
        if start == "start":
            return dict(self._consumer.beginning_offsets(partitions))
        ends = dict(self._consumer.end_offsets(partitions))
        if isinstance(start, str):
            return ends
        found = self._consumer.offsets_for_times({p: int(start * 1000) for p in partitions})
        return {p: ends[p] if found.get(p) is None else found[p].offset for p in partitions}

    def _subscribe(self, topics: list[str], start: Union[str, float]) -> None:
        from kafka import ConsumerRebalanceListener

        source = self

        class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
            def on_partitions_revoked(self, revoked: Any) -> None:
                pass  # poll has committed

            def on_partitions_assigned(self, assigned: Any) -> None:
                if not isinstance(start, str):  # otherwise auto_offset_reset does it
                    source._assigned.update(assigned)

        self._consumer.subscribe(topics, listener=Listener())

    def _begin(self) -> None:
        """Begin where the group stopped, or at a time. kafka-python 3.0 cannot ask for offsets inside the listener."""
        offsets = {p: self._consumer.committed(p) for p in self._assigned}
        if new := [p for p, offset in offsets.items() if offset is None]:
            offsets.update(self._offsets(new, self._start))
        for partition, offset in offsets.items():
            self._consumer.seek(partition, offset)
        self._assigned.clear()

    def poll(self) -> list[Record]:
        self.commit()  # now, because the group may rebalance in poll, and kafka-python 3.0 cannot commit inside the listener
        try:
            batches = self._consumer.poll(timeout_ms=int(POLL_SECONDS * 1000))
            if self._assigned:
                batches = {p: batch for p, batch in batches.items() if p not in self._assigned}
                self._begin()
        except Exception as e:
            if getattr(e, "retriable", False):
                return []
            raise self._explain(e) from None
        return [
            _record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
            for batch in batches.values()
            for r in batch
            if r.offset < self._ends.get((r.topic, r.partition), r.offset + 1)
        ]

    def ended(self) -> bool:
        if not self._ends:
            return False
        assigned = {(p.topic, p.partition): p for p in self._consumer.assignment()}
        if self._group is not None and not assigned:
            return False
        return all((self._consumer.position(p) or 0) >= self._ends[at] for at, p in assigned.items() if at in self._ends)

    def commit(self) -> None:
        from kafka import OffsetAndMetadata, TopicPartition

        if self._group is None or not self._handled:
            return
        offsets, self._handled = self._handled, {}
        fields = len(OffsetAndMetadata._fields)
        try:
            self._consumer.commit({TopicPartition(*at): OffsetAndMetadata(*(offset, "", -1)[:fields]) for at, offset in offsets.items()})
        except Exception as e:
            self._handled = {**offsets, **self._handled}
            if not getattr(e, "retriable", False):
                raise self._explain(e) from None

    def close(self) -> None:
        self._consumer.close(autocommit=False)


class _Confluent(_Source):
    """Reads with a Consumer of confluent-kafka."""

    def __init__(
        self, op: str, topics: list[str], start: Union[str, float], group: Optional[str], follow: bool, environ: Optional[Mapping[str, str]]
    ) -> None:
        from confluent_kafka import Consumer, TopicPartition

        from . import _kafka

        super().__init__(op)
        self._logins = _kafka.Logins(op)
        self._group = group
        self._ends: dict[Partition, int] = {}  # where to end; empty if never
        self._next: dict[Partition, int] = {}
        self._consumer = Consumer(
            {
                **from_env(environ).confluent_kafka(),
                "group.id": group or "diaspora-streams",  # required, but not used without a group
                "enable.auto.commit": False,
                "auto.offset.reset": "latest" if start == "end" else "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 100,  # the end of a partition is told after this time
                "error_cb": self._logins.error,
            }
        )
        try:
            partitions = [TopicPartition(t, p) for t in topics for p in self._partitions(t)]
            if not follow:
                self._ends = {(p.topic, p.partition): self._consumer.get_watermark_offsets(p, ASK_SECONDS)[1] for p in partitions}
            if group is None:
                self._consumer.assign(self._offsets(partitions, start))
            else:
                self._consumer.subscribe(topics, on_assign=lambda _, assigned: self._assigned(assigned, start), on_revoke=lambda *_: self.commit())
        except BaseException as e:
            self._consumer.close()
            raise (self._error(e) if isinstance(e, Exception) else e) from None

    def _error(self, error: Any) -> DiasporaError:
        from . import _kafka

        if isinstance(error, DiasporaError):
            return error
        refused = self._logins.refused()
        return refused or _kafka.explain_confluent(self.op, error.args[0] if getattr(error, "args", ()) else error)

    def _partitions(self, topic: str) -> list[int]:
        self._consumer.poll(0)  # which gets the first token
        found = self._consumer.list_topics(topic, timeout=ASK_SECONDS).topics[topic]
        if found.error is not None:
            raise NotFound(f"{self.op}: there is no topic of this name, or you may not read it; see: diaspora topic list")
        return sorted(found.partitions)

    def _offsets(self, partitions: list[Any], start: Union[str, float]) -> list[Any]:
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        if start == "start":
            return [TopicPartition(p.topic, p.partition, OFFSET_BEGINNING) for p in partitions]
        ends = [TopicPartition(p.topic, p.partition, self._consumer.get_watermark_offsets(p, ASK_SECONDS)[1]) for p in partitions]
        if isinstance(start, str):
            return ends
        found = self._consumer.offsets_for_times([TopicPartition(p.topic, p.partition, int(start * 1000)) for p in partitions], ASK_SECONDS)
        return [f if f.offset >= 0 else end for f, end in zip(found, ends)]

    def _assigned(self, assigned: list[Any], start: Union[str, float]) -> None:
        if isinstance(start, str) or not assigned:
            return  # auto.offset.reset does it
        committed = self._consumer.committed(assigned, ASK_SECONDS)
        known, new = [p for p in committed if p.offset >= 0], [p for p in committed if p.offset < 0]
        self._consumer.assign([*known, *(self._offsets(new, start) if new else ())])

    def poll(self) -> list[Record]:
        from confluent_kafka import KafkaError

        records = []
        try:
            first = self._consumer.poll(POLL_SECONDS)
        except Exception as e:  # of a callback
            raise self._error(e) from None
        for message in [] if first is None else [first, *self._consumer.consume(500, 0)]:
            at, error = (message.topic(), message.partition()), message.error()
            if error is None:
                self._logins.good()
                self._next[at] = message.offset() + 1
                if message.offset() < self._ends.get(at, message.offset() + 1):
                    records.append(
                        _record(*at, message.offset(), message.timestamp()[1], message.key(), message.value(), message.headers() or ())
                    )
            elif error.code() == KafkaError._PARTITION_EOF:
                self._next[at] = max(self._next.get(at, 0), message.offset())
            elif not error.retriable() and error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
                raise self._error(error)
        if not records and (refused := self._logins.refused()) is not None:
            raise refused
        return records

    def ended(self) -> bool:
        if not self._ends:
            return False
        assigned = [(p.topic, p.partition) for p in self._consumer.assignment()]
        return bool(assigned) and all(self._next.get(at, -1) >= self._ends[at] for at in assigned if at in self._ends)

    def commit(self) -> None:
        from confluent_kafka import TopicPartition

        if self._group is None or not self._handled:
            return
        offsets, self._handled = self._handled, {}
        try:
            self._consumer.commit(offsets=[TopicPartition(*at, offset) for at, offset in offsets.items()], asynchronous=False)
        except Exception as e:
            self._handled = {**offsets, **self._handled}
            if not (hasattr(e.args[0], "retriable") and e.args[0].retriable()):
                raise self._error(e) from None

    def close(self) -> None:
        self._consumer.close()


class _Command(_Source):
    """Reads with the command ``diaspora consume``."""

    def __init__(self, op: str, topics: list[str], start: Union[str, float], follow: bool, environ: Optional[Mapping[str, str]]) -> None:
        super().__init__(op)
        binary = _spool.find_binary()
        if binary is None:
            raise DiasporaError("the command diaspora is not installed any more")
        begin = start if isinstance(start, str) else time_text(datetime.fromtimestamp(start, timezone.utc))
        command = [binary, "consume", "--from", begin, *(() if follow else ("--exit",)), "-o", "ndjson", "--quiet", "--", *topics]
        environment = _spool.child_environment(environ)
        with _spool.starting:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True
            )
        self._messages = _spool.Messages(self._process.stderr)
        self._ended = False

    def poll(self) -> list[Record]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.endswith(b"\n"):
            return [_parse(json.loads(line))]
        self._ended = True
        code = self._process.wait()
        self._messages.join()
        if code != 0:
            raise self._messages.error or Unavailable(f"{self.op}: diaspora consume ended ({_spool.how(code)})")
        return []

    def ended(self) -> bool:
        return self._ended

    def close(self) -> None:
        self._ended = True
        _spool.terminate(self._process)
        self._messages.join()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def _record(
    topic: str,
    partition: int,
    offset: int,
    milliseconds: int,
    key: Optional[bytes],
    value: Optional[bytes],
    headers: Any,
) -> Record:
    stored = moment = datetime.fromtimestamp(max(0, milliseconds) / 1000, timezone.utc)
    event_id, others = "", []
    for name, content in headers:
        if name == HEADER_ID:
            event_id = (content or b"").decode("utf-8", "replace")
        elif name == HEADER_TIME:
            moment = _time((content or b"").decode("utf-8", "replace"), stored)
        else:
            others.append((name, content))
    return Record(topic, partition, offset, moment, stored, key, value, tuple(others), event_id)


def _time(text: str, default: datetime) -> datetime:
    try:
        return datetime.fromtimestamp(parse_time(text), timezone.utc)
    except (ValueError, OverflowError, OSError):
        return default


def _parse(document: dict[str, Any]) -> Record:
    """Return the record of a line that ``diaspora consume -o ndjson`` has printed."""
    stored = _time(document.get("stored", ""), datetime.fromtimestamp(0, timezone.utc))
    return Record(
        topic=document["topic"],
        partition=document["partition"],
        offset=document["offset"],
        time=_time(document.get("time", ""), stored),
        stored=stored,
        key=_data(document, "key"),
        value=_data(document, "value"),
        headers=tuple((h["name"], _data(h, "value")) for h in document["headers"]),
        id=document.get("id", ""),
    )


def _data(document: dict[str, Any], name: str) -> Optional[bytes]:
    if name + "_base64" in document:
        return base64.b64decode(document[name + "_base64"])
    text = document.get(name)
    return None if text is None else str(text).encode()
