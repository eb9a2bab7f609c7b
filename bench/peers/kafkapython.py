"""kafka-python as a contender: does what each line of standard input says, a number of
events to produce or consume, and prints how many seconds that took."""

import os
import sys
import time

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

TOPIC = os.environ["TOPIC"]
SIGN_IN = {
    "bootstrap_servers": os.environ["BOOTSTRAP"],
    "security_protocol": "SASL_PLAINTEXT",
    "sasl_mechanism": "PLAIN",
    "sasl_plain_username": os.environ["KEY_ID"],
    "sasl_plain_password": os.environ["KEY_SECRET"],
}


def producing():
    with open(os.environ["VALUES"], "rb") as file:
        values = file.read().split(b"\n")
    # It has no compression by itself.
    client = KafkaProducer(**SIGN_IN, acks="all", enable_idempotence=True, linger_ms=10, batch_size=1_000_000)
    failed = []

    def turn(n):
        began = time.perf_counter()
        for i in range(n):
            client.send(TOPIC, values[i % len(values)]).add_errback(failed.append)
        client.flush()
        took = time.perf_counter() - began
        if failed:
            sys.exit(repr(failed[0]))
        return took

    return turn


def consuming():
    def turn(n):
        began = time.perf_counter()
        client = KafkaConsumer(**SIGN_IN, enable_auto_commit=False)
        partitions = [TopicPartition(TOPIC, p) for p in client.partitions_for_topic(TOPIC)]
        client.assign(partitions)
        client.seek_to_beginning(*partitions)
        got = 0
        while got < n:
            for records in client.poll(timeout_ms=1000, max_records=10_000).values():
                got += len(records)
        took = time.perf_counter() - began
        client.close()
        return took

    return turn


turn = producing() if sys.argv[1] == "produce" else consuming()
for line in sys.stdin:
    print(turn(int(line)), flush=True)
