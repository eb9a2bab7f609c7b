"""Try Logger, consume, to_dataframe, Handler and the settings for aiokafka against a fabric.

    checks.py TRANSPORT...    of which each is spool, kafka-python or confluent-kafka

TOPIC, with two partitions, is in the environment, and with it what signs in.
"""

import asyncio
import importlib.util
import itertools
import logging
import os
import subprocess
import sys
import time

import diaspora_streams as ds
from diaspora_streams._kafka import kafka_python_version

TOPIC = os.environ["TOPIC"]


def check(name, got, want):
    if got != want:
        sys.exit(f"{name}: got {got!r}, want {want!r}")


def refused(name, kinds, call, *args, **options):
    try:
        call(*args, **options)
    except kinds as e:
        return e
    except ds.DiasporaError as e:
        sys.exit(f"{name}: {e!r}, want {kinds}")
    sys.exit(f"{name}: no error, want {kinds}")


def check_logger(transport):
    with ds.Logger(TOPIC, transport=transport) as log:
        check("transport", log.transport, transport)
        first = log.log({"by": transport, "n": 0}, key=b"\xff", headers={"unit": "C"})
        check("log_many", log.log_many(ds.Event({"by": transport, "n": n}, key=f"k{n % 5}") for n in range(1, 500)), 499)
        refused("too large", ds.Invalid, log.log, "x" * 2_000_000)
        error = refused("one too large", ds.EventError, log.log_many, [b"\xff", "x" * 2_000_000, ds.Event(None, key="gone")])
        check("failed", list(error.failed), [1])

    def forbidden():
        with ds.Logger("nobody_has_claimed_this", transport=transport, timeout=5) as other:
            other.log("x")  # with a spool, it is close that tells

    # kafka-python 2.0 does not say why it has no metadata of a topic.
    kinds = (ds.Unavailable,) if transport == "kafka-python" and kafka_python_version() < (2, 1) else (ds.PermissionDenied, ds.NotFound)
    refused("no such topic", kinds, forbidden)
    return first


def check_consume(transport, first):
    started = time.monotonic()
    records = list(ds.consume(TOPIC, follow=False, transport=transport))
    mine = [r for r in records if r.id[:16] == first[:16]]
    check("records of " + first, len(mine), 502)
    (record,) = [r for r in mine if r.id == first]
    check("record", (record.topic, record.key, record.headers, record.json()["n"]), (TOPIC, b"\xff", (("unit", b"C"),), 0))
    check("the event is older than its record", record.time <= record.stored, True)
    check("partitions", len({r.partition for r in records}), 2)
    check("values", {r.key: r.value for r in mine if r.key in (None, b"gone")}, {None: b"\xff", b"gone": None})
    check("from end", list(ds.consume(TOPIC, from_="end", follow=False, transport=transport)), [])
    later = max(r.stored for r in records)
    check("from a time", len(list(ds.consume(TOPIC, from_=later, follow=False, transport=transport))), sum(r.stored >= later for r in records))
    with ds.consume(TOPIC, transport=transport) as live:  # from the end on
        if transport == "diaspora":
            wait_for_command(live)
        with ds.Logger(TOPIC) as log:
            event_id = log.log("live")
        check("live", next(live).id, event_id)
    refused("no such topic", (ds.PermissionDenied, ds.NotFound), lambda: list(ds.consume("nobody_has_claimed_this", follow=False, transport=transport)))
    print(f"consume with {transport}: {time.monotonic() - started:.1f} s")


def wait_for_command(live):
    """Log until the command has found the end of the topic: it does not say when."""
    with ds.Logger(TOPIC) as log:
        ids = {log.log("are you there")}
        live._source._process.stdout.peek(1)
        while next(live).id not in ids:
            pass


def check_group(transport):
    started, group = time.monotonic(), f"{TOPIC}-{transport}-{os.getpid()}"
    everything = {(r.partition, r.offset) for r in ds.consume(TOPIC, follow=False, transport=transport)}
    with ds.consume(TOPIC, group=group, transport=transport, from_=0.0) as some:
        seen = [(r.partition, r.offset) for r in itertools.islice(some, 7)]
        some.commit()
    # Without a commit, the last record is not read yet.
    with ds.consume(TOPIC, group=group, transport=transport, from_=0.0) as some:
        seen += [(r.partition, r.offset) for r in itertools.islice(some, 5)][:-1]
    rest = [(r.partition, r.offset) for r in ds.consume(TOPIC, group=group, transport=transport, from_=0.0, follow=False)]
    check("records of a group", (len(seen) + len(rest), set(seen) | set(rest)), (len(everything), everything))
    check("a group that has read all", list(ds.consume(TOPIC, group=group, transport=transport, follow=False)), [])
    print(f"group with {transport}: {time.monotonic() - started:.1f} s")


def check_handler():
    handler = ds.Handler(TOPIC, transport="spool")
    logger = logging.Logger("beam")
    logger.addHandler(handler)
    logger.warning("shot %d", 7, extra={"energy": 12.4})
    handler.close()
    (document,) = [r.json() for r in ds.consume(TOPIC, follow=False) if b'"msg":"shot 7"' in (r.value or b"")]
    check("record", {n: document[n] for n in ("level", "logger", "energy")}, {"level": "WARN", "logger": "beam", "energy": 12.4})


def check_told():
    """Try programs that neither close a Logger nor print what the module reports: they say on stderr what went wrong."""
    for name, program in {
        # On one processor, the program ends before the threads of the Handler have done anything.
        "only a Handler": "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}) if sys.platform == 'linux' else None; logging.basicConfig(handlers=[ds.Handler('nobody_has_claimed_this', transport='spool')]); logging.warning('lost?')",
        "no reference": "ds.Logger('nobody_has_claimed_this', transport='spool').log('lost?')",
    }.items():
        said = subprocess.run([sys.executable, "-c", "import logging, os, sys, diaspora_streams as ds; " + program], stderr=subprocess.PIPE, text=True, check=True).stderr
        check(f"{name}: lines without a prefix", [line for line in said.splitlines() if not line.startswith("diaspora_streams: ")], [])
        check(f"{name}: told in {said!r}", said.startswith("diaspora_streams: close the ") and "nobody_has_claimed_this" in said, True)
    quiet = "logging.getLogger('diaspora_streams').addHandler(logging.NullHandler()); "
    said = subprocess.run([sys.executable, "-c", "import logging, diaspora_streams as ds; " + quiet + program], stderr=subprocess.PIPE, check=True).stderr
    check("with a NullHandler", said, b"")


def check_dataframe():
    objects = (r for r in ds.consume(TOPIC, follow=False) if (r.value or b"").startswith(b'{"by":'))
    frame = ds.to_dataframe(objects, metadata=True)
    check("columns", [c for c in frame.columns if not c.startswith("record.")], ["by", "n"])
    check("sum", int(frame[frame.by == "spool"].n.sum()), 499 * 500 // 2)
    check("index", (frame.index.name, str(frame.index.tz), frame.index.notna().all()), ("record.time", "UTC", True))
    check("nothing", len(ds.to_dataframe([])), 0)
    subprocess.run(["diaspora", "doctor", "--topic", TOPIC], stdout=subprocess.PIPE)
    tests = [r for r in ds.consume(TOPIC, follow=False) if r.key == b"diaspora-doctor"]
    check("events of doctor", (len(tests), len(ds.to_dataframe(tests))), (1, 0))


async def check_aiokafka():
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    settings = await ds.from_env().aiokafka()
    async with AIOKafkaProducer(**settings, enable_idempotence=True) as producer:
        sent = await producer.send_and_wait(TOPIC, b"from aiokafka")
    async with AIOKafkaConsumer(TOPIC, **settings, auto_offset_reset="earliest") as consumer:
        async for record in consumer:
            if (record.partition, record.offset) == (sent.partition, sent.offset):
                check("value", record.value, b"from aiokafka")
                return


def main():
    logging.getLogger("diaspora_streams").setLevel(logging.CRITICAL)  # the topics that nobody has claimed
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    transports = sys.argv[1:]
    for transport in transports:
        started = time.monotonic()
        first = check_logger(transport)
        print(f"Logger with {transport}: {time.monotonic() - started:.1f} s")
        check_consume("diaspora" if transport == "spool" else transport, first)
        if transport != "spool":
            check_group(transport)
    if "spool" in transports:
        check_handler()
        check_told()
        print("Handler")
    if importlib.util.find_spec("pandas") is not None:
        check_dataframe()
        print("to_dataframe")
    if importlib.util.find_spec("aiokafka") is not None:
        asyncio.run(check_aiokafka())
        print("aiokafka")


if __name__ == "__main__":
    main()
