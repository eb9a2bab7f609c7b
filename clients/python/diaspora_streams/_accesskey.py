"""Access keys and key files, by the rules of internal/accesskey of the Go library.

No error shows a secret.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import stat
from dataclasses import dataclass, field
from typing import Mapping

from ._errors import DiasporaError, InsecureFile, Invalid

MAX_FILE_BYTES = 64 << 10

_VARIABLES = ("DIASPORA_URL", "DIASPORA_BOOTSTRAP", "DIASPORA_CA_FILE", "DIASPORA_KEY_ID", "DIASPORA_KEY_SECRET")
_CREDENTIALS = ("DIASPORA_KEY_FILE", "DIASPORA_KEY_ID", "DIASPORA_KEY_SECRET", "DIASPORA_CLIENT_ID", "DIASPORA_REFRESH")
_KNOWN = {*_VARIABLES, *_CREDENTIALS, "DIASPORA_CLIENT_SECRET", "DIASPORA_PROFILE", "DIASPORA_CONFIG_DIR", "DIASPORA_STATE_DIR"}
_ANOTHER = 'make one with "diaspora key create NAME --save-env FILE" where you are logged in'
_QUOTES, _SPECIAL = "\"'`", "'\"`\\$"
_ID = re.compile(r"key-[a-z2-7]{16}", re.ASCII)
_SECRET = re.compile(r"dks_[A-Za-z0-9_-]{43}", re.ASCII)


@dataclass(frozen=True)
class Key:
    """An access key. The secret is not part of its repr."""

    id: str
    secret: str = field(repr=False)


def credential(env: Mapping[str, str]) -> str:
    """Return the variable that says who signs in, or "" if that is the login of a profile."""
    return next((name for name in _CREDENTIALS if env.get(name)), "")


def warn_of_misspelt(env: Mapping[str, str]) -> None:
    """Warn of variables that are probably misspelt: without them, the program may sign in as somebody else."""
    for name in sorted(env):
        if name.startswith("DIASPORA") and name not in _KNOWN and (near := difflib.get_close_matches(name, _KNOWN, 1, 0.85)):
            logging.getLogger("diaspora_streams").warning("%s is set, but there is no such variable; did you mean %s?", name, near[0])


def from_env(env: Mapping[str, str]) -> tuple[Mapping[str, str], dict[str, str]]:
    """Return the environment completed with the variables of the key file, and these alone."""
    for name in ("DIASPORA_CLIENT_ID", "DIASPORA_CLIENT_SECRET"):
        if env.get(name, "").startswith(("key-", "dks_")):
            raise Invalid(
                f"{name} is for a client of Globus, and holds a part of an access key; set DIASPORA_KEY_ID and DIASPORA_KEY_SECRET instead"
            )
    variable = credential(env)
    file: dict[str, str] = {}
    if variable not in _CREDENTIALS[:3]:
        return env, file
    if variable == "DIASPORA_KEY_FILE":
        file = read(env[variable])
        for name in ("DIASPORA_KEY_ID", "DIASPORA_KEY_SECRET"):
            if env.get(name) and env[name] != file.get(name):
                raise Invalid(f"{name} is set, and DIASPORA_KEY_FILE names a file with another key; unset one of them")
    for other in ("DIASPORA_CLIENT_ID", "DIASPORA_REFRESH"):
        if env.get(other):
            raise Invalid(f"{variable} and {other} both say who signs in; unset one of them")
    complete = {**file, **{name: value for name, value in env.items() if value}}
    if wrong := fault(complete.get("DIASPORA_KEY_ID", ""), complete.get("DIASPORA_KEY_SECRET", "")):
        raise Invalid(f"{wrong}; {_ANOTHER}")
    return complete, file


def read(path: str) -> dict[str, str]:
    """Read a key file. It must belong to this user or to root, and be private."""
    path = os.path.abspath(path)
    where = f"DIASPORA_KEY_FILE: key file {path}: "
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening it, which could block
            raise Invalid(f"{where}it is not a file; {_ANOTHER}")
        with open(path, "rb") as f:
            _check_private(where, path, os.fstat(f.fileno()))
            data = f.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise Invalid(f"{where}it does not exist; check the path, or {_ANOTHER}") from None
    except PermissionError:
        raise Invalid(
            f"{where}this user may not read it; have it belong to the user that runs this program, or make a key file of your own"
        ) from None
    except OSError as e:
        raise Invalid(f"{where}{e.strerror}; {_ANOTHER}") from None
    if len(data) > MAX_FILE_BYTES:
        raise Invalid(f"{where}it has more than {MAX_FILE_BYTES} bytes; {_ANOTHER}")
    try:
        return parse(data.decode("utf-8", "replace"))
    except DiasporaError as e:
        raise Invalid(f"{where}{e}; {_ANOTHER}") from None


def _check_private(where: str, path: str, info: os.stat_result) -> None:
    if os.name == "nt":
        return
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise InsecureFile(
            f"{where}others may read or change it (mode {stat.S_IMODE(info.st_mode):04o}); chmod 600 {path}, "
            "and if others may have read it, make another key and revoke this one"
        )
    if not may_own(info.st_uid, os.geteuid()):
        raise InsecureFile(f"{where}it belongs to another user ({info.st_uid}); make a key file of your own")


def may_own(owner: int, user: int) -> bool:
    """Tell whether a user may trust a file of this owner."""
    return owner in (user, 0)


def parse(text: str) -> dict[str, str]:
    """Return the variables that the text of a key file sets. An error says what is wrong, without the file's name."""
    for mark, what in (("sasl.jaas.config", "for Java"), ("sasl.username", "for kcat"), ("{", "in JSON")):
        if text.lstrip().startswith(mark) or mark != "{" and mark in text:
            raise Invalid(f"it is a file {what}, and not of the kind that this program reads")
    found: dict[str, str] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if len(value) >= 2 and value[0] in "'\"" and value[-1] == value[0]:
            value = value[1:-1]
        if not equals or any(c in _SPECIAL for c in value):
            raise Invalid(f"line {number} is not NAME=VALUE")
        if not name.startswith("DIASPORA_"):
            continue  # a variable of another program
        if name not in _VARIABLES:
            raise Invalid(f"line {number} sets something that does not belong into it; it may set {', '.join(_VARIABLES)}")
        if found.get(name):
            raise Invalid(f"{name} is in it twice")
        found[name] = value
    key_id, secret = found.get("DIASPORA_KEY_ID", ""), found.get("DIASPORA_KEY_SECRET", "")
    if not key_id and not secret:
        raise Invalid("there is no key in it")
    if wrong := fault(key_id, secret):
        raise Invalid(wrong)
    return found


def fault(key_id: str, secret: str) -> str:
    """Say what is wrong with an access key, without showing it, or return ""."""
    if not key_id and not secret:
        return ""
    if not key_id or not secret:
        return "DIASPORA_KEY_ID and DIASPORA_KEY_SECRET belong together; one of them is not set"
    if key_id.startswith("dks_"):
        return "DIASPORA_KEY_ID holds the secret of an access key; the ID begins with key-"
    if any(c in _QUOTES for c in key_id):
        return "DIASPORA_KEY_ID has quotation marks in it"
    if not _ID.fullmatch(key_id):
        return "DIASPORA_KEY_ID is not the ID of an access key, which is key- and 16 letters and digits; it is not the name of the key"
    if _SECRET.fullmatch(secret):
        return ""
    if any(c in _QUOTES for c in secret):
        return "DIASPORA_KEY_SECRET has quotation marks in it"
    if secret.startswith("key-"):
        return "DIASPORA_KEY_SECRET holds the ID of an access key; the secret begins with dks_"
    if not secret.startswith("dks_"):
        return "DIASPORA_KEY_SECRET is not the secret of an access key, which begins with dks_"
    if len(secret) < len("dks_") + 43:
        return "DIASPORA_KEY_SECRET is cut off"
    return "DIASPORA_KEY_SECRET is too long, or has characters that a secret cannot have"
