"""Check, with confluent-kafka and an access key, what a client can ask of a broker.

TOPIC, a topic of one's own that is empty and has two partitions, BOOTSTRAP, KEY_ID
and KEY_SECRET are in the environment. Prints each check that passes, and fails at the
first that does not. What librdkafka logs and reports is on standard error.
"""

import os
import sys
import time

from confluent_kafka import (
    OFFSET_BEGINNING, OFFSET_END, OFFSET_INVALID, Consumer, ConsumerGroupState, ConsumerGroupTopicPartitions, ConsumerGroupType,
    IsolationLevel, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition,
)
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic, OffsetSpec, ResourceType

TOPIC = os.environ["TOPIC"]
VALUES = 100  # for each partition and codec
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
PARTITIONS = 2
PATIENCE = 60


def settings(**more):
    s = {
        "bootstrap.servers": os.environ["BOOTSTRAP"],
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": os.environ["KEY_ID"],
        "sasl.password": os.environ["KEY_SECRET"],
        "log_level": 7,
        "error_cb": lambda error: print(error, file=sys.stderr),
    }
    s.update({name.replace("_", "."): value for name, value in more.items()})
    return s


def group(name, protocol="classic", **more):
    return Consumer(settings(group_id=f"{TOPIC}-{name}", group_protocol=protocol, auto_offset_reset="earliest", enable_auto_commit=False, **more))


def partitions(offset=OFFSET_INVALID):
    return [TopicPartition(TOPIC, n, offset) for n in range(PARTITIONS)]


def offsets(found):
    for p in found:
        if p.error is not None:
            raise KafkaException(p.error)
    return [p.offset for p in sorted(found, key=lambda p: p.partition)]


def check(what, got, want):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, want {want!r}")


def read(client, count):
    records, late = [], time.monotonic() + PATIENCE
    while len(records) < count:
        if time.monotonic() > late:
            raise AssertionError(f"{len(records)} records of {count} have come")
        message = client.poll(0.5)
        if message is None:
            continue
        if message.error() is not None:
            raise KafkaException(message.error())
        records.append(message)
    return records


def refused(code, future, words=""):
    try:
        future.result(PATIENCE)
    except KafkaException as error:
        check("refusal", error.args[0].code(), code)
        check("the message", words in error.args[0].str(), True)
    else:
        raise AssertionError("not refused")


EACH = VALUES * len(CODECS)  # records in each partition


def produce():
    for codec in CODECS:
        client = Producer(settings(enable_idempotence=True, compression_type=codec, linger_ms=5))
        failed = []

        def delivered(error, _):
            if error is not None:
                failed.append(error)

        for n in range(VALUES):
            for p in range(PARTITIONS):
                client.produce(TOPIC, f"{codec} {n}", key=str(n), partition=p, headers={"codec": codec}, on_delivery=delivered)
        check("left behind", client.flush(PATIENCE), 0)
        check("not acknowledged", failed, [])


def metadata():
    found = Producer(settings()).list_topics(TOPIC, timeout=PATIENCE)
    check("brokers", len(found.brokers), 1)
    check("partitions", sorted(found.topics[TOPIC].partitions), list(range(PARTITIONS)))
    check("listed", TOPIC in Producer(settings()).list_topics(timeout=PATIENCE).topics, True)


def new_group():
    """A group that has committed nothing can ask for its offsets, and read."""
    client = group("new")
    check("committed", offsets(client.committed(partitions(), timeout=PATIENCE)), [OFFSET_INVALID] * PARTITIONS)
    client.assign(partitions())
    records = read(client, EACH * PARTITIONS)
    for p in range(PARTITIONS):
        mine = [m for m in records if m.partition() == p]
        check("offsets", [m.offset() for m in mine], list(range(EACH)))
        check("values", [m.value().decode() for m in mine], [f"{codec} {n}" for codec in CODECS for n in range(VALUES)])
        check("headers", mine[0].headers(), [("codec", b"none")])
    check("position", offsets(client.position(partitions())), [EACH] * PARTITIONS)
    client.commit(asynchronous=False)
    check("committed", offsets(client.committed(partitions(), timeout=PATIENCE)), [EACH] * PARTITIONS)
    client.close()


def watermarks():
    client = group("watermarks")
    for p in partitions():
        check("watermarks", client.get_watermark_offsets(p, timeout=PATIENCE), (0, EACH))
    check("by time, of long ago", offsets(client.offsets_for_times(partitions(1), timeout=PATIENCE)), [0] * PARTITIONS)
    tomorrow = int(time.time() + 86_400) * 1000
    check("by time, of tomorrow", offsets(client.offsets_for_times(partitions(tomorrow), timeout=PATIENCE)), [OFFSET_END] * PARTITIONS)
    client.assign([TopicPartition(TOPIC, 0, EACH - 2)])
    timestamp = read(client, 1)[0].timestamp()[1]
    found = offsets(client.offsets_for_times([TopicPartition(TOPIC, 0, timestamp)], timeout=PATIENCE))[0]
    client.seek(TopicPartition(TOPIC, 0, found))
    check("record by time", read(client, 1)[0].timestamp()[1], timestamp)
    client.seek(TopicPartition(TOPIC, 0, OFFSET_BEGINNING))
    check("first record", read(client, 1)[0].offset(), 0)
    client.close()


def groups(name, protocol, **more):
    """Two members share the partitions; what they commit the next one goes on with."""
    if protocol == "classic":
        more["session_timeout_ms"] = 10_000
    first, second = group(name, protocol, **more), group(name, protocol, **more)
    first.subscribe([TOPIC])
    records = read(first, EACH * PARTITIONS)
    first.commit(asynchronous=False)
    second.subscribe([TOPIC])
    late = time.monotonic() + PATIENCE
    while len(first.assignment()) != 1 or len(second.assignment()) != 1:
        if time.monotonic() > late:
            raise AssertionError(f"assigned: {first.assignment()}, {second.assignment()}")
        for client in (first, second):
            if (message := client.poll(0.1)) is not None:
                raise AssertionError(f"consumed again: {message.partition()} {message.offset()} {message.error()}")
    check("records", len({(m.partition(), m.offset()) for m in records}), EACH * PARTITIONS)
    second.close()
    first.close()
    check("committed", offsets(group(name).committed(partitions(), timeout=PATIENCE)), [EACH] * PARTITIONS)


def pattern(protocol):
    """Topics are subscribed to by a regular expression: the client matches it, or with KIP-848 the broker."""
    client = group(f"pattern-{protocol}", protocol)
    client.subscribe([f"^{TOPIC[:-1]}.$"])
    check("topics", {m.topic() for m in read(client, EACH * PARTITIONS)}, {TOPIC})
    client.close()


def admin():
    client = AdminClient(settings())
    classic, modern = f"{TOPIC}-classic", f"{TOPIC}-consumer"
    listed = {g.group_id: g for g in client.list_consumer_groups().result(PATIENCE).valid}
    check("types", [listed[g].type for g in (classic, modern)], [ConsumerGroupType.CLASSIC, ConsumerGroupType.CONSUMER])
    for g, described in client.describe_consumer_groups([classic, modern]).items():
        check(f"state of {g}", described.result(PATIENCE).state, ConsumerGroupState.EMPTY)
    for g in (classic, modern):
        asked = ConsumerGroupTopicPartitions(g)
        check("committed", offsets(client.list_consumer_group_offsets([asked])[g].result(PATIENCE).topic_partitions), [EACH] * PARTITIONS)
        asked = ConsumerGroupTopicPartitions(g, partitions(7))
        check("altered", offsets(client.alter_consumer_group_offsets([asked])[g].result(PATIENCE).topic_partitions), [7] * PARTITIONS)
        check("committed", offsets(group(g.removeprefix(f"{TOPIC}-")).committed(partitions(), timeout=PATIENCE)), [7] * PARTITIONS)
    for spec, want in ((OffsetSpec.latest(), EACH), (OffsetSpec.earliest(), 0), (OffsetSpec.for_timestamp(1), 0)):
        found = client.list_offsets({TopicPartition(TOPIC, 0): spec}, isolation_level=IsolationLevel.READ_COMMITTED)
        check("offset", [f.result(PATIENCE).offset for f in found.values()], [want])
    topic = client.describe_topics(TopicCollection([TOPIC]))[TOPIC].result(PATIENCE)
    check("partitions", [p.id for p in topic.partitions], list(range(PARTITIONS)))
    check("nodes", [n.id for n in client.describe_cluster().result(PATIENCE).nodes], [topic.partitions[0].leader.id])
    resource = ConfigResource(ResourceType.TOPIC, TOPIC)
    config = client.describe_configs([resource])[resource].result(PATIENCE)
    check("timestamps", config["message.timestamp.type"].value, "LogAppendTime")
    # What takes an operator, or the ACL endpoint.
    denied, command = KafkaError.TOPIC_AUTHORIZATION_FAILED, 'run "diaspora topic '
    refused(denied, client.create_topics([NewTopic("mine", 1, 1)])["mine"], command + 'claim mine"')
    refused(denied, client.delete_topics([TOPIC])[TOPIC])  # the client asks in a version that has no message
    refused(denied, client.create_partitions([NewPartitions(TOPIC, 3)])[TOPIC], command + f'set {TOPIC} --partitions 3"')
    entry = ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)
    changed = ConfigResource(ResourceType.TOPIC, TOPIC, incremental_configs=[entry])
    refused(denied, client.incremental_alter_configs([changed])[changed], command + f'set {TOPIC} --retention TIME"')
    # What owners can do.
    first = TopicPartition(TOPIC, 0, 1)
    check("low watermark", client.delete_records([first])[first].result(PATIENCE).low_watermark, 1)
    client.delete_consumer_groups([classic])[classic].result(PATIENCE)


def main():
    for name, run in {
        "produce": produce,
        "metadata": metadata,
        "a new group": new_group,
        "watermarks": watermarks,
        "classic group": lambda: groups("classic", "classic"),
        "cooperative group": lambda: groups("cooperative", "classic", partition_assignment_strategy="cooperative-sticky"),
        "KIP-848 group": lambda: groups("consumer", "consumer"),
        "classic pattern": lambda: pattern("classic"),
        "KIP-848 pattern": lambda: pattern("consumer"),
        "admin": admin,
    }.items():
        run()
        print(name, flush=True)


if __name__ == "__main__":
    main()
