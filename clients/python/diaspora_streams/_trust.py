"""Where secrets may go, by the rules of package trust of the Go library.

Both read the table of cases next to that package in their tests.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import ssl
import urllib.parse
from typing import Any, Callable, Optional, Sequence

from ._errors import Untrusted

GLOBUS = "https://auth.globus.org"

_PREFIX = "https://auth.globus.org/scopes/"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_FQDN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_SUFFIX = re.compile(r"[A-Za-z0-9_.~:/-]+", re.ASCII)
_URN = re.compile(r"urn:globus:auth:scope:([A-Za-z0-9_.-]+):", re.ASCII)
_GLOBUS_APIS = {
    "524230d7-ea86-4a52-8312-86065a9e0417": "Globus Timers",
    "eec9b274-0c81-4334-bdc2-54e90e689b9a": "Globus Flows",
    "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9": "Globus Compute",
}


@dataclasses.dataclass(frozen=True)
class Fabric:
    """What an ACL endpoint says of its fabric, and what the user has said.

    Anybody can run an ACL endpoint, so its word alone decides nothing. It asks nobody and
    keeps nothing.
    """

    url: str = ""  # of the ACL endpoint
    brokers: Sequence[str] = ()  # as host:port
    issuer: str = ""  # the Globus Auth that is in use; empty is Globus's own
    scope: str = ""  # what tokens are asked for
    named_issuer: str = ""  # a Globus Auth that the user has named
    named: Sequence[str] = ()  # hosts that the user has named, with or without a port
    confirmed: bool = False  # "diaspora login" had the user confirm all that the endpoint says
    profile: str = ""  # where that login is stored, for hints

    def local(self) -> bool:
        """Tell whether all of the fabric is on this machine."""
        hosts = [_url_host(self.url), _url_host(self.issuer), *map(host_of, self.brokers)]
        return all(map(_loopback, hosts))

    def check_login(self) -> None:
        """Raise Untrusted unless a refresh token may be shown to the fabric's Globus Auth."""
        if self.local():
            return
        issuer = self.issuer.rstrip("/")
        if issuer not in ("", GLOBUS, self.named_issuer.rstrip("/")) and not self.confirmed:
            raise Untrusted(
                f"the fabric names a Globus Auth of its own, and {issuer[:200]} is not Globus: nothing secret is sent there; "
                "check the URL of the fabric; to use another Globus Auth than Globus's own, name it in GLOBUS_SDK_SERVICE_URL_AUTH"
            )
        _owner(self.scope)

    def check_host(self, address: str, scopes: Sequence[str]) -> None:
        """Raise Untrusted unless a token that is good for the scopes may be sent to an address."""
        host = host_of(address)
        if _loopback(host) and self.local():
            return
        named = host in map(host_of, self.named)
        if not scopes and not named:
            raise Untrusted(f"Globus Auth does not say what the token is good for, so it is not sent to {host[:200]}; log in again")
        for scope in scopes:
            name, verified = _owner(scope)
            if named:
                continue
            # The ACL endpoint has to be trusted as well: it says whose certificates to believe.
            for each in (_url_host(self.url), host):
                self._check_owner(each, scope, name, verified)

    def _check_owner(self, host: str, scope: str, name: str, verified: bool) -> None:
        if verified and (host == name or host.endswith("." + name)):
            return
        confirmed = self.confirmed and _owner(self.scope)[0] == name
        if confirmed and host in (_url_host(self.url), *map(host_of, self.brokers)):
            return
        if verified:
            raise Untrusted(
                f"at Globus, the scope {scope[:200]} belongs to {name}, and {host[:200]} is not below {name}: no token is sent there; "
                "check the URL of the fabric; if it is right, tell the operator"
            )
        if confirmed:
            raise Untrusted(
                f"{host[:200]} is not among the hosts that were confirmed when you logged in, so no token is sent there; "
                "ask the operator to list every gateway in acl-bootstrap and log in again, or name the brokers in DIASPORA_BOOTSTRAP"
            )
        hint = f'run "diaspora login {self.url[:200]}" to see and confirm its hosts, or name the brokers in DIASPORA_BOOTSTRAP'
        if self.profile:
            hint = f'run "diaspora login --profile {self.profile}" to see and confirm its hosts'
        raise Untrusted(f"the scope {scope[:200]} names no host, and nobody has confirmed that its tokens may go to {host[:200]}; {hint}")


def _owner(scope: str) -> tuple[str, bool]:
    """Return whose scope it is: a host that Globus has verified (True), or the UUID of an API."""
    rest = scope[len(_PREFIX) :] if scope.startswith(_PREFIX) else ""
    name, _, suffix = rest.partition("/")
    name = _lower(name)
    urn = _URN.match(scope)
    what = f'"{scope[:200]}"'
    if not scope:
        what = "no scope at all"
    elif any(c in scope for c in " \t\r\n[]*"):
        what += ", which is not one scope"
    elif urn:
        what += f", a scope of {urn.group(1)[:200]}"
    elif not rest or not _SUFFIX.fullmatch(suffix):
        what += f", which is not a scope like {_PREFIX}HOST/NAME"
    elif name in _GLOBUS_APIS:
        what += f", a scope of {_GLOBUS_APIS[name]}"
    elif _UUID.fullmatch(name):
        if suffix not in ("data_access", "https"):
            return name, False
        what += ", a scope for the files of a Globus collection"
    elif not _FQDN.fullmatch(name):
        what += ", which names neither a host nor an API"
    elif ("." + name).endswith((".globus.org", ".globuscs.info")):
        what += ", a scope of Globus itself"
    else:
        return name, True
    raise Untrusted(
        f"a fabric has a scope of its own at Globus, and this one asks for {what}; check the URL of the fabric; if it is right, tell the operator"
    )


def host_of(address: str) -> str:
    """Return the host of an address in the one form in which it is compared."""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::[^:]*)?", address)
    if bracketed:
        host = bracketed.group(1)
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    else:
        host = address
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        host = _lower(host)
        return host[:-1] if host.endswith(".") else host
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def _url_host(url: str) -> str:
    try:
        return host_of(urllib.parse.urlsplit(url).netloc)
    except ValueError:
        return ""


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _lower(text: str) -> str:
    """Be str.lower for ASCII alone: letters beyond it may have an ASCII letter as their small form."""
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)


class GuardedContext(ssl.SSLContext):
    """An SSLContext that connects only to hosts to which a check lets the token go.

    kafka-python and aiokafka do not say to which broker they send a token, and a cluster may
    name other brokers than the bootstrap servers. Every connection to them passes here.
    """

    check: Optional[Callable[[str], None]] = None

    def wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        self._check(kwargs.get("server_hostname"))
        return super().wrap_socket(sock, *args, **kwargs)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        self._check(kwargs.get("server_hostname") or (args[3] if len(args) > 3 else None))
        return super().wrap_bio(*args, **kwargs)

    def _check(self, host: Optional[str]) -> None:
        if self.check is not None:
            try:
                self.check(str(host or ""))
            except Untrusted as e:
                raise ssl.SSLError(1, str(e)) from None  # which is how a client expects a connection to fail
