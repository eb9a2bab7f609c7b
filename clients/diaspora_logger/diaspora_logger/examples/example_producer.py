"""Sends two events: one whose result it waits for, and one with a callback."""

from __future__ import annotations

from typing import Any

from diaspora_logger import DiasporaLogger


def on_send_success(metadata: Any) -> None:
    print(f"acknowledged: topic {metadata.topic}, partition {metadata.partition}, offset {metadata.offset}", flush=True)


def run_producer_example(topic: str) -> None:
    logger = DiasporaLogger()  # signs in with DIASPORA_REFRESH, or else with the stored login
    print(logger.send(topic, {"message": "Synchronous message"}).get(timeout=60), flush=True)
    logger.send(topic, {"message": "Asynchronous message"}).add_callback(on_send_success)
    logger.close()  # sends the second event, which may still be in memory
