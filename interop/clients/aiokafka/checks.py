"""Check, with aiokafka and an access key, what a client can ask of a broker.

TOPIC, a topic of one's own that is empty and has two partitions, BOOTSTRAP, KEY_ID
and KEY_SECRET are in the environment. Prints each check that passes, and fails at the
first that does not. What aiokafka logs as an error is on standard error.
"""

import asyncio
import logging
import os
import sys
import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

TOPIC = os.environ["TOPIC"]
VALUES = 100  # for each partition and codec
CODECS = [None, "gzip", "snappy", "lz4", "zstd"]
PARTITIONS = [TopicPartition(TOPIC, n) for n in range(2)]
EACH = VALUES * len(CODECS)  # records in each partition
PATIENCE = 60


def settings():
    return {
        "bootstrap_servers": os.environ["BOOTSTRAP"],
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": os.environ["KEY_ID"],
        "sasl_plain_password": os.environ["KEY_SECRET"],
    }


def group(name):
    return AIOKafkaConsumer(**settings(), group_id=f"{TOPIC}-{name}", auto_offset_reset="earliest", enable_auto_commit=False)


def check(what, got, want):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, want {want!r}")


async def read(client, count):
    records = []
    async with asyncio.timeout(PATIENCE):
        while len(records) < count:
            for batch in (await client.getmany(timeout_ms=500)).values():
                records.extend(batch)
    return records


async def produce():
    for codec in CODECS:
        async with AIOKafkaProducer(**settings(), enable_idempotence=True, compression_type=codec, linger_ms=5) as client:
            for p in PARTITIONS:
                sent = [await client.send(TOPIC, f"{codec} {n}".encode(), partition=p.partition, headers=[("codec", str(codec).encode())]) for n in range(VALUES)]
                check("offsets", [m.offset for m in await asyncio.gather(*sent)][-1] + 1, VALUES * (CODECS.index(codec) + 1))


async def new_group():
    """A group that has committed nothing can ask for its offsets, and read."""
    async with group("new") as client:
        check("committed", [await client.committed(p) for p in PARTITIONS], [None, None])
        client.assign(PARTITIONS)
        records = await read(client, EACH * len(PARTITIONS))
        for p in PARTITIONS:
            mine = [r for r in records if r.partition == p.partition]
            check("offsets", [r.offset for r in mine], list(range(EACH)))
            check("values", [r.value.decode() for r in mine], [f"{codec} {n}" for codec in CODECS for n in range(VALUES)])
            check("headers", mine[0].headers, (("codec", b"None"),))
        await client.commit()
        check("committed", [await client.committed(p) for p in PARTITIONS], [EACH, EACH])


async def offsets():
    async with group("offsets") as client:
        check("start", await client.beginning_offsets(PARTITIONS), dict.fromkeys(PARTITIONS, 0))
        check("end", await client.end_offsets(PARTITIONS), dict.fromkeys(PARTITIONS, EACH))
        found = await client.offsets_for_times(dict.fromkeys(PARTITIONS, 1))
        check("by time, of long ago", [found[p].offset for p in PARTITIONS], [0, 0])
        tomorrow = int(time.time() + 86_400) * 1000
        check("by time, of tomorrow", await client.offsets_for_times(dict.fromkeys(PARTITIONS, tomorrow)), dict.fromkeys(PARTITIONS, None))


async def groups():
    """Two members share the partitions; what they commit the next one goes on with."""
    async with group("shared") as first, group("shared") as second:
        first.subscribe([TOPIC])
        records = await read(first, EACH * len(PARTITIONS))
        check("records", len({(r.partition, r.offset) for r in records}), EACH * len(PARTITIONS))
        await first.commit()
        second.subscribe([TOPIC])
        async with asyncio.timeout(PATIENCE):
            while len(first.assignment()) != 1 or len(second.assignment()) != 1:
                check("consumed again", [await client.getmany(timeout_ms=100) for client in (first, second)], [{}, {}])
    async with group("shared") as client:
        check("committed", [await client.committed(p) for p in PARTITIONS], [EACH, EACH])


async def admin():
    client = AIOKafkaAdminClient(**settings())
    await client.start()
    shared = f"{TOPIC}-shared"
    check("listed", shared in [name for name, _ in await client.list_consumer_groups()], True)
    found = await client.list_consumer_group_offsets(shared)
    check("committed", {p: o.offset for p, o in found.items()}, dict.fromkeys(PARTITIONS, EACH))
    check("topics", TOPIC in await client.list_topics(), True)
    check("partitions", len((await client.describe_topics([TOPIC]))[0]["partitions"]), len(PARTITIONS))
    refused = await client.delete_topics([TOPIC])
    check("refusal", refused.topic_error_codes, [(TOPIC, 29)])  # TOPIC_AUTHORIZATION_FAILED
    await client.close()


async def main():
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for run in (produce, new_group, offsets, groups, admin):
        await run()
        print(run.__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
