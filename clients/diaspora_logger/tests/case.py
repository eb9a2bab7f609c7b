"""A fabric that is only described, in the environment of a test."""

import json
import os
import tempfile
import unittest
import unittest.mock

from diaspora_streams import Token

URL = "https://diaspora.example.org"
OF_HOST = "https://auth.globus.org/scopes/example.org/logging"
OF_API = "https://auth.globus.org/scopes/d1a590a0-0000-4000-8000-0000000000a1/action_all"
TOKEN = Token("an-access-token", "a-refresh-token", "a-resource-server", OF_HOST, 0.0, 0.0)


def discovery(**changes):
    document = {"brokers": ["kafka.example.org:9093"], "security": "tls", "version": "1", "max_event_bytes": 1 << 20}
    document["globus"] = {"issuer": "https://auth.globus.org", "client_id": "a-client", "resource_server": "a-resource-server", "scope": OF_HOST}
    document["globus"].update(changes.pop("globus", {}))
    return {**document, **changes}


def local():
    return discovery(brokers=["127.0.0.1:9092"], security="plaintext", globus={"issuer": "http://127.0.0.1:9091"})


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = folder.name
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIASPORA_", "GLOBUS_"))}
        environ = unittest.mock.patch.dict(os.environ, {**kept, "DIASPORA_CONFIG_DIR": self.dir, "DISPLAY": ""}, clear=True)
        environ.start()
        self.addCleanup(environ.stop)

    def store(self, document, url=URL, **more):
        """Store a profile, which becomes the current one."""
        self.write("profiles/home.json", json.dumps({"url": url, "discovery": document, **more}))
        self.write("current", "home\n")

    def write(self, name, text):
        path = os.path.join(self.dir, name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(path, 0o600)
        return path
