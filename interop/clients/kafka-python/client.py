"""Produce to and consume from a fabric with kafka-python, 2.0 to 3.0.

    client.py produce < lines    a record for each line; prints the lines that are acknowledged
    client.py consume            prints the value of each record, until it is ended

TOPIC and GROUP are in the environment, and with them what diaspora_streams reads
to sign in: DIASPORA_URL and DIASPORA_REFRESH.
"""

import logging
import os
import signal
import sys
import threading

import kafka
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError

import diaspora_streams

VERSION = tuple(int(n) for n in kafka.__version__.split(".")[:2])


def settings():
    s = diaspora_streams.from_env().kafka_python()
    if VERSION < (2, 1):
        # 2.0 asks what the broker can do by way of requests that are long gone.
        s["api_version"] = (2, 5, 0)
    elif VERSION < (3, 0):
        # 2.3 gives up if the first answer takes a second, as on a busy machine.
        s["api_version_auto_timeout_ms"] = 30_000
    return s


def producer():
    s = dict(settings(), acks="all", linger_ms=5)
    if VERSION < (3, 0):
        # Before 3.0 a connection is cut when its token expires, and the default of
        # 2.0 is to give a record up then.
        s.update(retries=2**31 - 1, max_in_flight_requests_per_connection=1, retry_backoff_ms=100)
    return KafkaProducer(**s)


def produce(topic):
    failed = threading.Event()
    client = producer()

    def refused(error):
        print(f"not acknowledged: {error!r}", file=sys.stderr, flush=True)
        failed.set()

    def acknowledged(line):
        return lambda _: print(line, flush=True)

    for line in sys.stdin:
        line = line.rstrip("\n")
        client.send(topic, line.encode()).add_callback(acknowledged(line)).add_errback(refused)
        if failed.is_set():
            break
    client.flush()
    client.close()
    return 1 if failed.is_set() else 0


def consumer(topic, group):
    s = dict(settings(), group_id=group, auto_offset_reset="earliest")
    if VERSION < (3, 0):
        # Before 3.0 two threads read one connection, and when one takes from the other
        # the answer to its login, both wait for request_timeout_ms: five minutes, unless
        # told otherwise. It has to be more than session_timeout_ms.
        s.update(session_timeout_ms=10_000, request_timeout_ms=15_000)
    return KafkaConsumer(topic, **s)


def consume(topic, group):
    client = consumer(topic, group)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        try:
            # 3.0 forgets the assignment if a poll ends just when it comes, and then waits for ever
            # without partitions. So there are not many polls.
            batches = client.poll(timeout_ms=10_000)
        except KafkaError as error:
            # 3.0 raises what it cannot do at the moment, such as to connect while the
            # broker restarts. Polling again tries again.
            if not error.retriable:
                raise
            print(f"again: {error!r}", file=sys.stderr, flush=True)
            continue
        for batch in batches.values():
            for record in batch:
                print(record.value.decode(), flush=True)


def main():
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    if sys.argv[1] == "produce":
        return produce(os.environ["TOPIC"])
    return consume(os.environ["TOPIC"], os.environ["GROUP"])


if __name__ == "__main__":
    sys.exit(main())
