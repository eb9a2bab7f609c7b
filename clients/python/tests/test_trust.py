"""Where secrets may go: the table that the Go library follows, too, and attacks.

In the attacks somebody is led to an ACL endpoint at evil.example.com, whose discovery
document says whatever brings it a token that is good elsewhere.
"""

import dataclasses
import http.server
import json
import os
import socket
import ssl
import tempfile
import threading
import unittest
import unittest.mock
import urllib.parse

from diaspora_streams import DiasporaError, Untrusted, from_env
from diaspora_streams import _fabric, _trust
from diaspora_streams._store import TokenFile, set_token
from test_fabric import SERVER, Globus

HERE = os.path.dirname(os.path.abspath(__file__))
TABLE = os.path.join(HERE, "..", "..", "..", "internal", "trust", "testdata", "table.json")
CERTIFICATE = os.path.join(HERE, "thief.pem")

# The scopes of the genuine fabric: one that names only its API, and one that names
# the host that Globus has verified.
OF_API = "https://auth.globus.org/scopes/d1a590a0-0000-4000-8000-0000000000a1/action_all"
OF_HOST = "https://auth.globus.org/scopes/streams.example.org/logging"
OF_EVIL = "https://auth.globus.org/scopes/evil.example.com/logging"
GROUPS = "urn:globus:auth:scope:groups.api.globus.org:all"
TRANSFER = "urn:globus:auth:scope:transfer.api.globus.org:all"


class TableTest(unittest.TestCase):
    def test_all_combinations(self):
        with open(TABLE, encoding="utf-8") as f:
            table = json.load(f)
        for case in table["cases"]:
            fabric = _trust.Fabric(**case["fabric"])
            self.check(case["login"], fabric.check_login, msg=case["name"])
            for host in case["hosts"]:
                self.check(host["says"], fabric.check_host, host["to"], host["scopes"], msg=f"{case['name']}: {host}")
        elsewhere = _trust.Fabric(url="https://diaspora.example.org", brokers=["kafka.example.org:9092"])
        del table["scopes"]["about"]
        for scope, says in table["scopes"].items():
            self.check(says, dataclasses.replace(elsewhere, scope=scope).check_login, msg=scope)
            self.check(says, elsewhere.check_host, "kafka.example.org", [scope], msg=scope)
        self.assertGreater(len(table["cases"]), 10)
        self.assertGreater(len(table["scopes"]), 20)

    def check(self, says, call, *args, msg):
        with self.subTest(msg):
            if not says:
                call(*args)
                return
            with self.assertRaises(Untrusted) as raised:
                call(*args)
            self.assertIn(says, str(raised.exception))
            self.assertIn("; ", str(raised.exception), "it does not say what to do")


class Thief(http.server.ThreadingHTTPServer):
    """Is an ACL endpoint and a Globus Auth, and keeps every secret that it is shown."""

    def __init__(self, tls=True):
        super().__init__(("127.0.0.1", 0), ThiefHandler)
        self.document, self.loot, self.asked = {}, [], []
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class ThiefHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.headers["Authorization"]:
            self.server.loot.append(self.headers["Authorization"])
        self.answer(self.server.document if self.path.startswith("/.well-known") else {})

    def do_POST(self):
        self.server.loot.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.answer({"access_token": "thief", "expires_in": 3600, "resource_server": SERVER, "scope": OF_EVIL})

    def answer(self, document):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *args):
        pass


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = folder.name
        self.globus = self.serve(Globus())
        self.scope = OF_API  # of the tokens that Globus Auth gives
        self.globus.tokens = lambda n: (200, {"access_token": f"at-{n}", "expires_in": 3600, "resource_server": SERVER, "scope": self.scope})
        self.thief, self.plain = self.serve(Thief()), self.serve(Thief(tls=False))
        at = {443: self.thief.server_port, 80: self.plain.server_port}
        connect = socket.create_connection

        def lead(address, *args, **kwargs):
            host, port = address
            return connect(("127.0.0.1", at[port]) if host.endswith((".example.com", ".example.org")) else address, *args, **kwargs)

        patch = unittest.mock.patch("socket.create_connection", lead)
        patch.start()
        self.addCleanup(patch.stop)

    def serve(self, server):
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server

    def says(self, **changes):
        """Set the discovery document: the genuine one, with changes."""
        globus = {"issuer": self.globus.url, "client_id": "client", "resource_server": SERVER, "scope": OF_API}
        globus.update({k: changes.pop(k) for k in tuple(changes) if k in globus})
        document = {"security": "tls", "brokers": ["evil.example.com:9092"], "globus": globus, **changes}
        self.thief.document = self.plain.document = document
        return document

    def env(self, url="https://evil.example.com", named=True, **more):
        env = {"DIASPORA_CONFIG_DIR": self.dir, "DIASPORA_CA_FILE": CERTIFICATE, "DIASPORA_URL": url, "DIASPORA_REFRESH": "rt-secret", **more}
        if named:
            env["GLOBUS_SDK_SERVICE_URL_AUTH"] = self.globus.url
        return {name: value for name, value in env.items() if value}


class AttackTest(Case):
    def refused(self, words, env, error=Untrusted):
        """Expect that the attacker is shown nothing, and that the user learns why."""
        for call in (lambda f: f.token(), lambda f: f.oauth_cb(), lambda f: f.kafka_python()["sasl_oauth_token_provider"].token()):
            with unittest.mock.patch.object(_fabric, "_provider_base", lambda: object):
                with self.assertRaises(error) as raised:
                    call(from_env(env))
            self.assertIn(words, str(raised.exception))
            self.assertNotIn("secret", str(raised.exception).replace("nothing secret", ""))
        self.assertEqual(self.thief.loot + self.plain.loot, [])

    def test_the_genuine_scope_which_names_its_api(self):
        self.says()
        self.refused("names no host, and nobody has confirmed that its tokens may go to evil.example.com", self.env())

    def test_the_genuine_scope_which_names_its_host(self):
        self.scope = OF_HOST
        for brokers in (["evil.example.com:9092"], ["kafka.streams.example.org:9092"]):
            self.says(scope=OF_HOST, brokers=brokers)
            self.refused("evil.example.com is not below streams.example.org", self.env())

    def test_a_scope_of_its_own_for_a_token_of_the_genuine_api(self):
        self.scope = OF_HOST
        self.says(scope=OF_EVIL)
        self.refused("evil.example.com is not below streams.example.org", self.env())

    def test_a_genuine_endpoint_with_another_broker(self):
        self.scope = OF_HOST
        self.says(scope=OF_HOST, brokers=["kafka.streams.example.org:9092", "evil.example.com:9092"])
        with self.assertRaisesRegex(Untrusted, "evil.example.com is not below"):
            from_env(self.env("https://www.streams.example.org")).token()

    def test_scopes_of_globus_itself(self):
        for scope in (GROUPS, TRANSFER, "openid", OF_API + " " + GROUPS):
            self.scope = scope
            self.says(scope=scope)
            self.refused("a fabric has a scope of its own at Globus", self.env())
            # ... or only the token is good for that
            self.says(scope=OF_EVIL)
            self.refused("a fabric has a scope of its own at Globus", self.env())

    def test_a_globus_auth_of_its_own(self):
        for issuer in ("https://evil.example.com", f"http://127.0.0.1:{self.plain.server_port}", self.globus.url):
            self.says(issuer=issuer, scope=OF_EVIL)
            self.refused(f"{issuer} is not Globus", self.env(named=False))
        self.assertEqual(self.globus.forms, [])

    def test_plain_http(self):
        self.says(scope=OF_EVIL)
        self.refused("is not https", self.env("http://evil.example.com"), DiasporaError)
        self.assertEqual(self.plain.asked, [])

    def test_a_profile_of_an_earlier_version(self):
        self.save(confirmed=False)
        self.refused('run "diaspora login --profile home"', self.env(url="", DIASPORA_REFRESH=""))
        self.refused('run "diaspora login --profile home"', self.env(url=""))

    def save(self, confirmed, scope=OF_API, url="https://www.streams.example.org", brokers=("kafka.streams.example.org:9092",)):
        profile = {"url": url, "discovery": self.says(scope=scope, brokers=list(brokers)), "confirmed": confirmed}
        if not confirmed:
            del profile["confirmed"]
        for name, text in (("profiles/home.json", json.dumps(profile)), ("current", "home\n")):
            path = os.path.join(self.dir, name)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
        file = TokenFile(os.path.join(self.dir, "tokens", "home.json"))
        file.make_folder()
        content = {"version": 1, "issuer": self.globus.url, "client_id": "client", "identity": {"subject": "ada"}, "tokens": {}}
        set_token(content, from_env({"DIASPORA_CONFIG_DIR": self.dir, "DIASPORA_REFRESH": "rt-0", "GLOBUS_SDK_SERVICE_URL_AUTH": self.globus.url}).source.token())
        file.write(content)

    # And where all is well, the token goes out.

    def allowed(self, env):
        self.thief.loot.clear()
        fabric = from_env(env)
        self.assertTrue(fabric.token().access_token.startswith("at-"))
        self.assertEqual(self.thief.loot, ["Bearer " + fabric.token().access_token])
        return fabric

    def test_a_scope_that_names_the_host(self):
        self.scope = OF_HOST
        self.says(scope=OF_HOST, brokers=["kafka.streams.example.org:9092"])
        self.allowed(self.env("https://www.streams.example.org"))

    def test_hosts_that_the_user_names(self):
        self.says(brokers=["kafka.streams.example.org:9092"])
        self.allowed(self.env("https://www.streams.example.org", DIASPORA_BOOTSTRAP="kafka.streams.example.org:9092"))

    def test_a_profile_that_was_confirmed(self):
        self.save(confirmed=True)
        self.allowed(self.env(url=""))
        self.allowed(self.env(url="", DIASPORA_REFRESH="", named=False))

    def test_brokers_that_the_cluster_names(self):
        self.scope = OF_HOST
        self.says(scope=OF_HOST, brokers=["kafka.streams.example.org:9092"])
        with unittest.mock.patch.object(_fabric, "_provider_base", lambda: object):
            context = from_env(self.env("https://www.streams.example.org")).kafka_python()["ssl_context"]
        for host in ("evil.example.com", "127.0.0.1", "", None):
            with socket.socket() as sock:
                with self.assertRaisesRegex(ssl.SSLError, "is not below streams.example.org"):
                    context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            with self.assertRaisesRegex(ssl.SSLError, "is not below streams.example.org"):
                context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=host)
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="kafka.streams.example.org")
        with socket.create_connection(("kafka.streams.example.org", 443)) as sock:
            with context.wrap_socket(sock, server_hostname="kafka.streams.example.org") as secured:
                self.assertTrue(secured.getpeercert())
        with socket.create_connection(("www.example.org", 443)) as sock:
            plain = _trust.GuardedContext(ssl.PROTOCOL_TLS_CLIENT)
            with self.assertRaisesRegex(ssl.SSLError, "verify failed"):
                plain.wrap_socket(sock, server_hostname="www.example.org")


if __name__ == "__main__":
    unittest.main()
