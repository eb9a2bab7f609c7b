"""Check, with kafka-python and an access key, what a client can ask of a broker.

TOPIC, a topic of one's own that is empty and has two partitions, BOOTSTRAP, KEY_ID
and KEY_SECRET are in the environment. Prints each check that passes, and fails at the
first that does not. What kafka-python logs as an error is on standard error.
"""

import logging
import os
import sys
import threading
import time

import kafka
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import TopicAuthorizationFailedError

VERSION = tuple(int(n) for n in kafka.__version__.split(".")[:2])
TOPIC = os.environ["TOPIC"]
VALUES = 100  # for each partition and codec
CODECS = [None, "gzip"]  # the others need packages of their own
PARTITIONS = 2
PATIENCE = 60
EACH = VALUES * len(CODECS)  # records in each partition


def settings(**more):
    s = {
        "bootstrap_servers": os.environ["BOOTSTRAP"],
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": os.environ["KEY_ID"],
        "sasl_plain_password": os.environ["KEY_SECRET"],
    }
    if VERSION < (2, 1):
        s["api_version"] = (2, 5, 0)
    elif VERSION < (3, 0):
        s["api_version_auto_timeout_ms"] = 30_000
    return dict(s, **more)


def group(name, **more):
    return KafkaConsumer(**settings(group_id=f"{TOPIC}-{name}", auto_offset_reset="earliest", enable_auto_commit=False, **more))


def partitions():
    return [TopicPartition(TOPIC, n) for n in range(PARTITIONS)]


def check(what, got, want):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, want {want!r}")


def read(client, count):
    records, late = [], time.monotonic() + PATIENCE
    while len(records) < count:
        if time.monotonic() > late:
            raise AssertionError(f"{len(records)} records of {count} have come")
        for batch in client.poll(timeout_ms=10_000).values():  # not for less, see client.py
            records.extend(batch)
    return records


def produce():
    for codec in CODECS:
        client = KafkaProducer(**settings(acks="all", compression_type=codec, linger_ms=5))
        sent = [
            client.send(TOPIC, f"{codec} {n}".encode(), key=str(n).encode(), partition=p, headers=[("codec", str(codec).encode())])
            for n in range(VALUES)
            for p in range(PARTITIONS)
        ]
        for future in sent:
            future.get(PATIENCE)
        client.close()


def new_group():
    """A group that has committed nothing can ask for its offsets, and read."""
    client = group("new")
    check("committed", [client.committed(p) for p in partitions()], [None] * PARTITIONS)
    client.assign(partitions())
    records = read(client, EACH * PARTITIONS)
    for p in range(PARTITIONS):
        mine = [r for r in records if r.partition == p]
        check("offsets", [r.offset for r in mine], list(range(EACH)))
        check("values", [r.value.decode() for r in mine], [f"{codec} {n}" for codec in CODECS for n in range(VALUES)])
        check("headers", list(mine[0].headers), [("codec", b"None")])
    check("position", [client.position(p) for p in partitions()], [EACH] * PARTITIONS)
    client.commit()
    check("committed", [client.committed(p) for p in partitions()], [EACH] * PARTITIONS)
    client.close()


def offsets():
    client = group("offsets")
    check("start", client.beginning_offsets(partitions()), dict.fromkeys(partitions(), 0))
    check("end", client.end_offsets(partitions()), dict.fromkeys(partitions(), EACH))
    check("by time, of long ago", {p: found.offset for p, found in client.offsets_for_times(dict.fromkeys(partitions(), 1)).items()},
          dict.fromkeys(partitions(), 0))
    tomorrow = int(time.time() + 86_400) * 1000
    check("by time, of tomorrow", client.offsets_for_times(dict.fromkeys(partitions(), tomorrow)), dict.fromkeys(partitions(), None))
    check("partitions", client.partitions_for_topic(TOPIC), set(range(PARTITIONS)))
    client.close()


def groups():
    """Two members share the partitions; what they commit the next one goes on with."""
    first, second = group("shared", session_timeout_ms=10_000), group("shared", session_timeout_ms=10_000)
    first.subscribe([TOPIC])
    records = read(first, EACH * PARTITIONS)
    check("records", len({(r.partition, r.offset) for r in records}), EACH * PARTITIONS)
    first.commit()
    second.subscribe([TOPIC])
    again, shared = [], threading.Event()

    def member(client):  # a thread for each: 2.0 does not return from poll while the group rebalances
        while not shared.is_set():
            again.extend(client.poll(timeout_ms=2000))

    members = [threading.Thread(target=member, args=(client,), daemon=True) for client in (first, second)]
    for thread in members:
        thread.start()
    late = time.monotonic() + PATIENCE
    while len(first.assignment()) != 1 or len(second.assignment()) != 1:
        if time.monotonic() > late:
            raise AssertionError(f"assigned: {first.assignment()}, {second.assignment()}")
        time.sleep(0.05)
    shared.set()
    for thread in members:
        thread.join()
    check("consumed again", again, [])
    second.close()
    first.close()
    client = group("shared")
    check("committed", [client.committed(p) for p in partitions()], [EACH] * PARTITIONS)
    client.close()


def refused(kind, run):
    try:
        run()
    except kind:
        return
    raise AssertionError("not refused")


def admin():
    client = KafkaAdminClient(**settings())
    shared = f"{TOPIC}-shared"
    listed = client.list_groups if VERSION >= (3, 0) else client.list_consumer_groups
    check("group listed", shared in str(listed()), True)
    found = client.list_group_offsets(shared)[shared] if VERSION >= (3, 0) else client.list_consumer_group_offsets(shared)
    check("committed", {p: o.offset for p, o in found.items()}, dict.fromkeys(partitions(), EACH))
    check("topic listed", TOPIC in client.list_topics(), True)
    refused(TopicAuthorizationFailedError, lambda: client.delete_topics([TOPIC]))
    client.close()


def main():
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for name, run in {"produce": produce, "a new group": new_group, "offsets": offsets, "classic group": groups, "admin": admin}.items():
        run()
        print(name, flush=True)


if __name__ == "__main__":
    main()
