"""Access keys and key files. The cases are those of internal/accesskey of the Go library."""

import base64
import http.server
import json
import os
import tempfile
import threading
import unittest

from diaspora_streams import InsecureFile, Invalid, NoProfile, Unauthenticated, from_env
from diaspora_streams import _accesskey

ID = "key-abcdefghij234567"
CANARY = "CANARY7f3a9c0e15b2d4"
SECRET = "dks_" + CANARY + "_-CDEFGHIJKLMNOPQRSTUVW"
FILE = f"# a key\nDIASPORA_URL=http://127.0.0.1:1\nDIASPORA_KEY_ID={ID}\nDIASPORA_KEY_SECRET={SECRET}\n"


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = folder.name

    def write(self, text, mode=0o600):
        path = os.path.join(self.dir, "key.env")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(path, mode)
        return path

    def refused(self, words, call, *args, error=Invalid):
        with self.assertRaisesRegex(error, words) as caught:
            call(*args)
        self.assertNotIn(CANARY, str(caught.exception))


class KeyTest(Case):
    def test_a_key_that_is_none_is_told_apart_from_mistakes(self):
        for key_id, secret, want in (
            ("", "", ""),
            (ID, SECRET, ""),
            (ID, "", "belong together"),
            ("", SECRET, "belong together"),
            (SECRET, ID, "DIASPORA_KEY_ID holds the secret"),
            ("beamline-7", SECRET, "it is not the name"),
            (f'"{ID}"', SECRET, "DIASPORA_KEY_ID has quotation marks"),
            (ID, f'"{SECRET}"', "DIASPORA_KEY_SECRET has quotation marks"),
            (ID, ID, "holds the ID"),
            (ID, CANARY, "is not the secret"),
            (ID, SECRET[:30], "is cut off"),
            (ID, SECRET + "x", "is too long"),
            (ID, SECRET[:40] + "é" + SECRET[41:], "characters"),
        ):
            said = _accesskey.fault(key_id, secret)
            self.assertEqual(bool(want), bool(said), (key_id[:10], want))
            self.assertIn(want, said)
            self.assertNotIn(CANARY, said)

    def test_what_a_file_may_hold(self):
        for text in (FILE, f"\ufeffexport DIASPORA_KEY_ID='{ID}'\r\n\n export DIASPORA_KEY_SECRET=\"{SECRET}\"\r\n", FILE + "OTHER=x\n"):
            found = _accesskey.read(self.write(text))
            self.assertEqual((found["DIASPORA_KEY_ID"], found["DIASPORA_KEY_SECRET"]), (ID, SECRET))

    def test_other_files_are_refused(self):
        for text, want in (
            ("", "no key in it"),
            (f"DIASPORA_KEY_ID={ID}", "belong together"),
            (FILE + f"DIASPORA_REFRESH={CANARY}", "line 5 sets something that does not belong into it"),
            (FILE + f"DIASPORA_KEY_SECRET={SECRET}", "twice"),
            (SECRET, "line 1 is not NAME=VALUE"),
            (f"DIASPORA_KEY_ID={ID}\nDIASPORA_KEY_SECRET=$(cat {CANARY})", "line 2 is not NAME=VALUE"),
            (f"sasl.username={ID}\nsasl.password={SECRET}", "for kcat"),
            (f"sasl.jaas.config={SECRET}", "for Java"),
            (f'{{"id":"{ID}","secret":"{SECRET}"}}', "in JSON"),
            (FILE + "#" * _accesskey.MAX_FILE_BYTES, "more than"),
        ):
            self.refused(f"^DIASPORA_KEY_FILE: key file /.*{want}", _accesskey.read, self.write(text))

    def test_a_file_that_is_not_private_is_refused(self):
        for mode in (0o644, 0o640, 0o602):
            path = self.write(FILE, mode)
            self.refused(f"mode {mode:04o}.*chmod 600 {path}", _accesskey.read, path, error=InsecureFile)
        os.remove(path)
        self.refused("does not exist; check the path, or make one with", _accesskey.read, path)
        self.refused("it is not a file", _accesskey.read, self.dir)
        for owner, user, want in ((1000, 1000, True), (0, 1000, True), (1001, 1000, False), (1000, 0, False)):
            self.assertEqual(_accesskey.may_own(owner, user), want)
        if os.geteuid() == 0:
            os.chown(self.write(FILE), 12345, -1)
            self.refused("belongs to another user .12345.", _accesskey.read, path, error=InsecureFile)


class EnvironmentTest(Case):
    def fabric(self, **env):
        return from_env({"DIASPORA_CONFIG_DIR": self.dir, **env})

    def test_the_settings_of_a_key(self):
        fabric = self.fabric(DIASPORA_KEY_FILE=self.write(FILE), DIASPORA_BOOTSTRAP="127.0.0.1:2")
        self.assertEqual(fabric.url, "http://127.0.0.1:1")
        globus = {"issuer": "https://auth.globus.org", "client_id": "c", "resource_server": "s"}
        fabric._discovery = {"security": "plaintext", "brokers": ["127.0.0.1:1"], "globus": globus}
        self.assertEqual(
            fabric.kafka_python(),
            {
                "bootstrap_servers": ["127.0.0.1:2"],
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "PLAIN",
                "sasl_plain_username": ID,
                "sasl_plain_password": SECRET,
            },
        )
        settings = fabric.confluent_kafka()
        self.assertEqual((settings["sasl.mechanisms"], settings["sasl.username"], settings["sasl.password"]), ("PLAIN", ID, SECRET))
        self.assertNotIn("oauth_cb", settings)
        self.assertNotIn(CANARY, repr(fabric) + repr(vars(fabric)))
        self.refused("has no token", fabric.token, error=Unauthenticated)
        fabric._brokers = ["kafka.example.org:9092"]
        self.refused("offers no TLS, so the access key", fabric.kafka_python)
        fabric._discovery["security"] = "tls"
        context = fabric.kafka_python()["ssl_context"]
        self.assertIsNone(context.check)  # a key may be sent to every broker that its fabric announces

    def test_who_signs_in_is_said_once(self):
        path = self.write(FILE)
        for env, want in (
            ({"DIASPORA_KEY_FILE": path, "DIASPORA_KEY_ID": "key-bbbbbbbbbbbbbbbb"}, "another key; unset one"),
            ({"DIASPORA_KEY_FILE": path, "DIASPORA_REFRESH": "x"}, "DIASPORA_KEY_FILE and DIASPORA_REFRESH both say"),
            ({"DIASPORA_KEY_SECRET": SECRET, "DIASPORA_CLIENT_ID": "x"}, "DIASPORA_KEY_SECRET and DIASPORA_CLIENT_ID both say"),
            ({"DIASPORA_KEY_SECRET": SECRET}, "belong together; one of them is not set; make one with"),
            ({"DIASPORA_CLIENT_ID": ID}, "is for a client of Globus"),
            ({"DIASPORA_KEY_FILE": path, "DIASPORA_URL": "http://127.0.0.1:2"}, "is of the fabric http://127.0.0.1:1, and not of"),
        ):
            self.refused(want, lambda: self.fabric(**env))

    def test_a_key_does_not_go_to_the_fabric_of_the_current_profile(self):
        with open(os.path.join(self.dir, "current"), "w", encoding="utf-8") as f:
            f.write("other\n")
        os.chmod(f.name, 0o600)
        self.refused(
            "DIASPORA_KEY_ID says who signs in, but not to which fabric",
            lambda: self.fabric(DIASPORA_KEY_ID=ID, DIASPORA_KEY_SECRET=SECRET),
            error=NoProfile,
        )
        self.assertEqual(self.fabric(DIASPORA_KEY_ID=ID, DIASPORA_KEY_SECRET=SECRET, DIASPORA_URL="https://h").url, "https://h")


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Answers as an ACL endpoint that knows no key with SECRET."""

    def do_GET(self):
        key, globus = f"{ID}:{SECRET}".encode(), {"issuer": "http://127.0.0.1:1", "client_id": "c", "resource_server": "s"}
        status, document = 404, {}
        if self.path == "/.well-known/diaspora":
            status, document = 200, {"security": "plaintext", "brokers": ["127.0.0.1:1"], "globus": globus}
        elif self.path == f"/v1/keys/{ID}" and self.headers["Authorization"] == "Basic " + base64.b64encode(key).decode():
            status, document = self.server.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *args):
        pass


class RefusedTest(Case):
    def setUp(self):
        super().setUp()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        url = f"http://127.0.0.1:{self.server.server_port}"
        self.fabric = from_env({"DIASPORA_CONFIG_DIR": self.dir, "DIASPORA_URL": url, "DIASPORA_KEY_ID": ID, "DIASPORA_KEY_SECRET": SECRET})

    def test_clients_get_no_settings_with_a_key_that_the_fabric_refuses(self):
        self.server.answer = 401, {"title": "Not logged in", "detail": "the access key was revoked\x1b"}
        for settings in (self.fabric.kafka_python, self.fabric.confluent_kafka):
            self.refused("^sign in to http.*: the access key was revoked\ufffd; make another access key", settings, error=Unauthenticated)
        self.server.answer = 401, ["x"]
        self.refused("the access key is not accepted", self.fabric.kafka_python, error=Unauthenticated)

    def test_they_get_them_while_the_answer_is_unknown(self):
        for self.server.answer in ((200, {}), (429, {"detail": "too many"}), (503, {})):
            self.assertEqual(self.fabric.kafka_python()["sasl_plain_username"], ID)
            self.assertEqual(self.fabric.confluent_kafka()["sasl.username"], ID)


if __name__ == "__main__":
    unittest.main()
