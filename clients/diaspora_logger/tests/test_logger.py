"""The settings of Kafka clients, and which of them get a token."""

import logging
import os
import types
import unittest
import unittest.mock
import warnings

import kafka.errors
from case import TOKEN, URL, Case, discovery, local
from diaspora_logger import DiasporaLogger, GlobusAuthTokenProvider
from diaspora_logger import _guard
from diaspora_logger.logger import _client_settings
from diaspora_streams import DiasporaError, Fabric, LoginRequired, Untrusted, from_env
from diaspora_streams import _http
from diaspora_streams._kafka import kafka_python_version

OLD = ["52.200.217.146:9093", "54.210.46.108:9094"]


class SettingsTest(Case):
    def setUp(self):
        super().setUp()
        self.store(discovery())
        source = unittest.mock.patch("diaspora_streams.Fabric.source", types.SimpleNamespace(token=lambda: TOKEN))
        source.start()
        self.addCleanup(source.stop)

    def settings(self, **configs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            settings = _client_settings(configs)
        return settings, [str(w.message) for w in caught if w.category is UserWarning]

    def test_without_settings_they_are_those_of_the_fabric(self):
        settings, caught = self.settings(linger_ms=7)
        self.assertEqual(settings["bootstrap_servers"], ["kafka.example.org:9093"])
        self.assertEqual(settings["security_protocol"], "SASL_SSL")
        self.assertEqual(settings["sasl_mechanism"], "OAUTHBEARER")
        self.assertEqual(settings["linger_ms"], 7)
        self.assertIsInstance(settings["sasl_oauth_token_provider"], GlobusAuthTokenProvider)
        self.assertIn("ssl_context", settings)
        self.assertEqual(bool({"api_version", "api_version_auto_timeout_ms"} & set(settings)), kafka_python_version() < (3, 0))
        self.assertEqual(caught, [])

    def test_those_of_the_original_are_replaced_with_warnings(self):
        for old in (OLD, OLD[0], ",".join(OLD), OLD[0].split(":")[0]):
            provider = GlobusAuthTokenProvider("a-refresh-token")
            settings, caught = self.settings(
                bootstrap_servers=old, security_protocol="SASL_PLAINTEXT", sasl_oauth_token_provider=provider, api_version=(3, 5, 1)
            )
            self.assertEqual(settings["bootstrap_servers"], ["kafka.example.org:9093"])
            self.assertEqual(settings["security_protocol"], "SASL_SSL")
            self.assertIs(settings["sasl_oauth_token_provider"], provider)
            self.assertEqual(settings["api_version"], (3, 5, 1))
            self.assertEqual(len(caught), 2)
            self.assertIn(f"security_protocol SASL_PLAINTEXT is replaced by SASL_SSL, which the fabric {URL} needs", caught[0])
            self.assertIn(f"replaced by those of {URL}; the script works as it is", caught[1])

    def test_brokers_of_the_fabric_may_be_named_and_others_not(self):
        settings, caught = self.settings(bootstrap_servers=["b1.example.org:9093", OLD[0]])
        self.assertEqual(settings["bootstrap_servers"], ["b1.example.org:9093"])
        self.assertEqual(len(caught), 1)
        with self.assertRaisesRegex(Untrusted, "evil.example.com is not below example.org"):
            self.settings(bootstrap_servers="b1.example.org:9093,evil.example.com:9093")

    def test_what_is_not_a_globus_login_is_refused(self):
        with self.assertRaisesRegex(DiasporaError, "sasl_mechanism PLAIN: .*for an access key"):
            self.settings(sasl_mechanism="PLAIN", sasl_plain_username="key-x")

    def test_another_provider_is_replaced_with_a_warning(self):
        settings, caught = self.settings(sasl_oauth_token_provider=object())
        self.assertIsInstance(settings["sasl_oauth_token_provider"], GlobusAuthTokenProvider)
        self.assertEqual(len(caught), 1)
        self.assertIn("sasl_oauth_token_provider is replaced", caught[0])

    def test_a_logger_whose_producer_fails_has_no_attributes(self):
        with self.assertRaises(DiasporaError):
            DiasporaLogger(sasl_mechanism="PLAIN")
        with self.assertRaises(AttributeError):
            DiasporaLogger.__new__(DiasporaLogger).flush

    def test_a_token_that_cannot_be_one_is_refused_at_once(self):
        with self.assertRaisesRegex(DiasporaError, "DIASPORA_REFRESH is cut off"):
            GlobusAuthTokenProvider("Ag0123...")


class LostTest(Case):
    def lost(self, topic, answer=None, **env):
        """Return what is reported about an event that was refused."""
        self.store(local(), url="http://127.0.0.1:9090")
        logger = DiasporaLogger.__new__(DiasporaLogger)
        with unittest.mock.patch.dict(os.environ, env):
            logger._reported, logger._provider = set(), GlobusAuthTokenProvider()
        asked = unittest.mock.patch.object(Fabric, "_look", return_value=_http.Answer(200 if answer else 0, answer, 0))
        with asked, unittest.mock.patch("diaspora_streams.Fabric.source", types.SimpleNamespace(token=lambda: TOKEN)), self.assertLogs("diaspora_logger") as logs:
            logger._lost(topic, kafka.errors.TopicAuthorizationFailedError(topic))
            logger._lost(topic, kafka.errors.TopicAuthorizationFailedError(topic))
        (record,) = logs.records
        return record.getMessage()

    def test_a_similar_topic_is_suggested(self):
        topics = {"topics": [{"name": "weather"}, {"name": "beam"}], "shared": [{"name": "humidity"}]}
        claim = '; run "diaspora topic claim {}" if nobody has claimed it, or ask its owner to share it;'
        for topic, answer, want in (
            ("wether", topics, '; did you mean weather? otherwise run "diaspora topic claim wether" if nobody has claimed it, or'),
            ("humidty", topics, "; did you mean humidity? otherwise run"),
            ("wether", None, claim.format("wether")),
            ("wether", {"topics": [7, {"name": "wether\x1b"}], "shared": "x"}, claim.format("wether")),
            ("wether", {"topics": None}, claim.format("wether")),
            ("other", topics, claim.format("other")),
            ("weather", topics, claim.format("weather")),  # it is read-only, for instance
        ):
            self.assertIn(want, self.lost(topic, answer))
        key = {"DIASPORA_URL": "http://127.0.0.1:9090", "DIASPORA_KEY_ID": "key-abcdefghij234567", "DIASPORA_KEY_SECRET": "dks_" + "x" * 43}
        makes = '; "diaspora key create NAME --topic wether --write --save-env FILE", where the owner is logged in, makes one that may;'
        for document, want in (
            ({"topics": ["weather", "beam"]}, "; the access key key-abcdefghij234567 is for weather, beam only; did you mean weather?" + makes),
            ({"topics": ["clouds"]}, "; the access key key-abcdefghij234567 is for clouds only" + makes),
            ({"topics": []}, "; the access key key-abcdefghij234567 may not write to it, or nobody has claimed it" + makes),
            ({"topics": ["cl\x1b[2Jouds", 7, None]}, "; the access key key-abcdefghij234567 may not write to it, or nobody has claimed it" + makes),
            (["x"], "; the access key key-abcdefghij234567 may not write to it, or nobody has claimed it" + makes),
            (None, "; the access key key-abcdefghij234567 may not write to it, or nobody has claimed it" + makes),
        ):
            self.assertIn(want, self.lost("wether", document, **key))

    def test_messages_say_who_speaks(self):
        with unittest.mock.patch.object(logging, "lastResort") as last:
            logging.getLogger("diaspora_logger").error("lost %d", 1)
        (record,) = last.handle.call_args.args
        self.assertEqual(record.getMessage(), "diaspora_logger: lost 1")


class ProviderTest(Case):
    def test_a_user_sees_why_there_is_no_token(self):
        self.store(discovery())
        provider = GlobusAuthTokenProvider("a-refresh-token")
        for error in (LoginRequired("login required: the refresh token has expired"), Untrusted("not there")):
            with unittest.mock.patch.object(provider.fabric, "token", side_effect=error):
                with self.assertWarnsRegex(UserWarning, f"^diaspora_logger: {error}$"), self.assertRaises(type(error)):
                    provider.token()

    def test_a_program_gets_a_token_for_itself(self):
        self.store(discovery())
        provider = GlobusAuthTokenProvider("a-refresh-token")
        with unittest.mock.patch.object(provider.fabric, "token", return_value=TOKEN):
            self.assertEqual(provider.token(), TOKEN.access_token)
        self.assertEqual(provider.extensions(), {})


class GuardTest(Case):
    def test_a_token_goes_to_the_fabric_and_encrypted(self):
        self.store(discovery())
        fabric = from_env()
        _guard.check_connection(fabric, TOKEN, "b1.example.org", "SASL_SSL")
        for host, protocol, says in (
            ("52.200.217.146", "SASL_PLAINTEXT", "is a broker of the original fabric"),
            ("54.210.46.108", "SASL_SSL", "is a broker of the original fabric"),
            ("evil.example.com", "SASL_SSL", "evil.example.com is not below example.org"),
            ("127.0.0.1", "SASL_SSL", "127.0.0.1 is not below example.org"),
            ("b1.example.org", "SASL_PLAINTEXT", "with SASL_PLAINTEXT, so no token is sent there; set security_protocol='SASL_SSL'"),
        ):
            with self.assertRaisesRegex(Untrusted, says, msg=host):
                _guard.check_connection(fabric, TOKEN, host, protocol)

    def test_a_fabric_on_this_machine_has_brokers_only_there(self):
        self.store(local(), url="http://127.0.0.1:9090")
        fabric = from_env()
        _guard.check_connection(fabric, TOKEN, "localhost", "SASL_PLAINTEXT")
        for host in ("52.200.217.146", "evil.example.com"):
            with self.assertRaises(Untrusted):
                _guard.check_connection(fabric, TOKEN, host, "SASL_PLAINTEXT")

    def test_the_connection_is_found_among_the_callers(self):
        for connection in (
            types.SimpleNamespace(config={}, host="b1.example.org"),
            types.SimpleNamespace(config={}, transport=types.SimpleNamespace(host="b1.example.org")),
        ):
            self.assertIs(self.call_from("kafka.conn", connection), connection)
        self.assertIsNone(self.call_from("a_program", types.SimpleNamespace(config={}, host="b1.example.org")))

    def test_an_unknown_kafka_python_gets_no_token(self):
        for unknown in (None, types.SimpleNamespace(host="b1.example.org"), types.SimpleNamespace(config={}, transport=None)):
            with self.assertRaisesRegex(Untrusted, "does not show where it sends the token"):
                self.call_from("kafka.conn", unknown)

    def call_from(self, module, connection):
        """Call _connection from a method of the connection."""
        scope = {"__name__": module, "call": _guard._connection}
        exec("def method(self):\n    return call()", scope)
        return scope["method"](connection)


if __name__ == "__main__":
    unittest.main()
