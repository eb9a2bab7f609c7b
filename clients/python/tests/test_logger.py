"""Logger and Handler over a stand-in for the command: what happens when it refuses, dies or is silent."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
import unittest.mock
from datetime import datetime, timedelta, timezone

import diaspora_streams as ds
from diaspora_streams import _consume, _event, _handler, _logger, _spool

HERE = os.path.dirname(os.path.abspath(__file__))


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = folder.name
        self.binary = os.path.join(self.dir, "diaspora")
        with open(self.binary, "w", encoding="utf-8") as f:
            f.write(f'#!/bin/sh\nexec "{sys.executable}" -B "{HERE}/standin.py" "$@"\n')
        os.chmod(self.binary, 0o700)
        self.log = os.path.join(self.dir, "log")
        patch = unittest.mock.patch.object(_spool, "find_binary", lambda: self.binary)
        patch.start()
        self.addCleanup(patch.stop)
        quiet = unittest.mock.patch.object(_spool.diagnostics, "disabled", True)
        quiet.start()
        self.addCleanup(quiet.stop)

    def logger(self, behaviour="good", **options):
        environ = {"STANDIN": behaviour, "STANDIN_LOG": self.log, "DIASPORA_KEY_SECRET": "dks_canary"}
        logger = ds.Logger("weather", transport="spool", environ=environ, **options)
        self.addCleanup(self.close, logger)
        return logger

    def close(self, logger):
        try:
            logger.close(0)
        except ds.DiasporaError:
            pass

    def seen(self, what="event"):
        with open(self.log, encoding="utf-8") as f:
            return [each[what] for each in map(json.loads, f) if what in each]

    def pids(self):
        with open(self.log, encoding="utf-8") as f:
            return [each["pid"] for each in map(json.loads, f) if "arguments" in each]


class SpoolTest(Case):
    def test_a_missing_key_file_is_an_error_at_once(self):
        with self.assertRaisesRegex(ds.Invalid, "does not exist"):
            ds.Logger("weather", transport="spool", environ={"DIASPORA_KEY_FILE": self.log + ".none"})

    def test_an_event_is_passed_on_as_it_is(self):
        log = self.logger()
        when = datetime(2026, 11, 29, 12, 0, 0, 250_999, timezone(timedelta(hours=1)))
        event_id = log.log({"t": 21.5, "ä": None}, key="k", headers={"unit": "C", "raw": b"\xff"}, time=when)
        log.log(b"\xff\xfe", key=b"\xfd", id="mine")
        log.log("text")
        log.log(None, key="k")
        first, second, third, fourth = self.seen()
        headers = [{"name": "unit", "value": "C"}, {"name": "raw", "value_base64": "/w=="}]
        self.assertEqual(
            first, {"id": event_id, "time": "2026-11-29T11:00:00.250Z", "value": '{"t":21.5,"ä":null}', "key": "k", "headers": headers}
        )
        self.assertEqual((second["id"], second["value_base64"], second["key_base64"]), ("mine", "//4=", "/Q=="))
        self.assertEqual((third["value"], fourth["value"]), ("text", None))
        self.assertRegex(event_id, r"^[0-9a-z]{16}-1$")
        self.assertEqual(log.close(), "")

    def test_secrets_are_in_the_environment_alone(self):
        self.logger().log("x")
        (arguments,) = self.seen("arguments")
        self.assertEqual(arguments[-2:], ["--", "weather"])
        self.assertNotIn("canary", " ".join(arguments))

    def test_refused_events_do_not_stop_others(self):
        log = self.logger()
        with self.assertRaisesRegex(ds.Invalid, "too large"):
            log.log("refuse")
        with self.assertRaisesRegex(ds.EventError, "31 of 61 events were not logged; the first is at index 1") as caught:
            log.log_many([0, math.nan, *["refuse", 1] * 29, "refuse"])
        self.assertEqual(sorted(caught.exception.failed), [1, *range(2, 61, 2)])
        self.assertTrue(all(isinstance(e, ds.Invalid) for e in caught.exception.failed.values()))
        self.assertIn("NaN", str(caught.exception.failed[1]))
        self.assertEqual(log.pending, 0)

    def test_threads_share_a_logger(self):
        log, done = self.logger(), []
        threads = [threading.Thread(target=lambda: done.append(log.log_many(range(200)))) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(done, [200] * 8)
        self.assertEqual(len({e["id"] for e in self.seen()}), 1600)

    def test_a_process_that_dies_is_replaced_and_gets_what_is_not_acknowledged(self):
        log = self.logger("crash once")
        self.assertEqual(log.log_many(range(10)), 10)
        pids = self.pids()
        self.assertEqual(len(pids), 2)
        ids = [e["id"].partition("-")[2] for e in self.seen()]
        self.assertEqual(ids[:3], ["1", "2", "3"])
        again = ids[3:]
        self.assertEqual(again, ["1", "2", "3", "4", "5", "6", "7", "8", "9", "a"][-len(again) :])
        self.assertGreaterEqual(len(again), 8)  # all from the third on

    def test_a_process_that_always_dies_is_an_error(self):
        with self.assertRaisesRegex(ds.DiasporaError, "ended 4 times in a row .SIGKILL"):
            self.logger("crash").log("x")
        self.assertEqual(len(self.pids()), 4)

    def test_the_error_of_the_process_is_raised(self):
        for code, error in ((2, ds.Invalid), (3, ds.Unauthenticated), (4, ds.PermissionDenied), (5, ds.NotFound), (7, ds.Unavailable), (9, ds.SpoolFull)):
            log = self.logger(f"exit {code}")
            for _ in range(2):
                with self.assertRaisesRegex(error, "^nothing was logged; do this$") as caught:
                    log.log("x")
                self.assertEqual(caught.exception.exit_code, code)
            with self.assertRaises(error):
                log.log_many(iter(int, 1))  # which never ends

    def test_an_error_is_repeated_only_for_a_moment(self):
        log = self.logger("exit 3")
        for seconds, processes in ((1000.0, 1), (0.0, 3)):
            with unittest.mock.patch.object(_spool, "FAILED_SECONDS", seconds):
                for _ in range(2):
                    with self.assertRaises(ds.Unauthenticated):
                        log.log("x")
            self.assertEqual(len(self.pids()), processes)

    def test_nothing_waits_for_ever(self):
        log = self.logger("silent", timeout=0.05)
        with self.assertRaisesRegex(ds.TimedOut, "no result after 0.05 s") as caught:
            log.log("x")
        while not os.path.exists(self.log) or not self.seen():
            pass
        self.assertEqual(caught.exception.event_id, self.seen()[0]["id"])
        with self.assertRaises(ds.TimedOut):
            log.log_many(range(3))
        with unittest.mock.patch.object(_logger, "MAX_PENDING_BYTES", 1 << 16):
            small = self.logger("silent", timeout=0.05)
            with self.assertRaises(ds.TimedOut):
                small.log_many(iter(int, 1))
            self.assertLess(small.pending, 200)
        self.assertFalse(log.flush(0.01))

    def test_a_full_spool_is_named(self):
        log = self.logger("full", timeout=30)
        thread = threading.Thread(target=lambda: self.assertRaises(ds.TimedOut, log.log, "x", timeout=0))
        thread.start()
        thread.join()
        while "free" not in str(log._to.trouble()):
            pass
        with self.assertRaisesRegex(ds.SpoolFull, "^the spool is full: it has 1 GiB; 1 event is in it; free some space$"):
            log.log("x", timeout=0.01)

    def test_close_reports_what_is_pending(self):
        log = self.logger("end 75")
        log.log("x")
        self.assertEqual(log.close(), "2 events wait in the spool; do this")
        self.assertEqual(log.close(), "")
        with self.assertRaises(ds.Closed):
            log.log("x")

    def test_only_a_close_that_nobody_has_called_reports_what_is_pending(self):
        pending = 'topic "weather": 2 events wait in the spool; do this'

        def explicit():
            log = self.logger("end 75")
            log.log("x")
            self.assertEqual(log.close(), "2 events wait in the spool; do this")

        def with_statement():
            with self.logger("end 75") as log:
                log.log("x")

        def end_of_program():
            self.logger("end 75").log("x")
            _logger._close_all()

        def handler():
            handler = ds.Handler("weather", transport="spool", environ={"STANDIN": "end 75", "STANDIN_LOG": self.log})
            handler.handle(logging.makeLogRecord({"name": "beam", "msg": "x"}))
            handler.close()

        for close, want in ((explicit, []), (with_statement, [pending]), (end_of_program, [pending]), (handler, [pending])):
            with unittest.mock.patch.object(_spool.diagnostics, "warning") as warning:
                close()
            self.assertEqual([call.args[0] % call.args[1:] for call in warning.call_args_list], want, close.__name__)

    def test_messages_say_who_speaks(self):
        program = f"""
import sys
sys.path.insert(0, {os.path.dirname(HERE)!r})
import diaspora_streams as ds
from contextlib import suppress
log = ds.Logger("weather", transport="spool", timeout=0.1)
with suppress(ds.DiasporaError):
    log.log("x")
while not log._to.trouble():
    pass
log._to._process.kill()
with suppress(ds.DiasporaError):
    log.close(0)
"""
        environ = {**os.environ, "PATH": self.dir, "STANDIN": "full", "STANDIN_LOG": self.log}
        said = subprocess.run([sys.executable, "-B", "-c", program], env=environ, check=True, timeout=60, stderr=subprocess.PIPE, text=True).stderr
        self.assertIn("diaspora_streams: the spool is full", said)
        self.assertIn("diaspora_streams: diaspora produce ended (SIG", said)
        self.assertEqual([line for line in said.splitlines() if not line.startswith("diaspora_streams: ")], [])

    def test_close_does_not_wait_longer_than_told(self):
        log = self.logger("linger")
        log.log("x")
        closer = threading.Thread(target=log._to.close, args=(60,))
        closer.start()
        while not self.seen("lingers"):
            pass
        self.assertIn("the rest is in the spool", log.close(0))
        closer.join()

    def test_close_raises_what_a_person_must_solve(self):
        with self.assertRaisesRegex(ds.PermissionDenied, "2 events wait"):
            with self.logger("end 4") as log:
                log.log("x")
        with self.assertRaises(KeyError):  # the first error matters more
            with self.logger("end 4") as log:
                log.log("x")
                raise KeyError

    def test_a_process_that_does_not_end_is_killed(self):
        log = self.logger()
        log.log("x")
        (pid,) = self.pids()
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)  # or SIGTERM could come first
        with unittest.mock.patch.object(_spool, "KILL_SECONDS", 0.2):
            self.assertIn("was ended (SIGKILL)", log.close(0))

    @unittest.skipUnless(hasattr(os, "fork"), "this system has no fork")
    def test_a_fork_has_a_process_of_its_own(self):
        program = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(HERE)!r})
import diaspora_streams as ds
log = ds.Logger("weather", transport="spool")
log.log("before")
done, tell = os.pipe()
child = os.fork()
if child == 0:
    log.log("child")
    os.write(tell, b"x")
    sys.stdin.read()  # keeps the parent's pipes, if it has them
    os._exit(0)
os.read(done, 1)
log.log("parent")
assert log.close(10) == "", "the process of the parent did not see the end of its input"
print("closed", flush=True)
sys.stdin.read()
os.waitpid(child, 0)
"""
        environ = {**os.environ, "PATH": self.dir, "STANDIN": "good", "STANDIN_LOG": self.log}
        with subprocess.Popen([sys.executable, "-B", "-W", "ignore", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
            self.assertEqual(process.stdout.readline(), b"closed\n")
            process.stdin.close()
            self.assertEqual(process.wait(), 0)
        events = [(e["value"], e["id"][:16]) for e in self.seen()]
        self.assertEqual(sorted(v for v, _ in events), ["before", "child", "parent"])
        self.assertEqual(len({prefix for _, prefix in events}), 2)
        self.assertEqual(len(self.pids()), 2)

    def test_a_program_that_does_not_close_ends(self):
        program = f"""
import sys, logging, atexit
sys.path.insert(0, {os.path.dirname(HERE)!r})
atexit.register(lambda: logging.error("at the very end"))
import diaspora_streams
log = diaspora_streams.Logger("weather", transport="spool")
log.log("x")
logging.getLogger().addHandler(diaspora_streams.Handler("weather", transport="spool"))
logging.error("at the end")
"""
        environ = {**os.environ, "PATH": self.dir, "STANDIN": "good", "STANDIN_LOG": self.log}
        subprocess.run([sys.executable, "-B", "-W", "error", "-c", program], env=environ, check=True, timeout=60)
        self.assertEqual([e["value"] for e in self.seen() if e["value"] == "x"], ["x"])
        messages = [json.loads(e["value"])["msg"] for e in self.seen() if e["value"] != "x"]
        self.assertEqual(messages, ["at the end", "at the very end"])


class ChoiceTest(Case):
    def test_what_is_installed_decides(self):
        found = {"kafka", "confluent_kafka"}
        with unittest.mock.patch("importlib.util.find_spec", lambda name: name in found or None):
            self.assertEqual(_logger.choose(None), "spool")
            self.assertEqual(_consume._choose(None, None), "kafka-python")
            with unittest.mock.patch.object(_spool, "find_binary", lambda: None):
                self.assertEqual(_logger.choose(None), "kafka-python")
                found.remove("kafka")
                self.assertEqual(_logger.choose(None), "confluent-kafka")
                found.clear()
                for transport, words in (
                    (None, "install the command diaspora.*pip install kafka-python"),
                    ("spool", "neither beside this Python nor on PATH"),
                    ("kafka-python", "pip install kafka-python"),
                    ("confluent-kafka", "pip install confluent-kafka"),
                    ("x", "choose one of spool, kafka-python, confluent-kafka"),
                ):
                    with self.assertRaisesRegex(ds.DiasporaError, words):
                        ds.Logger("weather", transport=transport)
                with self.assertRaisesRegex(ds.DiasporaError, "pip install kafka-python.*or install the command"):
                    ds.consume("weather")
            self.assertEqual(_consume._choose(None, None), "diaspora")
            for transport in (None, "diaspora"):
                with self.assertRaisesRegex(ds.DiasporaError, "a group needs a Kafka client"):
                    ds.consume("weather", group="g", transport=transport)

    def test_the_command_of_this_environment_comes_first(self):
        unittest.mock.patch.stopall()
        other = os.path.join(self.dir, "bin")
        os.mkdir(other)
        beside = os.path.join(other, "diaspora")
        with unittest.mock.patch.object(sys, "executable", os.path.join(other, "python")), unittest.mock.patch.dict(os.environ, PATH=self.dir):
            self.assertEqual(_spool.find_binary(), self.binary)
            os.link(self.binary, beside)
            self.assertEqual(_spool.find_binary(), beside)

    def test_settings_of_the_program_replace_those_of_the_environment(self):
        with unittest.mock.patch.dict(os.environ, {"DIASPORA_REFRESH": "rt", "GLOBUS_SDK_ENVIRONMENT": "test", "OTHER": "x"}):
            env = _spool.child_environment({"DIASPORA_URL": "u"})
        self.assertEqual((env.get("DIASPORA_REFRESH"), env.get("GLOBUS_SDK_ENVIRONMENT"), env["OTHER"], env["DIASPORA_URL"]), (None, None, "x", "u"))


class EncodeTest(unittest.TestCase):
    def encode(self, value, **options):
        return _event.encode(ds.Event(value, **options), _event.IDs())

    def test_values(self):
        class Scalar:
            def tolist(self):
                return 1.5

        day = datetime(2026, 11, 29, tzinfo=timezone.utc)
        for value, want in (
            ({"a": [1, Scalar(), day]}, b'{"a":[1,1.5,"2026-11-29T00:00:00+00:00"]}'),
            ("<ä>", "<ä>".encode()),
            (b"\0", b"\0"),
            (bytearray(b"x"), b"x"),
            (3, b"3"),
            (False, b"false"),
            ("", b""),
        ):
            self.assertEqual(self.encode(value).value, want)
        self.assertIsNone(self.encode(None, key="k").value)

    def test_what_cannot_be_logged(self):
        loop = []
        loop.append(loop)
        for event, words in (
            ({"value": {"x": math.inf}}, "NaN or an infinity"),
            ({"value": object()}, "no JSON for a object"),
            ({"value": None}, "there is no key"),
            ({"value": loop}, "contains itself"),
            ({"value": "\ud800"}, "half of a surrogate pair"),
            ({"value": 1, "key": 3}, "key must be a str or bytes, not int"),
            ({"value": 1, "headers": {"diaspora-id": "x"}}, "reserved"),
            ({"value": 1, "headers": {"a": 1}}, 'header "a" must be'),
            ({"value": 1, "id": "x" * 257}, "more than 256 bytes"),
        ):
            with self.assertRaisesRegex(ds.Invalid, words):
                self.encode(**event)
        for topic in ("", "a b", "a-b", "_a", "x" * 250, "ä", None):
            with self.assertRaisesRegex(ds.Invalid, "cannot be a topic"):
                ds.Logger(topic)

    def test_ids_are_those_of_the_go_library(self):
        ids = _event.IDs()
        made = [ids.next() for _ in range(40)]
        self.assertEqual([i[17:] for i in (made[0], made[9], made[30], made[31], made[39])], ["1", "a", "z", "10", "18"])
        self.assertEqual(len({i[:17] for i in made}), 1)


class HandlerTest(Case):
    def handler(self, behaviour="good", **options):
        handler = ds.Handler(self.logger(behaviour), **options)
        logger = logging.Logger("beam.line")
        logger.addHandler(handler)
        return handler, logger

    def documents(self, handler):
        handler.flush()
        return [json.loads(e["value"]) for e in self.seen()]

    def test_the_members_of_an_event(self):
        handler, logger = self.handler(add_source=True, trace=lambda: ("t1", ""), key="k")
        extra = {"energy": 12.4, "level": "x", "cut": 1, "nan": math.nan, "took": timedelta(seconds=2), "raw": b"\xff", "s": {1}}
        logger.info("shot %s", "taken", extra=extra)
        (document,) = self.documents(handler)
        moment = document.pop("time")
        self.assertRegex(moment, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)$")
        source = document.pop("source")
        self.assertEqual((source["function"], source["file"]), ("test_the_members_of_an_event", __file__))
        self.assertEqual(
            list(document.items()),
            [
                ("level", "INFO"),
                ("msg", "shot taken"),
                ("trace_id", "t1"),
                ("logger", "beam.line"),
                ("energy", 12.4),
                ("level#2", "x"),
                ("cut#2", 1),
                ("nan", "NaN"),
                ("took", 2_000_000_000),
                ("raw", "/w=="),
                ("s", [1]),
            ],
        )
        self.assertEqual(self.seen()[0]["key"], "k")

    def test_levels_are_those_of_the_go_library(self):
        for level, name in ((10, "DEBUG"), (20, "INFO"), (30, "WARN"), (40, "ERROR"), (50, "ERROR+4"), (25, "INFO+2"), (15, "DEBUG+2"), (5, "DEBUG-2")):
            self.assertEqual(_handler.level_name(level), name)

    def test_exceptions_and_what_cannot_be_encoded(self):
        class Bad:
            def __str__(self):
                raise KeyError

        handler, logger = self.handler()
        try:
            raise ValueError("\ud800")
        except ValueError:
            logger.exception("bad \ud800", extra={"x": Bad()}, stack_info=True)
        (document,) = self.documents(handler)
        self.assertIn("Traceback", document["exception"])
        self.assertIn("Stack", document["stack"])
        self.assertEqual(document["x"], "!ERROR: KeyError in the str of a Bad")
        self.assertTrue(document["msg"].startswith("bad \ufffd"))

    def test_large_records_are_cut(self):
        handler, logger = self.handler()
        logger.error("ä" * 500_000, extra={"large": "x" * 900_000, "small": 1})
        (document,) = self.documents(handler)
        self.assertLess(len(document["msg"].encode()), 250_000)
        self.assertTrue(document["msg"].endswith("…"))
        self.assertEqual((document["small"], document["cut"]), (1, 2))
        self.assertNotIn("large", document)

    def test_it_never_raises_and_counts_what_is_lost(self):
        handler, logger = self.handler("exit 3")
        with unittest.mock.patch.object(handler, "handleError") as complaint:
            logger.error("%d", "x")
            for _ in range(20):
                logger.error("lost")
            handler.flush()
        self.assertEqual(complaint.call_count, 1)  # and not for each record
        self.assertEqual(handler.lost, 21)

    def test_the_next_event_tells_what_was_lost(self):
        handler, logger = self.handler()
        logger.error("refuse")
        handler.flush()
        logger.error("then")
        logger.error("later")
        documents = self.documents(handler)
        self.assertEqual([d.get("lost") for d in documents], [None, 1, None])

    def test_a_silent_cluster_does_not_stop_the_program(self):
        with unittest.mock.patch.object(_logger, "MAX_PENDING_BYTES", 1 << 16):
            handler, logger = self.handler("silent", drop_after=0.01)
        waits = []
        send = handler.logger.send
        handler.logger.send = lambda event, done, timeout: waits.append(timeout) or send(event, done, timeout)
        with unittest.mock.patch.object(handler, "handleError"):
            for _ in range(1000):
                logger.error("x")
        self.assertGreater(handler.lost, 800)
        self.assertEqual(waits[-handler.lost + 1 :], [0] * (handler.lost - 1))  # only the first that was lost has waited

    def test_its_own_records_are_dropped(self):
        handler, _ = self.handler()
        for name in ("kafka.conn", "diaspora_streams", "aiokafka", "kafkaesque"):
            handler.handle(logging.makeLogRecord({"name": name, "msg": name, "levelno": 20}))
        self.assertEqual([d["msg"] for d in self.documents(handler)], ["kafkaesque"])


class RecordTest(unittest.TestCase):
    def test_kafka_records(self):
        headers = [("unit", b"C"), ("diaspora-time", b"2026-11-29T11:00:00.250Z"), ("diaspora-id", b"id-1"), ("none", None)]
        record = _consume._record("t", 1, 2, 1_800_000_000_000, b"k", b'{"a":1}', headers)
        self.assertEqual((record.id, record.headers, record.json()), ("id-1", (("unit", b"C"), ("none", None)), {"a": 1}))
        self.assertEqual((record.time.isoformat(), record.stored.timestamp()), ("2026-11-29T11:00:00.250000+00:00", 1_800_000_000))
        plain = _consume._record("t", 1, 2, 1000, None, b"secret", [("diaspora-time", b"\xff")])
        self.assertEqual(plain.time, plain.stored)
        with self.assertRaisesRegex(ds.Invalid, "partition 1 offset 2: the value is not JSON") as caught:
            plain.json()
        self.assertNotIn("secret", str(caught.exception))

    def test_records_of_the_command(self):
        line = (
            '{"topic":"t","partition":0,"offset":7,"time":"2026-11-23T17:04:05.25Z","stored":"2026-11-23T17:04:06Z","id":"k-1",'
            '"key":null,"value_base64":"//4=","headers":[{"name":"unit","value":"C"}]}'
        )
        record = _consume._parse(json.loads(line))
        self.assertEqual((record.key, record.value, record.headers, record.id), (None, b"\xff\xfe", (("unit", b"C"),), "k-1"))
        self.assertEqual(record.stored - record.time, timedelta(seconds=0.75))

    def test_positions(self):
        when = datetime(2026, 11, 29, tzinfo=timezone.utc)
        for given, want in ((None, "end"), ("start", "start"), (when, when.timestamp()), (5, 5)):
            self.assertEqual(_consume._position(given, "end"), want)
        for bad in ("now", True, b"start"):
            with self.assertRaisesRegex(ds.Invalid, "from_ is"):
                _consume._position(bad, "end")

    def test_a_table_needs_pandas(self):
        with unittest.mock.patch.dict(sys.modules, {"pandas": None}):
            with self.assertRaisesRegex(ds.DiasporaError, "pip install pandas"):
                ds.to_dataframe([])

    def test_a_table_needs_records(self):
        with unittest.mock.patch.dict(sys.modules, {"pandas": unittest.mock.MagicMock()}):
            with self.assertRaisesRegex(ds.Invalid, "the records that consume returns"):
                ds.to_dataframe("weather")


if __name__ == "__main__":
    unittest.main()
