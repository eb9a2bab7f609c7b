"""Sign in to Diaspora Streams with a Globus login, from any Kafka client in Python.

    import diaspora_streams
    from kafka import KafkaProducer

    fabric = diaspora_streams.from_env()
    producer = KafkaProducer(**fabric.kafka_python(), acks="all")

It needs nothing but Python, and reads what ``diaspora login`` has stored, or the
environment, by the rules of the Go library. Tokens are renewed ahead of time, in
turn with every other process, in Go or Python, that uses the same login.
"""

from ._errors import DiasporaError, InsecureFile, LoginRequired, Unavailable, Untrusted
from ._fabric import Fabric, from_env
from ._source import TokenSource
from ._store import Token

__all__ = [
    "DiasporaError",
    "Fabric",
    "InsecureFile",
    "LoginRequired",
    "Token",
    "TokenSource",
    "Unavailable",
    "Untrusted",
    "from_env",
]
