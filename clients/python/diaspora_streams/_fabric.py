"""Which fabric is meant, and how to sign in to it: profiles and the environment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import ssl
import sys
import threading
import time
import urllib.parse
from typing import Any, Callable, Mapping, Optional

from . import _trust
from ._errors import DiasporaError, InsecureFile, LoginRequired
from ._http import call, check_private, is_loopback, status_for
from ._source import WORD, TokenSource, cache_file
from ._store import Token, TokenFile

MAX_PROFILE_BYTES = 1 << 20
ACCEPTED_SECONDS = 1.0  # how long a token that the fabric takes is not asked about again
REFUSED_SECONDS = 60.0  # how long a fabric that takes no token at all is not shown a new one
LOOK_AGAIN_SECONDS = 300.0  # how often confluent-kafka asks for the token

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BROKER = re.compile(r"[A-Za-z0-9_.:%\[\]-]{1,290}:[0-9]{1,5}")


class Fabric:
    """A Diaspora Streams and a login to it. Threads may share it.

    It touches the network when it is first needed.
    """

    def __init__(
        self,
        url: str,
        source: Callable[[Mapping[str, Any]], TokenSource],
        *,
        discovery: Optional[dict[str, Any]] = None,
        brokers: Optional[list[str]] = None,
        ca_file: str = "",
        trusted: Optional[Callable[[Mapping[str, Any]], _trust.Fabric]] = None,
    ) -> None:
        self.url = url
        self._trusted = trusted  # None if the program has chosen where its tokens go
        self._make_source = source
        self._discovery = discovery
        self._brokers = brokers
        self._ca_file = ca_file
        self._mutex = threading.Lock()  # guards the fields below
        self._source: Optional[TokenSource] = None
        self._accepted = ("", 0.0)  # the last access token that the fabric took, and when
        self._replaced = -REFUSED_SECONDS  # when one was replaced that was refused, if none was taken since

    @property
    def discovery(self) -> dict[str, Any]:
        """What the fabric says of itself at /.well-known/diaspora."""
        with self._mutex:
            return self._discovered()

    def _discovered(self) -> dict[str, Any]:
        if self._discovery is None:
            # Whom a refresh token goes to must not be open to forgery.
            url = check_private(self.url, "DIASPORA_URL") + "/.well-known/diaspora"
            answer = call(f"ask {self.url}", url, tls=self._tls_context("") if url.startswith("https") else None)
            if answer.status != 200:
                raise DiasporaError(f"ask {self.url}: status {answer.status}")
            self._discovery = _checked(answer.document)
        return self._discovery

    @property
    def source(self) -> TokenSource:
        """Where the access tokens come from."""
        with self._mutex:
            if self._source is None:
                document = self._discovered()
                if self._trusted is not None:
                    self._trusted(document).check_login()
                self._source = self._make_source(document["globus"])
            return self._source

    def token(self) -> Token:
        """Return a token to sign in with, for a client that is about to connect to one of the brokers."""
        token = self._good_token()
        for broker in self.brokers:
            self._check_host(broker, token)
        return token

    def _check_host(self, address: str, token: Token) -> None:
        """Raise Untrusted unless the token may be sent to an address."""
        if self._trusted is None:
            return
        fabric = self._trusted(self.discovery)
        if self._brokers:
            fabric = dataclasses.replace(fabric, named=(*fabric.named, *self._brokers))
        fabric.check_host(address, token.scope.split())

    def _good_token(self) -> Token:
        """Return a token that the fabric takes, as far as it can be asked.

        A token may end before its time: revoked, or where a clock is wrong. No Kafka client tells
        that it was refused, so the fabric is asked before. A token that it refuses is
        replaced, once; what is refused then, the broker says in words.
        """
        token = self.source.token()
        with self._mutex:
            known, when = self._accepted
        if known == token.access_token and time.monotonic() - when < ACCEPTED_SECONDS:
            return token
        if not self._refuses(token):
            with self._mutex:
                self._accepted = (token.access_token, time.monotonic())
                self._replaced = -REFUSED_SECONDS
            return token
        with self._mutex:
            if time.monotonic() - self._replaced < REFUSED_SECONDS:
                return token
            self._replaced = time.monotonic()
        self.source.refused(token.access_token)
        try:
            return self.source.token()
        except LoginRequired:
            return token

    def _refuses(self, token: Token) -> bool:
        try:
            url = check_private(self.url, "DIASPORA_URL") + "/v1/identity"
            self._check_endpoint(token)
        except DiasporaError:
            return False  # tokens do not go there
        tls = self._tls_context(self.discovery.get("ca", "")) if url.startswith("https") else None
        return status_for(url, token.access_token, tls) == 401

    def _check_endpoint(self, token: Token) -> None:
        if self._trusted is not None:
            self._trusted(self.discovery).check_host(urllib.parse.urlsplit(self.url).netloc, token.scope.split())

    @property
    def brokers(self) -> list[str]:
        """The bootstrap servers, as host:port."""
        return self._brokers or list(self.discovery["brokers"])

    def kafka_python(self) -> dict[str, Any]:
        """Return settings for kafka-python's KafkaProducer, KafkaConsumer and the rest."""
        settings: dict[str, Any] = {
            "bootstrap_servers": self.brokers,
            "sasl_mechanism": "OAUTHBEARER",
            "sasl_oauth_token_provider": self.token_provider(),
            "security_protocol": self._protocol(),
        }
        if settings["security_protocol"] == "SASL_SSL":
            context = self._tls_context(self.discovery.get("ca", ""))
            context.check = lambda host: self._check_host(host, self.source.token())
            settings["ssl_context"] = context
        return settings

    def token_provider(self) -> Any:
        """Return a token provider for the kafka-python that is installed, from 2.0 on."""
        fabric, base = self, _provider_base()

        class TokenProvider(base):  # type: ignore[misc, valid-type]
            def token(self) -> str:
                return fabric.token().access_token

            def extensions(self) -> dict[str, str]:
                return {}

        return TokenProvider()

    def confluent_kafka(self) -> dict[str, Any]:
        """Return settings for confluent-kafka's Producer and Consumer.

        The program must call poll now and then, or tokens are not renewed.
        """
        settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(self.brokers),
            "sasl.mechanisms": "OAUTHBEARER",
            "oauth_cb": self.oauth_cb,
            "security.protocol": self._protocol(),
        }
        if settings["security.protocol"] == "SASL_SSL":
            pem = "\n".join(filter(None, (self.discovery.get("ca", ""), _read_text(self._ca_file))))
            if pem:
                settings["ssl.ca.pem"] = pem
        return settings

    def oauth_cb(self, _config: str = "") -> tuple[str, float]:
        """Be confluent-kafka's oauth_cb: return the token and when it expires."""
        token = self.token()
        return token.access_token, min(token.expiry, time.time() + LOOK_AGAIN_SECONDS)

    def _protocol(self) -> str:
        if self.discovery["security"] == "tls":
            return "SASL_SSL"
        for broker in self.brokers:
            if not is_loopback(broker.rpartition(":")[0].strip("[]")):
                raise DiasporaError(f"broker {broker} offers no TLS, so the access token could be read on its way")
        return "SASL_PLAINTEXT"

    def _tls_context(self, pem: str) -> _trust.GuardedContext:
        context = _trust.GuardedContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if sys.version_info >= (3, 13):  # as ssl.create_default_context does
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
        context.load_default_certs()
        try:
            if pem:
                context.load_verify_locations(cadata=pem)
            if self._ca_file:
                context.load_verify_locations(cafile=self._ca_file)
        except (OSError, ssl.SSLError):
            raise DiasporaError(f"{self._ca_file or 'the CA of the fabric'} holds no PEM certificate") from None
        return context


def _provider_base() -> type:
    """Find the class that providers must derive from. It has moved twice."""
    try:
        from kafka.net.sasl.oauth import AbstractTokenProvider  # 3.0 and later
    except ImportError:
        try:
            from kafka.sasl.oauth import AbstractTokenProvider  # 2.1 to 2.3
        except ImportError:
            from kafka.oauth.abstract import AbstractTokenProvider  # 2.0
    base: type = AbstractTokenProvider
    return base


def from_env(environ: Optional[Mapping[str, str]] = None) -> Fabric:
    """Return the fabric that the environment names, or else that of the stored profile.

    DIASPORA_URL          the fabric's ACL endpoint, in place of a profile's
    DIASPORA_PROFILE      the profile to use, in place of the current one
    DIASPORA_REFRESH      a Globus refresh token to sign in with
    DIASPORA_BOOTSTRAP    bootstrap servers, as host:port,host:port
    DIASPORA_CA_FILE      a PEM file of certificates to trust besides the system's
    DIASPORA_CONFIG_DIR   where profiles are
    GLOBUS_SDK_ENVIRONMENT, GLOBUS_SDK_SERVICE_URL_AUTH
                          another Globus Auth than Globus's own

    The fabric's discovery document does not decide where secrets go. A refresh token is sent to
    Globus's own Globus Auth, or to the one that these variables name. An access token is sent to
    hosts below the host that its scope names at Globus. Where the scope names none, it is sent to
    the hosts that were confirmed by "diaspora login", or to those that the user has named:
    DIASPORA_BOOTSTRAP and, next to it, DIASPORA_URL. A fabric that is wholly on this machine is
    exempt. Otherwise Untrusted is raised.
    """
    env = os.environ if environ is None else environ
    if env.get("DIASPORA_CLIENT_ID"):
        raise DiasporaError("DIASPORA_CLIENT_ID is for programs in Go; here, use DIASPORA_REFRESH or an access key")
    for name in ("DIASPORA_KEY_FILE", "DIASPORA_KEY_ID", "DIASPORA_KEY_SECRET"):
        if env.get(name):  # or the login of somebody else than the key's owner might be taken
            raise DiasporaError(
                f"{name} is for diaspora and programs in Go: give the key to the Kafka client itself, as sasl_plain_username and sasl_plain_password, or unset it"
            )
    folder = env.get("DIASPORA_CONFIG_DIR") or os.path.join(_user_config_dir(env), "diaspora")
    url, profile = _choose(env, folder)
    refresh = env.get("DIASPORA_REFRESH", "").strip()
    if wrong := _refresh_fault(refresh):
        raise DiasporaError(f"DIASPORA_REFRESH {wrong}: set it with: export DIASPORA_REFRESH=$(diaspora token --refresh)")
    tokens = os.path.join(folder, "tokens")
    stored = None if profile is None else _profile(folder, profile)
    named_issuer = _issuer(env)
    if not refresh and profile is None:
        raise LoginRequired(f'nobody is logged in to {url}: run "diaspora login {url}", or set DIASPORA_REFRESH')

    def source(globus: Mapping[str, Any]) -> TokenSource:
        issuer, client_id, server = globus["issuer"].rstrip("/"), globus["client_id"], globus["resource_server"]
        if refresh:
            issuer = named_issuer or issuer
            return TokenSource(issuer, client_id, server, file=cache_file(tokens, issuer, client_id, refresh), refresh_token=refresh)
        return TokenSource(issuer, client_id, server, file=TokenFile(os.path.join(tokens, f"{profile}.json")))

    brokers = _bootstrap(env.get("DIASPORA_BOOTSTRAP", ""))

    def trusted(document: Mapping[str, Any]) -> _trust.Fabric:
        globus = document["globus"]
        return _trust.Fabric(
            url=url,
            brokers=document["brokers"],
            issuer=refresh and named_issuer or globus["issuer"],
            scope=globus.get("scope", ""),
            named_issuer=named_issuer,
            # With the brokers' addresses, nothing is left for the fabric to say.
            named=(urllib.parse.urlsplit(url).netloc,) if brokers and env.get("DIASPORA_URL") else (),
            confirmed=stored is not None and stored.get("confirmed") is True,
            profile=profile or "",
        )

    return Fabric(
        url,
        source,
        discovery=None if stored is None else stored["discovery"],
        brokers=brokers,
        ca_file=env.get("DIASPORA_CA_FILE", ""),
        trusted=trusted,
    )


def _refresh_fault(text: str) -> str:
    """Say why a text cannot be a refresh token, without showing any of it, or return ""."""
    if any(c in text for c in "\"'`"):
        return "has quotation marks in it"
    if any(c.isspace() for c in text):
        return "has blanks or more than one line in it"
    if text.startswith("DIASPORA_REFRESH="):
        return "begins with its own name"
    if text.endswith(("...", "…")):
        return "is cut off"
    if text.startswith("dev-at-"):
        return "holds an access token, which is no refresh token"
    if text.startswith(("key-", "dks_")):
        return "holds an access key, which is no refresh token"
    if text.startswith("eyJ") and text.count(".") == 2:
        return "holds a JWT, which is no refresh token"
    return ""


def _issuer(env: Mapping[str, str]) -> str:
    """Return the Globus Auth that Globus's own variables name, or ""."""
    url, environment = env.get("GLOBUS_SDK_SERVICE_URL_AUTH", ""), env.get("GLOBUS_SDK_ENVIRONMENT", "")
    if url:
        return check_private(url.rstrip("/"), "GLOBUS_SDK_SERVICE_URL_AUTH")
    if environment in ("sandbox", "integration", "test", "staging"):
        return f"https://auth.{environment}.globuscs.info"
    named = {"": "", "production": "https://auth.globus.org", "preview": "https://auth.preview.globus.org"}
    if environment not in named:
        raise DiasporaError("GLOBUS_SDK_ENVIRONMENT: unknown environment")
    return named[environment]


def _choose(env: Mapping[str, str], folder: str) -> tuple[str, Optional[str]]:
    """Return the fabric's URL, and the profile that belongs to it, if there is one."""
    name, raw = env.get("DIASPORA_PROFILE", ""), env.get("DIASPORA_URL", "")
    current = _read_ours(folder, os.path.join(folder, "current"), missing="").strip()
    if not raw:
        name = name or current
        if not name and env.get("DIASPORA_REFRESH"):
            raise DiasporaError(
                "DIASPORA_REFRESH says who signs in, but neither a profile nor DIASPORA_URL says to which fabric: set DIASPORA_URL as well"
            )
        if not name:
            raise DiasporaError(
                'no profile is stored and neither DIASPORA_URL nor DIASPORA_PROFILE is set: run "diaspora login URL", or "diaspora up"'
            )
        return _base(_profile(folder, name)["url"]), name
    url = _base(raw)
    for candidate in [name] if name else [current, *_names(folder)]:
        try:
            if candidate and _base(_profile(folder, candidate)["url"]) == url:
                return url, candidate
        except DiasporaError:
            if name:
                raise
    if name:
        raise DiasporaError("DIASPORA_URL and DIASPORA_PROFILE name different fabrics")
    return url, None


def _names(folder: str) -> list[str]:
    try:
        files = sorted(os.listdir(os.path.join(folder, "profiles")))
    except FileNotFoundError:
        return []
    return [f[: -len(".json")] for f in files if f.endswith(".json") and _NAME.fullmatch(f[: -len(".json")])]


def _profile(folder: str, name: str) -> dict[str, Any]:
    if not _NAME.fullmatch(name):
        raise DiasporaError("a profile's name has letters, digits, and inside also dots, hyphens and underscores")
    path = os.path.join(folder, "profiles", name + ".json")
    try:
        profile = json.loads(_read_ours(folder, path))
        if not isinstance(profile, dict) or not isinstance(profile.get("url"), str):
            raise ValueError
    except FileNotFoundError:
        raise DiasporaError(f'profile "{name}": nobody has logged in under this name: run "diaspora login"') from None
    except ValueError:
        raise DiasporaError(f"{path} is damaged: log in again to replace it") from None
    _checked(profile.get("discovery"))
    return profile


def _checked(discovery: Any) -> dict[str, Any]:
    """Return a discovery document if it is one."""
    bad = DiasporaError("the fabric's discovery document cannot be used")
    if not isinstance(discovery, dict) or discovery.get("security") not in ("tls", "plaintext"):
        raise bad
    brokers, globus = discovery.get("brokers"), discovery.get("globus")
    if not isinstance(brokers, list) or not 0 < len(brokers) <= 1000 or not isinstance(globus, dict):
        raise bad
    if not all(isinstance(b, str) and _BROKER.fullmatch(b) for b in brokers) or not isinstance(discovery.get("ca", ""), str):
        raise bad
    if not all(isinstance(globus.get(name), str) and WORD.fullmatch(globus[name]) for name in ("issuer", "client_id", "resource_server")):
        raise bad
    if not isinstance(globus.get("scope", ""), str):
        raise bad
    check_private(globus["issuer"], "issuer of Globus Auth")
    return discovery


def _base(raw: str) -> str:
    """Return the base URL of an ACL endpoint. It takes what people paste."""
    parts = urllib.parse.urlsplit(raw.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.password is not None:
        raise DiasporaError("the fabric's URL is not like https://host")
    path = parts.path.rstrip("/")
    for end in ("/.well-known/diaspora", "/acl"):
        if path.endswith(end):
            path = path[: -len(end)]
    return f"{parts.scheme}://{parts.netloc}{path.rstrip('/')}"


def _bootstrap(text: str) -> Optional[list[str]]:
    brokers = [b.strip() for b in text.split(",")] if text else []
    if not all(_BROKER.fullmatch(b) for b in brokers):
        raise DiasporaError("DIASPORA_BOOTSTRAP: want host:port,host:port")
    return brokers or None


def _user_config_dir(env: Mapping[str, str]) -> str:
    """Return what os.UserConfigDir of Go returns."""
    if sys.platform == "darwin":
        return os.path.join(os.path.expanduser("~"), "Library", "Application Support")
    if os.name == "nt":
        return env.get("AppData") or env.get("APPDATA") or os.path.expanduser("~")
    return env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")


def _read_ours(folder: str, path: str, missing: Optional[str] = None) -> str:
    """Read a file that says where tokens are sent: one that nobody else can change or replace."""
    for place in (folder, os.path.dirname(path), path) if os.name != "nt" else ():
        with contextlib.suppress(FileNotFoundError):
            if os.stat(place).st_mode & 0o022:
                raise InsecureFile(f'others may change {place}, which decides where tokens are sent: check it, then run "chmod go-w {place}"')
    return _read_text(path, missing)


def _read_text(path: str, missing: Optional[str] = None) -> str:
    if not path:
        return ""
    try:
        with open(path, encoding="utf-8") as f:
            text = f.read(MAX_PROFILE_BYTES + 1)
    except FileNotFoundError:
        if missing is None:
            raise
        return missing
    except OSError as e:
        raise DiasporaError(f"read {path}: {e.strerror}") from None
    if len(text) > MAX_PROFILE_BYTES:
        raise DiasporaError(f"{path} is too large")
    return text
