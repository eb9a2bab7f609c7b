"""Prints the records of a topic."""

from __future__ import annotations

from diaspora_logger import KafkaConsumer


def run_consumer_example(topic: str, group_id: str) -> None:
    consumer = KafkaConsumer(topic, group_id=group_id)  # signs in with DIASPORA_REFRESH, or else with the stored login
    for record in consumer:
        print(record, flush=True)
