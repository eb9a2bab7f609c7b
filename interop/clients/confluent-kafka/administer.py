"""Check, with confluent-kafka, what an operator can do to topics, groups and ACLs.

BOOTSTRAP, a broker that takes anybody for an operator, and TOPIC, the name of a topic
to be made, are in the environment. Prints each check that passes, and fails at the
first that does not. What librdkafka logs and reports is on standard error.
"""

import os
import sys
import time

from confluent_kafka import Consumer, ConsumerGroupState, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AclBinding, AclBindingFilter, AclOperation, AclPermissionType, AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource,
    NewPartitions, NewTopic, OffsetSpec, ResourcePatternType, ResourceType,
)

TOPIC = os.environ["TOPIC"]
COUNT = 100  # records, all in the first partition
PATIENCE = 60


def settings(**more):
    s = {"bootstrap.servers": os.environ["BOOTSTRAP"], "log_level": 7, "error_cb": lambda error: print(error, file=sys.stderr)}
    s.update({name.replace("_", "."): value for name, value in more.items()})
    return s


client = AdminClient(settings())


def check(what, got, want):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, want {want!r}")


def refused(code, future):
    try:
        future.result(PATIENCE)
    except KafkaException as error:
        check("refusal", error.args[0].code(), code)
    else:
        raise AssertionError("not refused")


def topics():
    client.create_topics([NewTopic(TOPIC + "-no", 1, 1)], validate_only=True)[TOPIC + "-no"].result(PATIENCE)
    client.create_topics([NewTopic(TOPIC, 2, 1, config={"retention.ms": "3600000"})])[TOPIC].result(PATIENCE)
    refused(KafkaError.TOPIC_ALREADY_EXISTS, client.create_topics([NewTopic(TOPIC, 2, 1)])[TOPIC])
    refused(KafkaError.INVALID_REPLICATION_FACTOR, client.create_topics([NewTopic(TOPIC + "-no", 1, 3)])[TOPIC + "-no"])
    client.create_partitions([NewPartitions(TOPIC, 3)])[TOPIC].result(PATIENCE)
    refused(KafkaError.INVALID_PARTITIONS, client.create_partitions([NewPartitions(TOPIC, 2)])[TOPIC])
    listed = client.list_topics(timeout=PATIENCE).topics
    check("partitions", (sorted(listed[TOPIC].partitions), TOPIC + "-no" in listed), ([0, 1, 2], False))


def configs():
    def alter(entry):
        changed = ConfigResource(ResourceType.TOPIC, TOPIC, incremental_configs=[entry])
        return client.incremental_alter_configs([changed])[changed]

    def now(name):
        resource = ConfigResource(ResourceType.TOPIC, TOPIC)
        return client.describe_configs([resource])[resource].result(PATIENCE)[name].value

    check("as made", now("retention.ms"), "3600000")
    alter(ConfigEntry("retention.ms", "7200000", incremental_operation=AlterConfigOpType.SET)).result(PATIENCE)
    check("changed", now("retention.ms"), "7200000")
    alter(ConfigEntry("retention.ms", None, incremental_operation=AlterConfigOpType.DELETE)).result(PATIENCE)
    check("reset", now("retention.ms"), "604800000")
    refused(KafkaError.INVALID_CONFIG, alter(ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)))
    broker = ConfigResource(ResourceType.BROKER, "0")
    check("broker", client.describe_configs([broker])[broker].result(PATIENCE)["log.retention.hours"].value, "168")


def records():
    producer = Producer(settings())
    for n in range(COUNT):
        producer.produce(TOPIC, str(n), partition=0)
    check("left behind", producer.flush(PATIENCE), 0)
    first = TopicPartition(TOPIC, 0, 40)
    check("low watermark", client.delete_records([first])[first].result(PATIENCE).low_watermark, 40)
    beyond = TopicPartition(TOPIC, 0, COUNT + 1)
    refused(KafkaError.OFFSET_OUT_OF_RANGE, client.delete_records([beyond])[beyond])
    for spec, want in ((OffsetSpec.earliest(), 40), (OffsetSpec.latest(), COUNT), (OffsetSpec.for_timestamp(1), 40)):
        found = client.list_offsets({TopicPartition(TOPIC, 0): spec})
        check("offset", [f.result(PATIENCE).offset for f in found.values()], [want])
    found = client.list_offsets({TopicPartition(TOPIC, 0): OffsetSpec.max_timestamp()})
    check("latest timestamp", [f.result(PATIENCE).offset >= 40 for f in found.values()], [True])


def groups():
    for protocol in ("classic", "consumer"):
        group = f"{TOPIC}-{protocol}"
        member = Consumer(settings(group_id=group, group_protocol=protocol, auto_offset_reset="earliest", enable_auto_commit=False))
        member.subscribe([TOPIC])
        late = time.monotonic() + PATIENCE
        while (message := member.poll(0.5)) is None and time.monotonic() < late:
            pass
        check("first record", message.offset(), 40)
        member.commit(asynchronous=False)
        described = client.describe_consumer_groups([group], include_authorized_operations=True)[group].result(PATIENCE)
        check("state", described.state, ConsumerGroupState.STABLE)
        check("members", [len(m.assignment.topic_partitions) for m in described.members], [3])
        refused(KafkaError.NON_EMPTY_GROUP, client.delete_consumer_groups([group])[group])
        member.close()
        client.delete_consumer_groups([group])[group].result(PATIENCE)
        refused(KafkaError.GROUP_ID_NOT_FOUND, client.delete_consumer_groups([group])[group])
        check("listed", group in [g.group_id for g in client.list_consumer_groups().result(PATIENCE).valid], False)


def acls():
    acl = AclBinding(ResourceType.TOPIC, TOPIC, ResourcePatternType.LITERAL, "User:ada", "*", AclOperation.READ, AclPermissionType.ALLOW)
    client.create_acls([acl])[acl].result(PATIENCE)
    of = AclBindingFilter(ResourceType.TOPIC, TOPIC, ResourcePatternType.LITERAL, None, None, AclOperation.ANY, AclPermissionType.ANY)
    check("described", client.describe_acls(of).result(PATIENCE), [acl])
    check("deleted", client.delete_acls([of])[of].result(PATIENCE), [acl])
    check("described", client.describe_acls(of).result(PATIENCE), [])


def end():
    described = client.describe_cluster(include_authorized_operations=True).result(PATIENCE)
    check("cluster", (described.cluster_id, described.controller.id), ("diaspora", 0))
    refused(KafkaError._UNSUPPORTED_FEATURE, client.describe_user_scram_credentials())
    client.delete_topics([TOPIC])[TOPIC].result(PATIENCE)
    refused(KafkaError.UNKNOWN_TOPIC_OR_PART, client.describe_topics(TopicCollection([TOPIC]))[TOPIC])


def main():
    for run in (topics, configs, records, groups, acls, end):
        run()
        print(run.__name__, flush=True)


if __name__ == "__main__":
    main()
