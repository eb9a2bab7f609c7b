"""confluent-kafka as a contender: does what each line of standard input says, a number
of events to produce or consume, and prints how many seconds that took."""

import os
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

TOPIC = os.environ["TOPIC"]
SIGN_IN = {
    "bootstrap.servers": os.environ["BOOTSTRAP"],
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": os.environ["KEY_ID"],
    "sasl.password": os.environ["KEY_SECRET"],
}


def producing():
    with open(os.environ["VALUES"], "rb") as file:
        values = file.read().split(b"\n")
    client = Producer(SIGN_IN | {
        "acks": "all", "enable.idempotence": True, "compression.type": "snappy",
        "linger.ms": 10, "batch.size": 1_000_000, "batch.num.messages": 100_000, "queue.buffering.max.messages": 1_000_000,
    })

    def delivered(error, _):
        if error is not None:
            sys.exit(str(error))

    def turn(n):
        began = time.perf_counter()
        for i in range(n):
            while True:
                try:
                    client.produce(TOPIC, values[i % len(values)], on_delivery=delivered)
                    break
                except BufferError:
                    client.poll(0.01)
            if i % 1000 == 0:
                client.poll(0)
        client.flush()
        return time.perf_counter() - began

    return turn


def consuming():
    def turn(n):
        began = time.perf_counter()
        client = Consumer(SIGN_IN | {"group.id": "bench", "enable.auto.commit": False})
        partitions = client.list_topics(TOPIC, timeout=30).topics[TOPIC].partitions
        client.assign([TopicPartition(TOPIC, p, OFFSET_BEGINNING) for p in partitions])
        got = 0
        while got < n:
            for message in client.consume(10_000, timeout=1):
                if message.error():
                    sys.exit(str(message.error()))
                got += len(message.value()) > 0
        took = time.perf_counter() - began
        client.close()
        return took

    return turn


turn = producing() if sys.argv[1] == "produce" else consuming()
for line in sys.stdin:
    print(turn(int(line)), flush=True)
