"""Check, with kafka-python, what an operator can do to topics, groups and ACLs.

BOOTSTRAP, a broker that takes anybody for an operator, and TOPIC, the name of a topic
to be made, are in the environment. Prints each check that passes, and fails at the
first that does not. What kafka-python logs as an error is on standard error.
"""

import logging
import os
import sys
import time

import kafka
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import (
    ACL, ACLFilter, ACLOperation, ACLPermissionType, ConfigResource, ConfigResourceType, NewPartitions, NewTopic, ResourcePattern, ResourcePatternFilter,
    ResourceType,
)
from kafka.errors import InvalidPartitionsError, NonEmptyGroupError, TopicAlreadyExistsError

VERSION = tuple(int(n) for n in kafka.__version__.split(".")[:2])
TOPIC = os.environ["TOPIC"]
COUNT = 100  # records, all in the first partition
PATIENCE = 60


def settings(**more):
    s = {"bootstrap_servers": os.environ["BOOTSTRAP"]}
    if VERSION < (2, 1):
        s["api_version"] = (2, 5, 0)
    elif VERSION < (3, 0):
        s["api_version_auto_timeout_ms"] = 30_000
    return dict(s, **more)


client = KafkaAdminClient(**settings())


def check(what, got, want):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, want {want!r}")


def refused(kind, run):
    try:
        run()
    except kind:
        return
    raise AssertionError("not refused")


def topics():
    client.create_topics([NewTopic(name=TOPIC, num_partitions=2, replication_factor=1, topic_configs={"retention.ms": "3600000"})])
    refused(TopicAlreadyExistsError, lambda: client.create_topics([NewTopic(name=TOPIC, num_partitions=2, replication_factor=1)]))
    client.create_partitions({TOPIC: NewPartitions(3)})
    refused(InvalidPartitionsError, lambda: client.create_partitions({TOPIC: NewPartitions(2)}))
    found = client.describe_topics([TOPIC])[0]
    check("partitions", len(found["partitions"]), 3)
    resource = ConfigResource(ConfigResourceType.TOPIC, TOPIC, configs={"retention.ms": "7200000"})
    client.alter_configs([resource])
    client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, TOPIC)])
    client.describe_cluster()


def records():
    producer = KafkaProducer(**settings())
    for sent in [producer.send(TOPIC, b"x", partition=0) for _ in range(COUNT)]:
        sent.get(PATIENCE)
    producer.close()
    start = 0
    if VERSION >= (2, 1):
        client.delete_records({TopicPartition(TOPIC, 0): 40})
        start = 40
    consumer = KafkaConsumer(**settings())
    check("start", consumer.beginning_offsets([TopicPartition(TOPIC, 0)]), {TopicPartition(TOPIC, 0): start})
    check("end", consumer.end_offsets([TopicPartition(TOPIC, 0)]), {TopicPartition(TOPIC, 0): COUNT})
    consumer.close()


def groups():
    member = KafkaConsumer(TOPIC, **settings(group_id=TOPIC, auto_offset_reset="earliest", enable_auto_commit=False))
    late = time.monotonic() + PATIENCE
    while not member.poll(timeout_ms=10_000) and time.monotonic() < late:
        pass
    member.commit()
    if VERSION >= (3, 0):
        check("state", client.describe_groups([TOPIC])[TOPIC]["group_state"], "Stable")
        check("not deleted", "NonEmpty" in str(client.delete_groups([TOPIC])), True)
        member.close()
        client.delete_group_offsets(TOPIC, [TopicPartition(TOPIC, 1)])
        check("deleted", "Error" in str(client.delete_groups([TOPIC])), False)
        check("listed", TOPIC in str(client.list_groups()), False)
        return
    check("state", client.describe_consumer_groups([TOPIC])[0].state, "Stable")
    check("not deleted", client.delete_consumer_groups([TOPIC]), [(TOPIC, NonEmptyGroupError)])
    member.close()
    check("deleted", client.delete_consumer_groups([TOPIC])[0][1].errno, 0)
    check("listed", TOPIC in [name for name, _ in client.list_consumer_groups()], False)


def acls():
    acl = ACL("User:ada", "*", ACLOperation.READ, ACLPermissionType.ALLOW, ResourcePattern(ResourceType.TOPIC, TOPIC))
    of = ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ANY, ResourcePatternFilter(ResourceType.TOPIC, TOPIC, acl.resource_pattern.pattern_type))
    check("created", len(client.create_acls([acl])["succeeded"]), 1)
    check("described", len(client.describe_acls(of)[0]), 1)
    check("deleted", len(client.delete_acls([of])[0][1]), 1)
    check("described", len(client.describe_acls(of)[0]), 0)


def end():
    client.delete_topics([TOPIC])
    check("listed", TOPIC in client.list_topics(), False)
    client.close()


def main():
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for run in (topics, records, groups, acls, end):
        run()
        print(run.__name__, flush=True)


if __name__ == "__main__":
    main()
