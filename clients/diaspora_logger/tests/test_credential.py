"""Which fabrics one can log in to, what is stored, and the file for Java."""

import json
import os
import stat
import unittest
import unittest.mock

from case import OF_API, TOKEN, URL, Case, discovery, local
from diaspora_logger import _java, _login
from diaspora_streams import DiasporaError, LoginRequired, Untrusted, from_env
from diaspora_streams._store import TokenFile, token_of

ADA = {"subject": "cecbec21-8ed7-5287-af26-023cff2818b6", "username": "ada@example.edu"}
GRACE = {"subject": "1168fe43-ef48-54e0-8aeb-e0dc24146888", "username": "grace@example.org"}


class TargetTest(Case):
    def target(self, document, **environ):
        """Find the target with an ACL endpoint whose discovery document is given."""
        os.environ.update({"DIASPORA_URL": URL, **environ})
        with unittest.mock.patch("diaspora_streams.Fabric.discovery", document):
            return _login.find_target()

    def test_the_scope_says_whose_the_hosts_are(self):
        self.assertFalse(self.target(discovery()).confirmed)
        for document, says in (
            (discovery(brokers=["evil.example.com:9093"]), "evil.example.com is not below example.org"),
            (discovery(globus={"issuer": "https://auth.example.com"}), "https://auth.example.com is not Globus"),
            (discovery(globus={"scope": OF_API}), "nobody has confirmed"),
        ):
            with self.assertRaisesRegex(Untrusted, says):
                self.target(document)

    def test_hosts_can_be_named_or_confirmed(self):
        of_api = discovery(globus={"scope": OF_API})
        self.assertFalse(self.target(of_api, DIASPORA_BOOTSTRAP="kafka.example.org:9093").confirmed)
        del os.environ["DIASPORA_BOOTSTRAP"]
        self.store(of_api)
        with self.assertRaisesRegex(Untrusted, "nobody has confirmed"):
            self.target(of_api)
        self.store(of_api, confirmed=True)
        self.assertTrue(self.target(of_api).confirmed)
        for changed in (
            discovery(globus={"scope": OF_API}, brokers=["kafka.example.org:9093", "evil.example.com:9093"]),
            discovery(globus={"scope": OF_API, "issuer": "https://auth.example.com"}),
            discovery(globus={"scope": OF_API.replace("a1/", "a2/")}),
        ):
            with self.assertRaises(Untrusted):
                self.target(changed)

    def test_a_named_globus_auth_is_recorded(self):
        document = discovery(globus={"issuer": "https://auth.example.com"})
        target = self.target(document, GLOBUS_SDK_SERVICE_URL_AUTH="https://auth.example.com")
        self.assertTrue(target.confirmed)
        # A profile would not remember that the user has named the brokers.
        self.assertFalse(self.target(document, DIASPORA_BOOTSTRAP="kafka.example.org:9093").confirmed)

    def test_without_a_fabric_the_error_says_what_to_set(self):
        with self.assertRaisesRegex(DiasporaError, "^log in: no profile is stored.*or set DIASPORA_URL"):
            _login.find_target()

    def test_no_browser_is_started_over_ssh_or_without_windows(self):
        for environ, has in (
            ({}, False),
            ({"DISPLAY": ":0"}, True),
            ({"WAYLAND_DISPLAY": "wayland-0"}, True),
            ({"DISPLAY": ":0", "SSH_CONNECTION": "x"}, False),
            ({"DISPLAY": ":0", "BROWSER": "/usr/bin/w3m -T"}, False),
        ):
            with unittest.mock.patch("sys.platform", "linux"), unittest.mock.patch.dict(os.environ, environ):
                self.assertEqual(_login._has_browser(), has, environ)

    def test_no_code_is_an_error_that_shows_nothing(self):
        os.environ["DIASPORA_URL"] = URL
        for typed in ("", "a code", EOFError):
            answer = {"side_effect": typed} if typed is EOFError else {"return_value": typed}
            with unittest.mock.patch("builtins.input", **answer), unittest.mock.patch("builtins.print"):
                with self.assertRaisesRegex(LoginRequired, "^log in: no authorization code was pasted"):
                    _login._ask_for_code(self.target(discovery()))


class StoreTest(Case):
    def keep(self, identity, **more):
        target = _login.Target(URL, self.dir, None, False, discovery(), unittest.mock.Mock())
        for name, value in more.items():
            setattr(target, name, value)
        return _login._store_login(target, identity, {TOKEN.resource_server: TOKEN})

    def test_a_login_is_stored_as_the_current_profile(self):
        name = self.keep(ADA)
        self.assertEqual(name, "diaspora.example.org")
        content = TokenFile(os.path.join(self.dir, "tokens", name + ".json")).read()
        self.assertEqual(token_of(content, TOKEN.resource_server), TOKEN)
        self.assertEqual((content["identity"], content["issuer"], content["client_id"]), (ADA, "https://auth.globus.org", "a-client"))
        self.assertEqual(from_env().url, URL)
        for path, _, files in os.walk(self.dir):
            for file in files:
                self.assertEqual(stat.S_IMODE(os.stat(os.path.join(path, file)).st_mode), 0o600, file)
        with open(os.path.join(self.dir, "profiles", name + ".json"), encoding="utf-8") as f:
            self.assertEqual(json.load(f), {"url": URL, "discovery": discovery()})

    def test_somebody_elses_login_is_not_replaced(self):
        self.assertEqual(self.keep(ADA), "diaspora.example.org")
        self.assertEqual(self.keep(GRACE), "diaspora.example.org-grace")
        self.assertEqual(self.keep(ADA), "diaspora.example.org")
        self.assertEqual(self.keep({**ADA, "subject": GRACE["subject"]}), "diaspora.example.org-ada")
        # A profile of another fabric is not replaced either.
        self.write("profiles/diaspora.example.org-mel.json", json.dumps({"url": "https://other.example.org", "discovery": discovery()}))
        self.assertEqual(self.keep({**ADA, "username": "mel@x"} | {"subject": GRACE["subject"][::-1]}), "diaspora.example.org-mel-2")

    def test_a_profile_of_another_fabric_is_not_replaced(self):
        self.write("profiles/diaspora.example.org.json", json.dumps({"url": URL + "/second", "discovery": discovery()}))
        self.assertEqual(self.keep(ADA), "diaspora.example.org-ada")

    def test_a_folder_that_others_can_change_is_not_used(self):
        os.makedirs(os.path.join(self.dir, "tokens"))
        os.chmod(os.path.join(self.dir, "tokens"), 0o777)
        with self.assertRaisesRegex(DiasporaError, "others may write"):
            self.keep(ADA)

    def test_a_login_that_cannot_be_stored_is_not_lost(self):
        with unittest.mock.patch("diaspora_logger._login._store_login", side_effect=PermissionError(13, "Permission denied")):
            with unittest.mock.patch("sys.stderr") as stderr:
                _login._keep(unittest.mock.Mock(), ADA, {})
        self.assertIn("the login is not stored", stderr.write.call_args[0][0])


PEM = "-----BEGIN CERTIFICATE-----\nTUlJQg==\n-----END CERTIFICATE-----"


class JavaTest(Case):
    def test_the_properties_with_tls_and_without(self):
        text = _java.properties("key-a", "java-x", "dks_b", ["a:1", "b:2"], "SASL_SSL", PEM)
        self.assertEqual(
            text.splitlines()[1:],
            [
                "bootstrap.servers=a:1,b:2",
                "security.protocol=SASL_SSL",
                "sasl.mechanism=PLAIN",
                'sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="key-a" password="dks_b";',
                "ssl.truststore.type=PEM",
                "ssl.truststore.certificates=-----BEGIN CERTIFICATE-----\\nTUlJQg==\\n-----END CERTIFICATE-----",
            ],
        )
        self.assertNotIn("truststore", _java.properties("key-a", "java-x", "dks_b", ["a:1"], "SASL_SSL", ""))
        self.assertNotIn("truststore", _java.properties("key-a", "java-x", "dks_b", ["a:1"], "SASL_PLAINTEXT", PEM))

    def test_only_certificates_are_trusted(self):
        self.store(discovery(ca=f"a note\n{PEM}\n"))
        os.environ["DIASPORA_CA_FILE"] = self.write("ca.pem", PEM.replace("TU", "XX") + "\n-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n")
        self.assertEqual(_java.certificates(from_env()), PEM + "\n" + PEM.replace("TU", "XX"))

    def test_another_file_is_not_replaced_and_no_key_is_made(self):
        self.store(local(), url="http://127.0.0.1:9090")
        path = self.write("ada.properties", "colour=blue\n")
        with unittest.mock.patch("diaspora_logger._java.request") as request:
            with self.assertRaisesRegex(DiasporaError, "is not one for Kafka's Java clients"):
                _java.save(from_env(), TOKEN, path)
            request.assert_not_called()

    def test_a_key_gets_a_free_name_and_its_file_replaces_the_last_one(self):
        self.store(local(), url="http://127.0.0.1:9090")
        path = self.write("ada.properties", "# Access key key-0 (java-x) of Diaspora Streams: keep it to yourself.\n")
        os.chmod(path, 0o644)
        made = []

        def request(_fabric, _token, _op, _path, document=None):
            if document is None:
                return json.dumps({"keys": [{"name": "java-here"}, {"name": "java-here-2"}]})
            made.append(document)
            return json.dumps({"id": "key-1", "name": document["name"], "secret": "dks_1"})

        with unittest.mock.patch("diaspora_logger._java.request", request), unittest.mock.patch("socket.gethostname", lambda: "here"):
            _java.save(from_env(), TOKEN, path)
        self.assertEqual(made, [{"name": "java-here-3", "read": True, "write": True}])
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        with open(path, encoding="utf-8") as f:
            self.assertIn('username="key-1" password="dks_1"', f.read())

    def test_a_key_with_other_characters_is_refused(self):
        self.store(local(), url="http://127.0.0.1:9090")
        answers = iter(['{"keys":[]}', json.dumps({"id": 'key-1"; evil', "name": "x", "secret": "y"})])
        with unittest.mock.patch("diaspora_logger._java.request", lambda *_args, **_more: next(answers)):
            with self.assertRaisesRegex(DiasporaError, "holds no key"):
                _java.save(from_env(), TOKEN, os.path.join(self.dir, "ada.properties"))
        self.assertFalse(os.path.exists(os.path.join(self.dir, "ada.properties")))


if __name__ == "__main__":
    unittest.main()
