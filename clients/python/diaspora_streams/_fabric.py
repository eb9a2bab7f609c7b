"""Which fabric is meant, and how to sign in to it: profiles and the environment."""

from __future__ import annotations

import asyncio
import base64
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

from . import _accesskey, _trust
from ._errors import DiasporaError, InsecureFile, Invalid, LoginRequired, NoProfile, NotFound, Unauthenticated, Unavailable
from ._http import Answer, call, check_private, is_loopback, look, printable
from ._source import WORD, ClientSource, TokenSource, cache_file
from ._store import Token, TokenFile

MAX_PROFILE_BYTES = 1 << 20
ACCEPTED_SECONDS = 1.0  # how long a token that the fabric takes is not asked about again
REFUSED_SECONDS = 60.0  # how long a fabric that takes no token at all is not shown a new one
LOOK_AGAIN_SECONDS = 300.0  # how often confluent-kafka asks for the token

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BROKER = re.compile(r"[A-Za-z0-9_.:%\[\]-]{1,290}:[0-9]{1,5}")


class Fabric:
    """An installation of Diaspora Streams, and a login or an access key for it. Threads may share it.

    It uses the network when it is first needed.
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
        key: Optional[_accesskey.Key] = None,
    ) -> None:
        self.url = url
        self._key = key  # to sign in with, instead of tokens
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
            try:
                answer = call(f"discover the fabric at {self.url}", url, tls=self._tls_context("") if url.startswith("https") else None)
            except Unavailable as e:
                raise Unavailable(f'{e}; "diaspora doctor" finds out why') from None
            if answer.status != 200:
                raise DiasporaError(f"discover the fabric at {self.url}: status {answer.status}")
            self._discovery = _checked(answer.document)
        return self._discovery

    @property
    def source(self) -> TokenSource:
        """Where the access tokens come from."""
        if self._key is not None:
            raise Unauthenticated("this fabric is used with an access key, which has no token; unset it to use a login")
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
            self._check_endpoint(token)
            return self._look("/v1/identity", "Bearer " + token.access_token).status == 401
        except DiasporaError:
            return False  # tokens do not go there

    def _check_credential(self) -> None:
        """Raise Unauthenticated if the access key or the login is refused. No Kafka client says so: they try again until they time out."""
        if self._key is None:
            self._check_login()
        else:
            self._check_key()

    def _check_login(self) -> None:
        try:
            token = self.token()
        except Unavailable:
            return  # the Kafka client tries again
        with self._mutex:
            accepted, _ = self._accepted
        if accepted != token.access_token and self._refuses(token):
            raise LoginRequired(f'sign in to {self.url}: the fabric does not accept this login; run "diaspora login {self.url}"')

    def _check_key(self) -> None:
        answer = self._ask_about_key()
        if answer is None or answer.status != 401:
            return  # also if the ACL endpoint cannot be reached, as long as the brokers can
        said = answer.document.get("detail") if isinstance(answer.document, dict) else None
        reason = printable(str(said or "the access key is not accepted")[:500])
        raise Unauthenticated(
            f'sign in to {self.url}: {reason}; make another access key with "diaspora key create NAME --save-env FILE" '
            "(and the same --topic, --read or --write) where its owner is logged in, and use it instead"
        )

    def _ask_about_key(self) -> Optional[Answer]:
        """Ask the ACL endpoint what the access key is, and may do. Return None if none signs in."""
        if self._key is None:
            return None
        basic = base64.b64encode(f"{self._key.id}:{self._key.secret}".encode()).decode()
        return self._look(f"/v1/keys/{self._key.id}", "Basic " + basic)

    def _look(self, path: str, authorization: str) -> Answer:
        url = check_private(self.url, "DIASPORA_URL") + path
        return look(url, authorization, self._tls_context(self.discovery.get("ca", "")) if url.startswith("https") else None)

    def _check_endpoint(self, token: Token) -> None:
        if self._trusted is not None:
            self._trusted(self.discovery).check_host(urllib.parse.urlsplit(self.url).netloc, token.scope.split())

    @property
    def brokers(self) -> list[str]:
        """The bootstrap servers, as host:port."""
        return self._brokers or list(self.discovery["brokers"])

    def kafka_python(self) -> dict[str, Any]:
        """Return settings for kafka-python's KafkaProducer, KafkaConsumer and the rest."""
        settings = self._settings(lambda host: self._check_host(host, self.source.token()))
        if self._key is None:
            settings["sasl_oauth_token_provider"] = self.token_provider()
        return settings

    def _settings(self, check: Callable[[str], None]) -> dict[str, Any]:
        """Return the settings of kafka-python and aiokafka, except for the token provider."""
        self._check_credential()
        settings: dict[str, Any] = {"bootstrap_servers": self.brokers, "security_protocol": self._protocol()}
        if self._key is None:
            settings["sasl_mechanism"] = "OAUTHBEARER"
        else:
            settings.update(sasl_mechanism="PLAIN", sasl_plain_username=self._key.id, sasl_plain_password=self._key.secret)
        if settings["security_protocol"] == "SASL_SSL":
            context = settings["ssl_context"] = self._tls_context(self.discovery.get("ca", ""))
            if self._key is None:
                context.check = check
        return settings

    async def aiokafka(self) -> dict[str, Any]:
        """Return settings for aiokafka's AIOKafkaProducer and AIOKafkaConsumer.

        It must be awaited, because it may ask the ACL endpoint and Globus Auth. That, and each
        renewal of a token, happens in another thread, so the event loop goes on.
        """
        from aiokafka.abc import AbstractTokenProvider

        fabric = self
        granted: list[Token] = []

        def get() -> Token:
            token = fabric.token()
            granted[:] = [token]  # for the check, which must not wait for a renewal
            return token

        class TokenProvider(AbstractTokenProvider):  # type: ignore[misc, unused-ignore]
            async def token(self) -> str:
                return (await asyncio.get_running_loop().run_in_executor(None, get)).access_token

        def settings() -> dict[str, Any]:
            if fabric._key is None:
                get()
            return fabric._settings(lambda host: fabric._check_host(host, granted[0]))

        found = await asyncio.get_running_loop().run_in_executor(None, settings)
        if self._key is None:
            found["sasl_oauth_token_provider"] = TokenProvider()
        return found

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

        With a login, the program must call poll regularly, because tokens are renewed during poll.
        """
        self._check_credential()
        settings: dict[str, Any] = {"bootstrap.servers": ",".join(self.brokers), "security.protocol": self._protocol()}
        if self._key is None:
            settings.update({"sasl.mechanisms": "OAUTHBEARER", "oauth_cb": self.oauth_cb})
        else:
            settings.update({"sasl.mechanisms": "PLAIN", "sasl.username": self._key.id, "sasl.password": self._key.secret})
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
                what = "access token" if self._key is None else "access key"
                raise Invalid(f"broker {broker} offers no TLS, so the {what} could be read on its way")
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
            raise Invalid(f"{self._ca_file or 'the CA of the fabric'} holds no PEM certificate") from None
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

    DIASPORA_URL          the fabric's ACL endpoint, instead of that of a profile
    DIASPORA_PROFILE      the profile to use, instead of the current one
    DIASPORA_REFRESH      a Globus refresh token to sign in with
    DIASPORA_CLIENT_ID    the ID of a Globus client to sign in as
    DIASPORA_CLIENT_SECRET
                          the secret of that client
    DIASPORA_KEY_FILE     a file that holds an access key to sign in with and the URL of its
                          fabric, as written by "diaspora key create --save-env"
    DIASPORA_KEY_ID       the ID of an access key to sign in with, if there is no such file
    DIASPORA_KEY_SECRET   the secret of that access key
    DIASPORA_BOOTSTRAP    bootstrap servers, as host:port,host:port
    DIASPORA_CA_FILE      a PEM file of certificates to trust in addition to the system's
    DIASPORA_CONFIG_DIR   the folder that holds the profiles
    GLOBUS_SDK_ENVIRONMENT, GLOBUS_SDK_SERVICE_URL_AUTH
                          a Globus Auth to use instead of Globus's own

    The fabric's discovery document does not decide where secrets are sent. A refresh token or client
    secret is sent only to Globus's own Globus Auth, or to the one that the variables name. An access
    token is sent to the host that its scope names at Globus, and to hosts below it. If the scope
    names no host, the token is sent to the hosts that the user confirmed at "diaspora login", or to
    those that DIASPORA_BOOTSTRAP and, together with it, DIASPORA_URL name. An access key is sent only
    to the fabric that is named together with it: in the key file, or by DIASPORA_URL or
    DIASPORA_PROFILE. The rules for tokens do not apply to a fabric that runs entirely on this
    machine. If a secret may not be sent, Untrusted is raised.
    """
    given = os.environ if environ is None else environ
    _accesskey.warn_of_misspelt(given)
    env, file = _accesskey.from_env(given)
    by = _accesskey.credential(env)
    if by in ("DIASPORA_KEY_FILE", "DIASPORA_KEY_ID", "DIASPORA_KEY_SECRET") and not env.get("DIASPORA_URL") and not env.get("DIASPORA_PROFILE"):
        raise NoProfile(
            f"{by} says who signs in, but not to which fabric, and a key is sent only to the fabric that issued it; "
            "set DIASPORA_URL as well, to the address of the fabric that made the key"
        )
    folder = env.get("DIASPORA_CONFIG_DIR") or os.path.join(_user_config_dir(env), "diaspora")
    url, profile = _choose(env, folder, file)
    stored = None if profile is None else _profile(folder, profile)
    discovery = None if stored is None else stored["discovery"]
    brokers, ca_file = _bootstrap(env.get("DIASPORA_BOOTSTRAP", "")), env.get("DIASPORA_CA_FILE", "")
    key = _key(env, file, url)
    if key is not None:
        return Fabric(url, _no_source, discovery=discovery, brokers=brokers, ca_file=ca_file, key=key)
    client, secret = env.get("DIASPORA_CLIENT_ID", ""), env.get("DIASPORA_CLIENT_SECRET", "")
    if bool(client) != bool(secret):
        raise Invalid("DIASPORA_CLIENT_ID and DIASPORA_CLIENT_SECRET belong together; one of them is not set")
    refresh = "" if client else env.get("DIASPORA_REFRESH", "").strip()
    if wrong := _refresh_fault(refresh):
        raise Invalid(f"DIASPORA_REFRESH {wrong}: set it with: export DIASPORA_REFRESH=$(diaspora token --refresh)")
    tokens = os.path.join(folder, "tokens")
    named_issuer = _issuer(env)
    if not refresh and not client and profile is None:
        raise LoginRequired(f'nobody is logged in to {url}; run "diaspora login {url}", or set DIASPORA_REFRESH or DIASPORA_KEY_FILE')

    def source(globus: Mapping[str, Any]) -> TokenSource:
        issuer, client_id, server = globus["issuer"].rstrip("/"), globus["client_id"], globus["resource_server"]
        if client:
            return ClientSource(named_issuer or issuer, client, secret, server, globus.get("scope", ""))
        if refresh:
            issuer = named_issuer or issuer
            return TokenSource(issuer, client_id, server, file=cache_file(tokens, issuer, client_id, refresh), refresh_token=refresh)
        return TokenSource(issuer, client_id, server, file=TokenFile(os.path.join(tokens, f"{profile}.json")))

    def trusted(document: Mapping[str, Any]) -> _trust.Fabric:
        globus = document["globus"]
        return _trust.Fabric(
            url=url,
            brokers=document["brokers"],
            issuer=(refresh or client) and named_issuer or globus["issuer"],
            scope=globus.get("scope", ""),
            named_issuer=named_issuer,
            # With the brokers' addresses, nothing is left for the fabric to say.
            named=(urllib.parse.urlsplit(url).netloc,) if brokers and env.get("DIASPORA_URL") else (),
            confirmed=stored is not None and stored.get("confirmed") is True,
            profile=profile or "",
        )

    return Fabric(url, source, discovery=discovery, brokers=brokers, ca_file=ca_file, trusted=trusted)


def _key(env: Mapping[str, str], file: Mapping[str, str], url: str) -> Optional[_accesskey.Key]:
    """Return the access key of the environment, if it has one. A key from a file is for the file's fabric only."""
    if not env.get("DIASPORA_KEY_ID"):
        return None
    if file.get("DIASPORA_URL") and _base(file["DIASPORA_URL"]) != url:
        raise Invalid(
            f"the key file {os.path.abspath(env['DIASPORA_KEY_FILE'])} is of the fabric {_base(file['DIASPORA_URL'])}, and not of {url}; "
            "unset DIASPORA_URL, since the key file says it"
        )
    return _accesskey.Key(env["DIASPORA_KEY_ID"], env["DIASPORA_KEY_SECRET"])


def _no_source(_globus: Mapping[str, Any]) -> TokenSource:
    raise AssertionError("an access key needs no tokens")


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
        raise Invalid("GLOBUS_SDK_ENVIRONMENT: unknown environment")
    return named[environment]


def _choose(env: Mapping[str, str], folder: str, file: Mapping[str, str]) -> tuple[str, Optional[str]]:
    """Return the fabric's URL, and the profile that belongs to it, if there is one."""
    name, raw = env.get("DIASPORA_PROFILE", ""), env.get("DIASPORA_URL", "")
    current = _read_ours(folder, os.path.join(folder, "current"), missing="").strip()
    if not raw:
        name = name or current
        if not name and (by := _accesskey.credential(env)):
            raise NoProfile(
                f"{by} says who signs in, but neither a profile nor DIASPORA_URL says to which fabric; "
                'set DIASPORA_URL as well, to the address that "diaspora login URL" takes'
            )
        if not name:
            raise NoProfile(
                'no profile is stored and neither DIASPORA_URL nor DIASPORA_PROFILE is set; run "diaspora login URL" for an existing fabric, '
                'or "diaspora up" for one on this machine; in a batch job, set DIASPORA_KEY_FILE to a file made by "diaspora key create NAME --save-env FILE"'
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
    if name and file.get("DIASPORA_URL") == raw:
        raise Invalid(f'the key file {os.path.abspath(env["DIASPORA_KEY_FILE"])} is of another fabric than the profile "{name}"')
    if name:
        raise Invalid("DIASPORA_URL and DIASPORA_PROFILE name different fabrics")
    return url, None


def _names(folder: str) -> list[str]:
    try:
        files = sorted(os.listdir(os.path.join(folder, "profiles")))
    except FileNotFoundError:
        return []
    return [f[: -len(".json")] for f in files if f.endswith(".json") and _NAME.fullmatch(f[: -len(".json")])]


def _profile(folder: str, name: str) -> dict[str, Any]:
    if not _NAME.fullmatch(name):
        raise Invalid("a profile's name has letters, digits, and inside also dots, hyphens and underscores")
    path = os.path.join(folder, "profiles", name + ".json")
    try:
        profile = json.loads(_read_ours(folder, path))
        if not isinstance(profile, dict) or not isinstance(profile.get("url"), str):
            raise ValueError
    except FileNotFoundError:
        raise NotFound(f'profile "{name}": nobody has logged in under this name: run "diaspora login"') from None
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
        raise Invalid("the fabric's URL is not like https://host")
    path = parts.path.rstrip("/")
    for end in ("/.well-known/diaspora", "/acl"):
        if path.endswith(end):
            path = path[: -len(end)]
    return f"{parts.scheme}://{parts.netloc}{path.rstrip('/')}"


def _bootstrap(text: str) -> Optional[list[str]]:
    brokers = [b.strip() for b in text.split(",")] if text else []
    if not all(_BROKER.fullmatch(b) for b in brokers):
        raise Invalid("DIASPORA_BOOTSTRAP: want host:port,host:port")
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
