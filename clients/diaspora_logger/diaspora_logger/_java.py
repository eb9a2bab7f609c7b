"""The file for Kafka's Java clients: an access key, as "diaspora login --save-for-java" writes it."""

from __future__ import annotations

import json
import os
import re
import socket

from diaspora_streams import DiasporaError, Fabric, Token
from diaspora_streams._fabric import _read_text
from diaspora_streams._store import replace_file

from ._endpoint import request

_OURS = ("# Access key ", "security.protocol=")  # how files begin that we and the original write
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


def save(fabric: Fabric, token: Token, path: str) -> None:
    """Create an access key and write it to a file, which replaces only a file of the same kind."""
    _check_replaceable(path)
    key = _new_key(fabric, token)
    text = properties(key["id"], key["name"], key["secret"], fabric.brokers, fabric._protocol(), certificates(fabric))
    try:
        replace_file(path, text)
    except OSError as e:
        raise DiasporaError(f'write {path}: {e.strerror}; nobody has the access key {key["name"]}: end it with "diaspora key revoke {key["name"]}"') from None


def _check_replaceable(path: str) -> None:
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            begin = f.read(100)
    except FileNotFoundError:
        return
    except OSError as e:
        raise DiasporaError(f"write {path}: {e.strerror}") from None
    if not begin.startswith(_OURS):
        raise DiasporaError(f"write {path}: the file exists and is not one for Kafka's Java clients; rename it")


def _new_key(fabric: Fabric, token: Token) -> dict[str, str]:
    """Create a key that is named after this machine. Keys of earlier files stay valid."""
    keys = json.loads(request(fabric, token, "list the access keys", "/v1/keys"))["keys"] or []
    taken = {key["name"] for key in keys}
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:48]
    name = base = f"java-{host}".rstrip("-")
    number = 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    key = json.loads(request(fabric, token, f"create the access key {name}", "/v1/keys", document={"name": name, "read": True, "write": True}))
    if not all(re.fullmatch(r"[A-Za-z0-9._-]{1,200}", str(key.get(field, ""))) for field in ("id", "name", "secret")):
        raise DiasporaError(f"create the access key {name}: the answer of the ACL endpoint holds no key")
    return dict(key)


def certificates(fabric: Fabric) -> str:
    """Return the certificates to trust in addition to the system's, or ""."""
    text = fabric.discovery.get("ca", "") + "\n" + _read_text(fabric._ca_file)
    return "\n".join(_PEM.findall(text))


def properties(key_id: str, name: str, secret: str, brokers: list[str], protocol: str, ca: str) -> str:
    """Return the configuration of Kafka's Java client. No value has characters that Java would read otherwise."""
    lines = [
        f"# Access key {key_id} ({name}) of Diaspora Streams: keep it to yourself.",
        "bootstrap.servers=" + ",".join(brokers),
        f"security.protocol={protocol}",
        "sasl.mechanism=PLAIN",
        f'sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="{key_id}" password="{secret}";',
    ]
    if protocol == "SASL_SSL" and ca:
        lines += ["ssl.truststore.type=PEM", "ssl.truststore.certificates=" + "\\n".join(ca.splitlines())]
    return "\n".join(lines) + "\n"
