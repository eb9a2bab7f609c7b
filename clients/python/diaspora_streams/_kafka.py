"""Logging through kafka-python and confluent-kafka. An event is safe once the cluster has acknowledged it."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from typing import Any, Callable, Mapping, Optional

from ._errors import Closed, DiasporaError, Invalid, NotFound, PermissionDenied, TimedOut, Unauthenticated, Unavailable
from ._event import Encoded
from ._fabric import Fabric, from_env

Done = Callable[[Optional[DiasporaError]], None]

POLL_SECONDS = 0.1
REJECTED_SECONDS = 30.0  # how long a login that was rejected is given as the reason
REPLACE_SECONDS = 1.0  # the shortest life of a producer that is replaced
REFUSED_SECONDS = 10.0  # librdkafka also reports a connection that is cut during a login as a refusal

# Kafka's error codes; see https://kafka.apache.org/protocol#protocol_error_codes
_CONDITIONS: dict[int, type[DiasporaError]] = {
    3: NotFound,  # UNKNOWN_TOPIC_OR_PARTITION
    10: Invalid,  # MESSAGE_TOO_LARGE
    17: Invalid,  # INVALID_TOPIC_EXCEPTION
    18: Invalid,  # RECORD_LIST_TOO_LARGE
    29: PermissionDenied,  # TOPIC_AUTHORIZATION_FAILED
    30: PermissionDenied,  # GROUP_AUTHORIZATION_FAILED
    31: PermissionDenied,  # CLUSTER_AUTHORIZATION_FAILED
    53: PermissionDenied,  # TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    58: Unauthenticated,  # SASL_AUTHENTICATION_FAILED
    87: Invalid,  # INVALID_RECORD
}
_OF_EVENT = (10, 18, 87)


def explain(op: str, code: int, text: str) -> DiasporaError:
    """Return the error for one of Kafka's error codes."""
    error = _CONDITIONS.get(code, Unavailable)(f"{op}: {text}")
    error.of_event = code in _OF_EVENT
    return error


def check_size(op: str, event: Encoded, fabric: Fabric) -> None:
    """Refuse an event that is too large for the fabric. The clients would fail later, and with them other events."""
    most = fabric.discovery.get("max_event_bytes")
    if isinstance(most, int) and 0 < most < (size := event.size()):
        error = Invalid(f"{op}: the event has {size} bytes; the cluster takes at most {most}")
        error.of_event = True
        raise error


def explain_kafka_python(op: str, error: BaseException) -> DiasporaError:
    """Return the error for one of kafka-python's exceptions."""
    from kafka import errors

    if isinstance(error, DiasporaError):
        return error
    if isinstance(error, getattr(errors, "SaslAuthenticationFailedError", ())) or isinstance(error, getattr(errors, "AuthenticationFailedError", ())):
        return Unauthenticated(f"{op}: {error}")
    if not isinstance(error, errors.KafkaError):
        return DiasporaError(f"{op}: {error or type(error).__name__}")
    return explain(op, getattr(error, "errno", -1), str(error) or type(error).__name__)


class KafkaPythonTransport:
    """Sends events with a KafkaProducer of kafka-python, 2.0 to 3.0. Threads may share it."""

    name = "kafka-python"

    def __init__(self, topic: str, environ: Optional[Mapping[str, str]], timeout: float) -> None:
        self._topic, self._op, self._timeout = topic, f'log to topic "{topic}"', timeout
        self._fabric = from_env(environ)
        self._mutex = threading.Lock()  # guards the fields below
        self._producer = self._make()
        self._made = time.monotonic()
        self._failed = False
        self._rejections = _Rejections()

    def _make(self) -> Any:
        from kafka import KafkaProducer

        try:
            return KafkaProducer(**kafka_python_settings(self._fabric), **_producer_settings(self._timeout))
        except Exception as e:
            raise explain_kafka_python(self._op, e) from None

    def _working(self) -> Any:
        """Return the producer. One that has failed is replaced: some errors make an idempotent producer fail for ever."""
        with self._mutex:
            if self._failed and time.monotonic() - self._made >= REPLACE_SECONDS:
                self._made = time.monotonic()
                producer = self._make()  # or an error, for instance because the access key was revoked
                self._producer.close(0)
                self._producer, self._failed = producer, False
            return self._producer

    def send(self, event: Encoded, done: Done) -> None:
        check_size(self._op, event, self._fabric)

        from kafka.errors import KafkaTimeoutError

        def failed(error: Exception) -> None:
            self._failed = not isinstance(error, KafkaTimeoutError)  # in an outage, another producer would not help
            done(self.trouble() or explain_kafka_python(self._op, error))

        try:
            future = self._working().send(self._topic, event.value, event.key, event.kafka_headers())
        except Exception as e:
            raise explain_kafka_python(self._op, e) from None
        future.add_callback(lambda _: done(None))
        future.add_errback(failed)

    def trouble(self) -> Optional[DiasporaError]:
        reason = self._rejections.recent()
        return Unauthenticated(f"{self._op}: {reason}") if reason else None

    def close(self, timeout: float) -> str:
        self._producer.close(timeout)
        self._rejections.close()
        return ""

    def abandon(self) -> None:
        _leak(self._producer)


class _Rejections(logging.Filter):
    """Finds out why kafka-python is not signed in. It only logs the reason, and tries again for ever."""

    LOGGERS = ("kafka.cluster", "kafka.conn", "kafka.net.connection")  # 3.0, earlier, 3.0

    def __init__(self) -> None:
        super().__init__()
        self._text, self._at = "", 0.0
        for name in self.LOGGERS:
            logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        _, name, reason = text.rpartition("AuthenticationFailedError: ")
        if name:
            self._text, self._at = reason, time.monotonic()
        return True

    def recent(self) -> str:
        return self._text if time.monotonic() - self._at < REJECTED_SECONDS else ""

    def close(self) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).removeFilter(self)


def kafka_python_version() -> tuple[int, int]:
    import kafka

    major, minor = str(kafka.__version__).split(".")[:2]
    return int(major), int(minor)


def kafka_python_settings(fabric: Fabric) -> dict[str, Any]:
    """Return settings with which kafka-python waits for a busy or restarting broker."""
    settings, version = fabric.kafka_python(), kafka_python_version()
    if version < (2, 1):
        settings["api_version"] = (2, 5, 0)  # it would ask with requests that brokers no longer know
    elif version < (3, 0):
        settings["api_version_auto_timeout_ms"] = 30_000
    return settings


def _producer_settings(timeout: float) -> dict[str, Any]:
    settings: dict[str, Any] = {"acks": "all", "max_block_ms": int(timeout * 1000), "max_request_size": 32 << 20}
    if kafka_python_version() < (3, 0):
        # Each connection is closed when its token expires. Without retries, events would fail then.
        settings.update(retries=2**31 - 1, max_in_flight_requests_per_connection=1, retry_backoff_ms=100)
    if kafka_python_version() >= (2, 1):
        milliseconds = int(timeout * 1000)
        settings.update(enable_idempotence=True, delivery_timeout_ms=milliseconds, request_timeout_ms=min(30_000, milliseconds))
    return settings


class ConfluentTransport:
    """Sends events with a Producer of confluent-kafka. Threads may share it."""

    name = "confluent-kafka"

    def __init__(self, topic: str, environ: Optional[Mapping[str, str]], timeout: float) -> None:
        from confluent_kafka import Producer

        self._topic, self._op, self._timeout = topic, f'log to topic "{topic}"', timeout
        self._logins = Logins(self._op)
        self._fabric = from_env(environ)
        settings = {
            **self._fabric.confluent_kafka(),
            "enable.idempotence": True,
            "linger.ms": 0,
            "queue.buffering.max.messages": 1_000_000,  # the Logger bounds what is pending
            "message.timeout.ms": int(timeout * 1000),
            "message.max.bytes": 32 << 20,
            "error_cb": self._logins.error,
        }
        self._producer = Producer(settings)
        self._closed = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="diaspora-poll", daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        """Call poll regularly: it runs the callbacks, and renews the token."""
        while not self._closed.is_set():
            self._producer.poll(POLL_SECONDS)
            if self._logins.refused() is not None:
                self._producer.purge()  # or all events would wait for their timeout

    def send(self, event: Encoded, done: Done) -> None:
        def delivered(error: Any, _message: Any) -> None:
            if error is None:
                self._logins.good()
                done(None)
            else:
                done(self._logins.refused() or self._explain(error))

        check_size(self._op, event, self._fabric)
        try:
            self._producer.produce(self._topic, event.value, event.key, on_delivery=delivered, headers=event.kafka_headers())
        except BufferError:
            raise TimedOut(f"{self._op}: too many events are pending", event.id) from None
        except Exception as e:
            raise self._explain(e.args[0] if e.args else e) from None

    def _explain(self, error: Any) -> DiasporaError:
        return explain_confluent(self._op, error)

    def trouble(self) -> Optional[DiasporaError]:
        return self._logins.refused()

    def close(self, timeout: float) -> str:
        self._producer.flush(min(timeout, self._timeout))
        self._closed.set()
        self._poller.join(timeout)
        left = len(self._producer)
        if left:
            raise self._logins.refused() or TimedOut(f"{self._op}: {left} events were not acknowledged, and are lost")
        return ""

    def abandon(self) -> None:
        _leak(self._producer)


def explain_confluent(op: str, error: Any) -> DiasporaError:
    """Return the error for a KafkaError of confluent-kafka."""
    from confluent_kafka import KafkaError

    if not isinstance(error, KafkaError):
        return Closed(f"{op}: {error}") if isinstance(error, RuntimeError) else Invalid(f"{op}: {error}")
    if error.code() == KafkaError._AUTHENTICATION:
        return Unauthenticated(f"{op}: {error.str()}")
    if error.code() in (KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
        return NotFound(f"{op}: {error.str()}")
    return explain(op, error.code(), error.str())


class Logins:
    """Finds out whether a login was rejected. librdkafka itself tries again for ever."""

    def __init__(self, op: str) -> None:
        self._op = op
        self._since, self._reason = 0.0, ""

    def error(self, error: Any) -> None:
        """Be confluent-kafka's error_cb."""
        from confluent_kafka import KafkaError

        if error.code() == KafkaError._AUTHENTICATION:
            self._since, self._reason = self._since or time.monotonic(), error.str()

    def good(self) -> None:
        self._since = 0.0

    def refused(self) -> Optional[DiasporaError]:
        """Return the rejection, once no event has come through for some time."""
        if self._since and time.monotonic() - self._since > REFUSED_SECONDS:
            return Unauthenticated(f"{self._op}: {self._reason}")
        return None


def _leak(client: Any) -> None:
    """Keep a client from being closed, in a fork of the program that made it: it would wait for threads that are not there."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
