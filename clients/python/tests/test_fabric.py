"""Which fabric is meant, and how tokens are renewed, against servers of this process."""

import asyncio
import base64
import http.server
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
import types
import unittest
import unittest.mock
import urllib.parse

from diaspora_streams import DiasporaError, InsecureFile, LoginRequired, TokenSource, Unauthenticated, Unavailable, Untrusted, from_env
from diaspora_streams import _http
from diaspora_streams._fabric import _base, _checked
from diaspora_streams._source import cache_file
from diaspora_streams._store import TokenFile, set_token, token_of

SERVER = "a-resource-server"
ALREADY_OVER = 1e-9  # seconds: a lifetime that has passed by the time the token is looked at


class Globus(http.server.ThreadingHTTPServer):
    """Answers refreshes as it is told to."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.forms, self.answers, self.lifetime = [], [], 3600
        self.basic = []  # what came in the header Authorization
        self.gate = threading.Event()  # answers wait for it
        self.gate.set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def tokens(self, n):
        return 200, {"access_token": f"at-{n}", "refresh_token": f"rt-{n}", "expires_in": self.lifetime, "resource_server": SERVER}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.forms.append(dict(urllib.parse.parse_qsl(body)))
        self.server.basic.append(self.headers["Authorization"])
        self.server.gate.wait()
        answers = self.server.answers
        status, document = answers.pop(0) if answers else self.server.tokens(len(self.server.forms))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", self.server.url + "/elsewhere")
        self.end_headers()
        self.wfile.write(b"<html>" if document is None else json.dumps(document).encode())

    def log_message(self, *args):
        pass


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = folder.name
        self.globus = Globus()
        self.addCleanup(self.globus.server_close)
        self.addCleanup(self.globus.shutdown)

    def source(self, refresh="rt-0"):
        return TokenSource(self.globus.url, "client", SERVER, file=cache_file(self.dir, self.globus.url, "client", refresh), refresh_token=refresh)


class SourceTest(Case):
    def test_a_token_is_fetched_once_and_shared(self):
        one, other = self.source(), self.source()
        self.assertEqual(one.token().access_token, "at-1")
        self.assertEqual(one.token().access_token, "at-1")
        self.assertEqual(other.token().access_token, "at-1")
        self.assertEqual(self.globus.forms, [{"grant_type": "refresh_token", "refresh_token": "rt-0", "client_id": "client"}])

    def test_threads_share_one_refresh(self):
        source, got = self.source(), []
        threads = [threading.Thread(target=lambda: got.append(source.token().access_token)) for _ in range(16)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(got, ["at-1"] * 16)

    def test_the_rotated_token_is_used_next(self):
        self.globus.lifetime = ALREADY_OVER
        self.source().token()
        self.source().token()
        self.assertEqual([f["refresh_token"] for f in self.globus.forms], ["rt-0", "rt-1"])

    def test_a_dead_token_falls_back_to_the_one_given_and_then_ends(self):
        self.globus.lifetime = ALREADY_OVER
        source = self.source()
        source.token()
        self.globus.answers = [(400, {"error": "invalid_grant"})] * 2
        with self.assertRaisesRegex(LoginRequired, "login required"):
            source.token()
        self.assertEqual([f["refresh_token"] for f in self.globus.forms], ["rt-0", "rt-1", "rt-0"])

    def test_an_outage_keeps_a_good_token(self):
        source = self.source()
        source.token()
        source._ahead = 3600.0  # due, with a quarter of its life left
        stored = source._token
        source._token = type(stored)(**{**stored.__dict__, "obtained": time.time() - 3000, "expiry": time.time() + 600})
        set_token(content := source._file.read(), source._token)
        source._file.write(content)
        self.globus.answers = [(503, {})] * _http.MAX_ATTEMPTS
        self.assertEqual(source.token().access_token, "at-1")
        self.assertEqual(token_of(source._file.read(), SERVER).refresh_token, "rt-1")

    def test_an_outage_is_not_a_refusal(self):
        self.globus.answers = [(503, {})] * _http.MAX_ATTEMPTS
        with self.assertRaises(Unavailable):
            self.source().token()
        self.assertEqual(self.source().token().refresh_token, f"rt-{_http.MAX_ATTEMPTS + 1}")

    def test_who_else_answers_is_told_apart_from_an_outage(self):
        for status, document in ((501, {}), (404, {"error": "not_found"}), (404, None), (200, None), (511, None), (405, {})):
            self.globus.forms.clear()
            self.globus.answers = [(status, document)] * _http.MAX_ATTEMPTS
            with self.assertRaisesRegex(Unavailable, rf"^unexpected answer: .*status {status}.*login page"):
                self.source().token()
            self.assertEqual(len(self.globus.forms), 1, status)

    def test_redirects_are_not_followed(self):
        self.globus.answers = [(302, {})]
        with self.assertRaises(Unavailable):
            self.source().token()
        self.assertEqual(len(self.globus.forms), 1)

    def test_a_login_of_somebody_else_is_not_used(self):
        file = TokenFile(os.path.join(self.dir, "p.json"))
        source = TokenSource(self.globus.url, "client", SERVER, file=file)
        content = {"version": 1, "issuer": "https://auth.example.org", "identity": {"subject": "ada"}, "tokens": {}}
        set_token(content, self.source().token())
        file.write(content)
        with self.assertRaisesRegex(LoginRequired, "another issuer"):
            source.token()
        self.assertEqual(len(self.globus.forms), 1)

    def test_no_error_shows_a_token(self):
        for answer in ((400, {"error": "invalid_grant", "error_description": "rt-secret"}), (500, {"x": "rt-secret"}), (200, {"access_token": "\n"})):
            self.globus.answers = [answer] * _http.MAX_ATTEMPTS
            with self.assertRaises(DiasporaError) as raised:
                self.source("rt-secret").token()
            self.assertNotIn("rt-secret", str(raised.exception))


class Endpoint(http.server.ThreadingHTTPServer):
    """An ACL endpoint that takes some tokens."""

    def __init__(self, issuer):
        super().__init__(("127.0.0.1", 0), EndpointHandler)
        self.issuer, self.takes, self.shown = issuer, set(), []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class EndpointHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, document = 200, {}
        if self.path == "/v1/identity":
            token = self.headers["Authorization"].removeprefix("Bearer ")
            self.server.shown.append(token)
            status = 200 if token in self.server.takes else 401
        else:
            globus = {"issuer": self.server.issuer, "client_id": "client", "resource_server": SERVER}
            document = {"security": "plaintext", "brokers": ["127.0.0.1:9092"], "globus": globus}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *args):
        pass


class RefusedTest(Case):
    """A token that the fabric refuses before its time is replaced, once."""

    def setUp(self):
        super().setUp()
        self.endpoint = Endpoint(self.globus.url)
        self.addCleanup(self.endpoint.server_close)
        self.addCleanup(self.endpoint.shutdown)
        self.fabric = from_env({"DIASPORA_CONFIG_DIR": self.dir, "DIASPORA_URL": self.endpoint.url, "DIASPORA_REFRESH": "rt-0"})

    def test_a_refused_token_is_replaced(self):
        self.endpoint.takes = {"at-2"}
        self.assertEqual(self.fabric.oauth_cb()[0], "at-2")
        self.assertEqual([f["refresh_token"] for f in self.globus.forms], ["rt-0", "rt-1"])
        self.assertEqual(self.fabric.source.token().access_token, "at-2")

    def test_a_running_program_looks_again(self):
        self.endpoint.takes = {"at-1"}
        token, expiry = self.fabric.oauth_cb()
        self.assertEqual(token, "at-1")
        self.assertLess(expiry, time.time() + 600)
        self.endpoint.takes = {"at-2"}
        self.fabric._accepted = ("", 0.0)  # time passes
        self.assertEqual(self.fabric.token().access_token, "at-2")

    def test_what_is_refused_again_is_for_the_broker_to_say(self):
        for _ in range(3):
            self.assertIn(self.fabric.token().access_token, ("at-1", "at-2"))
        self.assertEqual(len(self.globus.forms), 2)

    def test_a_login_that_has_ended_is_for_the_broker_to_say(self):
        self.fabric.source.token()
        self.globus.answers = [(400, {"error": "invalid_grant"})] * 2
        self.assertEqual(self.fabric.token().access_token, "at-1")

    def test_clients_get_no_settings_with_a_login_that_is_refused(self):
        with self.assertRaisesRegex(LoginRequired, f'the fabric does not accept this login; run "diaspora login {self.endpoint.url}"$'):
            self.fabric.kafka_python()
        self.endpoint.takes = {"at-2"}
        self.assertEqual(self.fabric.confluent_kafka()["sasl.mechanisms"], "OAUTHBEARER")

    def test_clients_get_no_settings_with_a_login_that_has_ended(self):
        self.globus.answers = [(400, {"error": "invalid_grant"})] * 4
        for settings in (self.fabric.kafka_python, self.fabric.confluent_kafka):
            self.assertRaises(LoginRequired, settings)

    def test_clients_get_settings_while_globus_is_away(self):
        self.globus.answers = [(503, {})] * 4
        self.assertEqual(self.fabric.confluent_kafka()["sasl.mechanisms"], "OAUTHBEARER")

    def test_an_endpoint_that_is_away_refuses_nobody(self):
        self.fabric.source.token()
        self.endpoint.shutdown()
        self.endpoint.server_close()
        self.assertEqual(self.fabric.token().access_token, "at-1")
        self.assertEqual(len(self.globus.forms), 1)


class OtherLoginsTest(Case):
    def setUp(self):
        super().setUp()
        self.endpoint = Endpoint(self.globus.url)
        self.endpoint.takes = {"at-1", "at-2"}
        self.addCleanup(self.endpoint.server_close)
        self.addCleanup(self.endpoint.shutdown)
        self.env = {"DIASPORA_CONFIG_DIR": self.dir, "DIASPORA_URL": self.endpoint.url}

    def test_a_globus_client_signs_in_with_its_secret(self):
        fabric = from_env({**self.env, "DIASPORA_CLIENT_ID": "service", "DIASPORA_CLIENT_SECRET": "s+e/c="})
        self.assertEqual(fabric.token().access_token, "at-1")
        self.assertEqual(self.globus.forms, [{"grant_type": "client_credentials"}])
        self.assertEqual(base64.b64decode(self.globus.basic[0].partition(" ")[2]), b"service:s+e/c=")
        self.assertEqual(fabric.token().access_token, "at-1")
        fabric.source.refused("at-1")
        self.assertEqual(fabric.source.token().access_token, "at-2")
        self.globus.answers = [(401, {"error": "invalid_client"})]
        fabric.source.refused("at-2")
        with self.assertRaisesRegex(Unauthenticated, "client refused: get client credentials") as caught:
            fabric.source.token()
        self.assertNotIn("s+e", str(caught.exception))

    def test_the_secret_of_a_client_is_for_globus_alone(self):
        self.endpoint.issuer = "https://evil.example.com"
        fabric = from_env({**self.env, "DIASPORA_CLIENT_ID": "service", "DIASPORA_CLIENT_SECRET": "secret"})
        with self.assertRaisesRegex(Untrusted, "evil.example.com is not Globus"):
            fabric.token()
        self.assertEqual(self.globus.forms, [])

    def test_aiokafka_gets_tokens_while_the_event_loop_goes_on(self):
        abc = types.ModuleType("aiokafka.abc")
        abc.AbstractTokenProvider = object
        fabric = from_env({**self.env, "DIASPORA_REFRESH": "rt-0"})
        self.globus.gate.clear()

        async def tick():
            await asyncio.sleep(0)
            while not self.globus.forms:
                await asyncio.sleep(0.001)
            self.globus.gate.set()  # which a loop that is blocked would never do

        async def main():
            settings, _ = await asyncio.wait_for(asyncio.gather(fabric.aiokafka(), tick()), 30)
            return settings, await settings["sasl_oauth_token_provider"].token()

        with unittest.mock.patch.dict(sys.modules, {"aiokafka": types.ModuleType("aiokafka"), "aiokafka.abc": abc}):
            settings, token = asyncio.run(main())
        self.assertEqual((settings["sasl_mechanism"], settings["bootstrap_servers"], token), ("OAUTHBEARER", ["127.0.0.1:9092"], "at-1"))


class EnvironmentTest(Case):
    def test_a_misspelt_variable_is_named(self):
        for name, near in (
            ("DIASPORA_KEYFILE", "DIASPORA_KEY_FILE"),
            ("DIASPORA_KEY_FIEL", "DIASPORA_KEY_FILE"),
            ("DIASPORA_SERVE_ACL_LISTEN", ""),
            ("DIASPORA_ENDURANCE", ""),
            ("HOME", ""),
        ):
            with self.assertLogs("diaspora_streams", "INFO") as said, self.assertRaises(DiasporaError):
                logging.getLogger("diaspora_streams").info("%s follows", name)  # assertLogs wants at least one
                from_env({"DIASPORA_CONFIG_DIR": self.dir, name: "x"})
            said = [r.getMessage() for r in said.records[1:]]
            self.assertEqual(said, [f"{name} is set, but there is no such variable; did you mean {near}?"] if near else [])

    def test_what_is_missing_is_said(self):
        for env, words in (
            ({}, "diaspora login"),
            ({"DIASPORA_URL": "https://x.example.org"}, "DIASPORA_REFRESH"),
            ({"DIASPORA_PROFILE": "../x"}, "letters"),
            ({"DIASPORA_PROFILE": "other"}, "nobody has logged in"),
            ({"DIASPORA_URL": "ftp://x", "DIASPORA_REFRESH": "rt"}, "https://host"),
            ({"DIASPORA_URL": "https://x", "DIASPORA_REFRESH": "rt", "DIASPORA_BOOTSTRAP": "x"}, "host:port"),
            ({"DIASPORA_CLIENT_ID": "x"}, "DIASPORA_CLIENT_ID says who signs in, .*set DIASPORA_URL as well"),
            ({"DIASPORA_URL": "https://x", "DIASPORA_CLIENT_ID": "x"}, "belong together"),
            ({"DIASPORA_REFRESH": "rt"}, "says who signs in, .*set DIASPORA_URL as well"),
            ({"DIASPORA_URL": "https://x", "DIASPORA_REFRESH": '"rt-secret"'}, "DIASPORA_REFRESH has quotation marks"),
            ({"DIASPORA_URL": "https://x", "DIASPORA_REFRESH": "dev-at-secret"}, "holds an access token"),
        ):
            with self.assertRaisesRegex(DiasporaError, words, msg=str(env)):
                from_env({"DIASPORA_CONFIG_DIR": self.dir, **env})

    def test_plain_http_is_for_this_machine(self):
        fabric = from_env({"DIASPORA_CONFIG_DIR": self.dir, "DIASPORA_URL": "http://x.example.org", "DIASPORA_REFRESH": "rt"})
        with self.assertRaisesRegex(DiasporaError, "not https"):
            fabric.kafka_python()

    def test_what_a_server_says_is_checked(self):
        good = {
            "security": "plaintext",
            "brokers": ["127.0.0.1:9092", "[::1]:9092"],
            "globus": {"issuer": "https://auth.globus.org", "client_id": "client", "resource_server": SERVER},
        }
        self.assertIs(_checked(good), good)
        for evil in ("x\nmetric.reporters=y", "\x1b]0;owned\a", "\x9b31m", "a b", "\u202e", ""):
            for bad in (
                {**good, "brokers": [f"{evil}:9092"]},
                {**good, "brokers": [f"a,{evil}b:9092"]},
                {**good, "globus": {**good["globus"], "client_id": evil}},
                {**good, "globus": {**good["globus"], "resource_server": evil}},
                {**good, "globus": {**good["globus"], "issuer": "http://" + evil}},
            ):
                with self.assertRaises(DiasporaError, msg=str(bad)) as caught:
                    _checked(bad)
                self.assertTrue(str(caught.exception).isprintable(), str(caught.exception))

    def test_no_error_commands_a_terminal(self):
        self.globus.answers = [(200, {"access_token": "at", "resource_server": "\x1b]0;owned\a\nTraceback"})]
        with self.assertRaisesRegex(Unavailable, "names no resource server"):
            self.source().token()
        self.assertEqual(str(Unavailable("a\x1b[31m\nb\u202eä", 1.0)), r"a\x1b[31m\nb\u202eä")

    def test_profiles_that_others_can_change_are_refused(self):
        os.mkdir(os.path.join(self.dir, "profiles"))
        globus = {"issuer": self.globus.url, "client_id": "client", "resource_server": SERVER}
        discovery = {"security": "plaintext", "brokers": ["127.0.0.1:9092"], "globus": globus}
        for name, text in (("current", "local\n"), ("profiles/local.json", json.dumps({"url": "https://h", "discovery": discovery}))):
            with open(os.path.join(self.dir, name), "w") as f:
                f.write(text)
            os.chmod(os.path.join(self.dir, name), 0o644)
        env = {"DIASPORA_CONFIG_DIR": self.dir}
        for name, good in (("current", 0o644), ("profiles/local.json", 0o644), ("profiles", 0o755), (".", 0o755)):
            path = os.path.normpath(os.path.join(self.dir, name))
            for extra in (0o020, 0o002):
                os.chmod(path, good | extra)
                with self.assertRaisesRegex(InsecureFile, 'run "chmod go-w ' + re.escape(path)):
                    from_env(env)
            os.chmod(path, good)
            self.assertEqual(from_env(env).url, "https://h")

    def test_what_people_paste(self):
        for raw in ("https://h", "https://h/", "https://h/acl", " https://h/.well-known/diaspora "):
            self.assertEqual(_base(raw), "https://h")


if __name__ == "__main__":
    unittest.main()
