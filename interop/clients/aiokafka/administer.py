"""Check, with aiokafka, what an operator can do to topics and groups.

BOOTSTRAP, a broker that takes anybody for an operator, and TOPIC, the name of a topic
to be made, are in the environment. Prints each check that passes, and fails at the
first that does not. What aiokafka logs as a warning or an error is on standard error.
"""

import asyncio
import logging
import os
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

TOPIC = os.environ["TOPIC"]
FIRST = TopicPartition(TOPIC, 0)
COUNT = 100  # records, all in the first partition


def settings():
    return {"bootstrap_servers": os.environ["BOOTSTRAP"]}


def check(what, got, want):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, want {want!r}")


async def topics(client):
    made = await client.create_topics([NewTopic(name=TOPIC, num_partitions=2, replication_factor=1, topic_configs={"retention.ms": "3600000"})])
    check("made", made.topic_errors[0][1], 0)
    again = await client.create_topics([NewTopic(name=TOPIC, num_partitions=2, replication_factor=1)])
    check("made again", again.topic_errors[0][1], 36)  # TOPIC_ALREADY_EXISTS
    await client.create_partitions({TOPIC: NewPartitions(3)})
    check("partitions", len((await client.describe_topics([TOPIC]))[0]["partitions"]), 3)
    resource = ConfigResource(ConfigResourceType.TOPIC, TOPIC, configs={"retention.ms": "7200000"})
    await client.alter_configs([resource])
    described = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, TOPIC)])
    check("changed", "7200000" in str(described), True)


async def records(client):
    async with AIOKafkaProducer(**settings()) as producer:
        for _ in range(COUNT):
            await producer.send_and_wait(TOPIC, b"x", partition=0)
    check("low watermark", await client.delete_records({FIRST: RecordsToDelete(before_offset=40)}), {FIRST: 40})


async def groups(client):
    async with AIOKafkaConsumer(TOPIC, **settings(), group_id=TOPIC, auto_offset_reset="earliest", enable_auto_commit=False) as member:
        check("first record", (await member.getone()).offset, 40)
        await member.commit()
        described = (await client.describe_consumer_groups([TOPIC]))[0]
        check("state", described.groups[0][2], "Stable")
    found = await client.list_consumer_group_offsets(TOPIC)
    check("committed", found[FIRST].offset, 41)


async def end(client):
    await client.delete_topics([TOPIC])
    check("listed", TOPIC in await client.list_topics(), False)


async def main():
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    client = AIOKafkaAdminClient(**settings())
    await client.start()
    for run in (topics, records, groups, end):
        await run(client)
        print(run.__name__, flush=True)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
