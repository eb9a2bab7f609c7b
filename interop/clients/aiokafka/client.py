"""Produce to and consume from a fabric with aiokafka.

    client.py produce < lines    a record for each line; prints the lines that are acknowledged
    client.py consume            prints the value of each record, until it is ended

TOPIC, GROUP, BOOTSTRAP, KEY_ID and KEY_SECRET are in the environment.
"""

import asyncio
import logging
import os
import signal
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError


def settings():
    return {
        "bootstrap_servers": os.environ["BOOTSTRAP"],
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": os.environ["KEY_ID"],
        "sasl_plain_password": os.environ["KEY_SECRET"],
    }


async def lines():
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.rstrip(b"\n")


async def produce(topic):
    sent = []
    # A record is given up after request_timeout_ms, and an outage may take longer.
    async with AIOKafkaProducer(**settings(), enable_idempotence=True, linger_ms=5, request_timeout_ms=120_000) as client:
        async for line in lines():
            future = await client.send(topic, line)
            future.add_done_callback(lambda done, line=line: done.exception() or print(line.decode(), flush=True))
            sent.append(future)
        await asyncio.gather(*sent)


async def consume(topic, group):
    client = AIOKafkaConsumer(topic, **settings(), group_id=group, auto_offset_reset="earliest")
    await client.start()
    while True:
        try:
            message = await client.getone()
        except KafkaError as error:
            if not error.retriable:
                raise
            print(f"again: {error!r}", file=sys.stderr, flush=True)
            continue
        print(message.value.decode(), flush=True)


def main():
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if sys.argv[1] == "produce":
        asyncio.run(produce(os.environ["TOPIC"]))
    else:
        asyncio.run(consume(os.environ["TOPIC"], os.environ["GROUP"]))


if __name__ == "__main__":
    main()
