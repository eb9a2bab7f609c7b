"""A Kafka producer and consumer that sign in to a fabric, with the names of the original."""

from __future__ import annotations

import difflib
import json
import logging
import os
import warnings
from typing import Any, Optional

import kafka
import kafka.errors
import kafka.serializer
from diaspora_streams import DiasporaError, LoginRequired, Untrusted, from_env
from diaspora_streams._event import _TOPIC
from diaspora_streams._fabric import _provider_base
from diaspora_streams._http import Answer
from diaspora_streams._kafka import kafka_python_settings, kafka_python_version
from diaspora_streams._spool import Fallback
from diaspora_streams._trust import host_of

from ._guard import ORIGINAL_HOSTS, check_client

_Base: Any = _provider_base()

_diagnostics = logging.getLogger("diaspora_logger")
_diagnostics.addHandler(Fallback())  # prints to stderr, unless the program has configured logging


class GlobusAuthTokenProvider(_Base):  # type: ignore[misc]
    """A token provider for kafka-python, from 2.0.2 on.

    refresh_token is that of a Globus login. Without it, DIASPORA_REFRESH or the stored login signs in. The
    fabric is that of DIASPORA_URL, or of the stored profile.
    """

    def __init__(self, refresh_token: Optional[str] = None, **config: Any) -> None:
        super().__init__(**config)
        environ = dict(os.environ)
        if refresh_token is not None:
            environ["DIASPORA_REFRESH"] = refresh_token
        self.refresh_token = refresh_token
        self.fabric = from_env(environ)

    def token(self) -> str:
        """Return an access token that is valid now. Raise Untrusted if the calling client must not get it."""
        try:
            token = self.fabric.token()
            check_client(self.fabric, token)
        except (LoginRequired, Untrusted) as e:
            # kafka-python only logs the exception, and shows its log to nobody by default.
            warnings.warn(f"diaspora_logger: {e}", stacklevel=2)
            raise
        return token.access_token


class KafkaConsumer(kafka.KafkaConsumer):  # type: ignore[misc]
    """kafka-python's KafkaConsumer, connected to the fabric. It takes the same arguments."""

    def __init__(self, *topics: str, **configs: Any) -> None:
        super().__init__(*topics, **_client_settings(configs))


class KafkaProducer(kafka.KafkaProducer):  # type: ignore[misc]
    """kafka-python's KafkaProducer, connected to the fabric. It takes the same arguments."""

    def __init__(self, **configs: Any) -> None:
        super().__init__(**_client_settings(configs))


def _topics(answer: Optional[Answer], *members: str) -> list[str]:
    """Return the topics that an answer of the ACL endpoint lists, as names or in objects. What is not a topic's name is left out."""
    if answer is None or answer.status != 200 or not isinstance(answer.document, dict):
        return []
    names = []
    for member in members:
        listed = answer.document.get(member)
        for each in listed if isinstance(listed, list) else ():
            name = each.get("name") if isinstance(each, dict) else each
            if isinstance(name, str) and _TOPIC.fullmatch(name):
                names.append(name)
    return names


class DiasporaLogger:
    """A KafkaProducer that is connected to the fabric. It sends values as JSON.

    All arguments are optional. refresh_token is for GlobusAuthTokenProvider. The others are those of
    KafkaProducer, and so are all attributes.
    """

    def __init__(self, bootstrap_servers: Any = None, refresh_token: Optional[str] = None, **configs: Any) -> None:
        if bootstrap_servers is not None:
            configs["bootstrap_servers"] = bootstrap_servers
        if "sasl_oauth_token_provider" not in configs:
            configs["sasl_oauth_token_provider"] = GlobusAuthTokenProvider(refresh_token)
        configs.setdefault("value_serializer", JSONSerializer())
        settings = _client_settings(configs)
        self._provider = settings["sasl_oauth_token_provider"]
        self._reported: set[tuple[str, str]] = set()  # topics and kinds of errors
        try:
            self._producer = kafka.KafkaProducer(**{**_producer_defaults(), **settings})
        except kafka.errors.KafkaError as e:
            hint = f'cannot connect to the brokers of {self._provider.fabric.url}; run "diaspora doctor" to find out why'
            said = f"{e.args[0]}; " if e.args else ""  # its str begins with the name of its class
            raise type(e)(said + hint) from None  # one traceback is long enough

    def send(self, topic: str, *args: Any, **kwargs: Any) -> Any:
        """Send an event as KafkaProducer.send does. An event that is lost is reported on stderr, because flush says nothing about it."""
        future = self._producer.send(topic, *args, **kwargs)
        future.add_errback(self._lost, topic)
        return future

    def _lost(self, topic: str, error: Exception) -> None:
        kind = (topic, type(error).__name__)
        if kind in self._reported:
            return
        self._reported.add(kind)
        refused = isinstance(error, (kafka.errors.TopicAuthorizationFailedError, kafka.errors.UnknownTopicOrPartitionError))
        hint = self._advice(topic) if refused else ""
        _diagnostics.error('an event for topic "%s" was not logged: %s%s; further events with this error are not reported', topic, error, hint)

    def _advice(self, topic: str) -> str:
        """Say what to do about a topic that the cluster does not let this program write to."""
        fabric = self._provider.fabric
        if fabric._key is None:
            near = self._near(topic)
            hint = f"; did you mean {near}? otherwise" if near else ";"
            return f'{hint} run "diaspora topic claim {topic}" if nobody has claimed it, or ask its owner to share it'
        try:
            answer = fabric._ask_about_key()
        except DiasporaError:
            answer = None
        names = _topics(answer, "topics")
        hint = f"; the access key {fabric._key.id} may not write to it, or nobody has claimed it"
        if names:
            near = difflib.get_close_matches(topic, names, 1, 0.8)
            hint = f'; the access key {fabric._key.id} is for {", ".join(names)} only' + (f"; did you mean {near[0]}?" if near else "")
        return f'{hint}; "diaspora key create NAME --topic {topic} --write --save-env FILE", where the owner is logged in, makes one that may'

    def _near(self, topic: str) -> str:
        """Return the topic of this login that the name may be a misspelling of, or ""."""
        fabric = self._provider.fabric
        try:
            token = fabric.source.token()
            fabric._check_endpoint(token)
            answer = fabric._look("/v1/topics", "Bearer " + token.access_token)
        except DiasporaError:
            return ""
        names = _topics(answer, "topics", "shared")
        return "" if topic in names else next(iter(difflib.get_close_matches(topic, names, 1, 0.8)), "")

    def __getattr__(self, name: str) -> Any:
        if name == "_producer":  # __init__ has failed
            raise AttributeError(name)
        return getattr(self._producer, name)


class JSONSerializer(kafka.serializer.Serializer):  # type: ignore[misc]
    """Turns values into JSON, for all versions of kafka-python: since 3.0, they pass the headers as well."""

    def serialize(self, topic: str, *headers_and_value: Any) -> bytes:
        return json.dumps(headers_and_value[-1]).encode()


def _producer_defaults() -> dict[str, Any]:
    """Return settings with which events are not lost or reordered while a broker restarts."""
    if kafka_python_version() >= (3, 0):
        return {"acks": "all"}
    # Before 3.0, kafka-python drops a record at the first error unless it is told to retry, and
    # retries change the order unless only one request is in flight.
    return {"acks": "all", "retries": 2**31 - 1, "max_in_flight_requests_per_connection": 1}


def _client_settings(configs: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a Kafka client with the fabric's in place of those of the original's fabric."""
    mechanism = configs.get("sasl_mechanism", "OAUTHBEARER")
    if mechanism != "OAUTHBEARER":
        raise DiasporaError(f"sasl_mechanism {mechanism}: diaspora_logger signs in with a Globus login; for an access key, use the clients of kafka-python")
    provider = configs.get("sasl_oauth_token_provider")
    if not isinstance(provider, GlobusAuthTokenProvider):
        if provider is not None:
            _warn("sasl_oauth_token_provider is replaced by that of diaspora_logger; use GlobusAuthTokenProvider(refresh_token)")
        provider = GlobusAuthTokenProvider()
    fabric = provider.fabric
    versions: dict[str, Any] = {name: configs[name] for name in ("api_version", "api_version_auto_timeout_ms") if name in configs}
    settings = {**configs, **kafka_python_settings(fabric), **versions, "sasl_oauth_token_provider": provider}
    if configs.get("security_protocol", settings["security_protocol"]) != settings["security_protocol"]:
        _warn(f"security_protocol {configs['security_protocol']} is replaced by {settings['security_protocol']}, which the fabric {fabric.url} needs")
    named = configs.get("bootstrap_servers") or []
    named = named.split(",") if isinstance(named, str) else list(named)
    kept = [address for address in named if host_of(address.strip()) not in ORIGINAL_HOSTS]
    if len(kept) < len(named):
        _warn(f"the brokers of the original fabric are replaced by those of {fabric.url}; the script works as it is; to avoid this warning, leave bootstrap_servers out")
    for address in kept:
        fabric._check_host(address.strip(), fabric.source.token())
    if kept:
        settings["bootstrap_servers"] = kept
    return settings


def _warn(text: str) -> None:
    warnings.warn(f"diaspora_logger: {text}", stacklevel=4)  # the line of the program
