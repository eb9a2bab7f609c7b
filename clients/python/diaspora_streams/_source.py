"""Access tokens that are good now, by the rules of package globus of the Go library."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Mapping, Optional

from ._errors import DiasporaError, LoginRequired, Unauthenticated, Unavailable
from ._http import call, check_private, may_pass
from ._store import VERSION, Damaged, Token, TokenFile, set_token, token_of

REFRESH_AHEAD_SECONDS = 60.0  # plus up to half as much, so that programs do not ask together
GOOD_WAIT_SECONDS = 2.0  # for a fresh token, when the old one is still good
RENEW_SECONDS = 45.0  # for a renewal, waiting for other programs included
UNSTATED_LIFETIME_SECONDS = 3600.0
MAX_LIFETIME_SECONDS = 366 * 86400.0

WORD = re.compile(r"[!-~]{1,1000}")  # of ASCII, without spaces
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}")


class TokenSource:
    """Yields an access token that is good now. Threads may share it.

    A token is renewed ahead of its end; when that fails or takes long, the old one
    is served while it is good. All sources on one token file refresh in turn, in
    whatever process, and see each other's results.
    """

    def __init__(
        self, issuer: str, client_id: str, resource_server: str, *, file: Optional[TokenFile] = None, refresh_token: str = ""
    ) -> None:
        self._issuer = check_private(issuer.rstrip("/"), "issuer of Globus Auth")
        self._client_id = client_id
        self._resource_server = resource_server
        self._file = file
        self._seed = refresh_token
        self._ahead = REFRESH_AHEAD_SECONDS * (1 + random.random() / 2)

        self._mutex = threading.Lock()  # guards the next five
        self._token: Optional[Token] = None
        self._refused = ""  # an access token that a service refused before its expiry
        self._flight: Optional[Future[Token]] = None
        self._failures = 0
        self._retry_at = 0.0

        # Of the one renewal at a time.
        self._subject: Optional[str] = None
        self._spent: set[str] = set()  # hashes of refresh tokens that Globus Auth has called dead
        self._unsaved: Optional[Token] = None  # counts while the file still holds what it replaces
        self._replaces = ""

    def __repr__(self) -> str:
        return f"TokenSource({self._resource_server})"

    def token(self) -> Token:
        """Return a token that is good now, or raise LoginRequired or Unavailable."""
        with self._mutex:
            token = self._token
            if token is not None and self._good(token) and (not self._due(token) or time.time() < self._retry_at):
                return token
            flight = self._flight
            if flight is None:
                flight = Future()
                # Not a daemon: at its end the program waits, for a rotated
                # refresh token might be lost on the way.
                threading.Thread(target=self._fly, args=(flight,), name="diaspora-refresh").start()
                self._flight = flight
        while True:
            try:
                return flight.result(GOOD_WAIT_SECONDS)
            except FutureTimeout:
                with self._mutex:
                    token = self._token
                if token is not None and self._good(token):
                    return token

    def refused(self, access_token: str) -> None:
        """Be told that a service refused this token although it has not expired: the next one is another."""
        with self._mutex:
            if self._token is not None and self._token.access_token == access_token:
                self._refused = access_token

    def _good(self, token: Token) -> bool:
        return token.access_token not in ("", self._refused) and time.time() < token.expiry

    def _due(self, token: Token) -> bool:
        ahead = self._ahead
        life = token.expiry - token.obtained
        if token.obtained > 0 and life > 0:
            ahead = min(ahead, life / 4)  # tokens of a minute are not renewed all the time
        return not self._good(token) or token.expiry - time.time() <= ahead

    def _enough(self, token: Token) -> bool:
        if self._good(token):
            with self._mutex:
                self._token = token  # for those who wait
        return not self._due(token)

    def _fly(self, flight: Future[Token]) -> None:
        try:
            token = self._renew()
        except BaseException as e:
            with self._mutex:
                self._flight = None
                kept = self._token
                if kept is not None and (isinstance(e, LoginRequired) or not self._good(kept)):
                    kept = self._token = None
                if kept is not None:
                    self._failures += 1
                    asked = e.retry_after if isinstance(e, Unavailable) else 0.0
                    self._retry_at = time.time() + max(asked, 2.0 ** min(self._failures, 5) + random.random())
            if kept is not None:
                flight.set_result(kept)
            else:
                flight.set_exception(e)
            return
        with self._mutex:
            self._flight = None
            self._token, self._failures, self._retry_at = token, 0, 0.0
        flight.set_result(token)

    def _renew(self) -> Token:
        token = self._current()
        if self._enough(token):
            return token
        if self._file is None:
            return self._renew_in_turn()
        if self._seed:
            try:
                self._file.make_folder()
            except OSError:
                pass  # saving will say so
        with self._file.lock(time.monotonic() + RENEW_SECONDS):
            return self._renew_in_turn()

    def _renew_in_turn(self) -> Token:
        while True:
            # Again, now that nobody else renews: most often it has just been done.
            token = self._current()
            if self._enough(token):
                return token
            if not token.refresh_token:
                raise LoginRequired("login required: the access token has expired and came without a refresh token")
            if _hash(token.refresh_token) in self._spent:
                raise LoginRequired("login required: the refresh token has expired or was revoked")
            try:
                fresh = self._refresh(token.refresh_token)
            except LoginRequired:
                # Dead. But with a token to begin with there may be another one.
                self._forget(token)
            else:
                return self._keep(token, fresh)

    def _current(self) -> Token:
        """Return the token at hand: the file's, what could not be saved, or the one to begin with."""
        stored: Optional[Token] = None
        failure: Optional[DiasporaError] = None
        try:
            stored = self._stored()
        except DiasporaError as e:
            failure = e
        if self._unsaved is not None and (stored is None or _hash(stored.refresh_token) == self._replaces):
            return self._unsaved
        if self._seed:
            lost = isinstance(failure, (LoginRequired, Damaged))
            if lost or stored is not None and _hash(stored.refresh_token) in self._spent:
                return Token("", self._seed, self._resource_server, "", 0.0, 0.0)
        if stored is None:
            assert failure is not None
            raise failure
        return stored

    def _stored(self) -> Token:
        if self._file is None:
            raise LoginRequired("login required: no refresh token")
        token = token_of(self._content(), self._resource_server)
        if token is None:
            raise LoginRequired(f"login required: no token for {self._resource_server} in {self._file.path}")
        return token

    def _content(self) -> dict[str, Any]:
        """Read the file, if it is still the login that this source began with."""
        assert self._file is not None
        content = self._file.read()
        # A refresh token is shown to nobody but who issued it.
        for name, mine in (("issuer", self._issuer), ("client_id", self._client_id)):
            if content.get(name) not in (None, "", mine):
                raise LoginRequired(f"login required: {self._file.path} is of another {name}")
        # Whoever logs events as Ada does not go on as Bob.
        subject = str(content["identity"].get("subject", ""))
        if self._subject is None or self._subject == "":
            self._subject = subject
        if subject != self._subject:
            raise LoginRequired(f"login required: {self._file.path} now holds somebody else's login")
        return content

    def _keep(self, old: Token, fresh: Token) -> Token:
        """Save a new token, and only then hand it out."""
        try:
            self._save(fresh)
            self._unsaved = fresh if self._file is None else None
        except LoginRequired:
            raise  # logged out meanwhile
        except (OSError, DiasporaError):
            if self._unsaved is None:
                self._replaces = _hash(old.refresh_token)
            self._unsaved = fresh
        if fresh.resource_server != self._resource_server:
            raise LoginRequired(f"login required: the refresh token is for {fresh.resource_server}, not for {self._resource_server}")
        return fresh

    def _save(self, token: Token) -> None:
        if self._file is None:
            return
        try:
            content = self._content()
        except (LoginRequired, Damaged):
            if not self._seed:
                raise
            content = {
                "version": VERSION,
                "issuer": self._issuer,
                "client_id": self._client_id,
                "identity": {"subject": "", "username": ""},
                "tokens": {},
            }
        set_token(content, token)
        self._file.write(content)

    def _forget(self, token: Token) -> None:
        """Drop a token whose refresh token is dead, wherever it is."""
        self._spent.add(_hash(token.refresh_token))
        if self._unsaved is not None and self._unsaved.refresh_token == token.refresh_token:
            self._unsaved = None
        if self._file is None:
            return
        try:
            content = self._content()
            have = token_of(content, self._resource_server)
            if have is not None and have.refresh_token == token.refresh_token:
                del content["tokens"][self._resource_server]
                self._file.write(content)
        except (OSError, DiasporaError):
            pass  # it is known to be dead, and not used again

    def _refresh(self, refresh_token: str) -> Token:
        if not _TOKEN.fullmatch(refresh_token):
            raise LoginRequired("login required: the refresh token has characters that no token has")
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": self._client_id}
        return self._ask("refresh token", form, refresh_token)

    def _ask(self, op: str, form: dict[str, str], refresh_token: str = "", headers: Mapping[str, str] = {}) -> Token:
        """Ask the token endpoint for a token. refresh_token is the one to keep if the answer has no other."""
        answer = call(op, self._issuer + "/v2/oauth2/token", form, headers=headers)
        document = answer.document if isinstance(answer.document, dict) else {}
        code = str(document.get("error", ""))[:64]
        is_json = answer.document is not None
        if answer.status // 100 == 2 and is_json and not code and not document.get("errors"):
            return self._parse(op, document, refresh_token)
        said = f"{op}: Globus Auth answers status {answer.status}" + (f" {code}" if re.fullmatch(r"[A-Za-z0-9_.-]+", code) else "")
        if code == "invalid_grant":
            raise LoginRequired(f"login required: {said}")
        if code in ("invalid_client", "unauthorized_client"):
            raise Unauthenticated(f"client refused: {said}")
        if may_pass(answer.status):
            raise Unavailable(f"cannot reach Globus Auth: {said}", answer.retry_after)
        if not is_json or answer.status in (404, 405, 410) or not 400 <= answer.status <= 499:
            what = "" if is_json else ", and not in JSON"
            raise Unavailable(
                f"unexpected answer: {op}: what answers at {self._issuer} says status {answer.status}{what};"
                " is the issuer wrong, or is a proxy or a login page of the network in the way?",
                answer.retry_after,
            )
        raise DiasporaError(said)

    def _parse(self, op: str, document: dict[str, Any], refresh_token: str) -> Token:
        access, refresh = document.get("access_token"), document.get("refresh_token") or refresh_token
        for secret in (access, refresh) if refresh else (access,):
            if not isinstance(secret, str) or not _TOKEN.fullmatch(secret):
                raise Unavailable(f"{op}: the answer holds no token")
        if str(document.get("token_type") or "bearer").lower() != "bearer":
            raise Unavailable(f"{op}: the token is not a bearer token")
        server = document.get("resource_server") or self._resource_server
        if not isinstance(server, str) or not WORD.fullmatch(server):
            raise Unavailable(f"{op}: the answer names no resource server")
        now = time.time()
        return Token(
            access_token=str(access),
            refresh_token=str(refresh),
            resource_server=server,
            scope=str(document.get("scope") or ""),
            expiry=now + _lifetime(document.get("expires_in")),
            obtained=now,
        )


class ClientSource(TokenSource):
    """Yields access tokens for a Globus client itself, by OAuth's client credentials grant. It stores nothing."""

    def __init__(self, issuer: str, client_id: str, secret: str, resource_server: str, scope: str) -> None:
        super().__init__(issuer, client_id, resource_server)
        self._secret, self._scope = secret, scope

    def _renew(self) -> Token:
        # Not percent-encoded, although RFC 6749, section 2.3.1 requires it: Globus's own SDKs do not either.
        basic = {"Authorization": "Basic " + base64.b64encode(f"{self._client_id}:{self._secret}".encode()).decode()}
        token = self._ask("get client credentials", {"grant_type": "client_credentials", "scope": self._scope}, headers=basic)
        if token.resource_server != self._resource_server:
            raise Unauthenticated(f"get client credentials: the token is for {token.resource_server}, not for {self._resource_server}")
        return token


def _hash(refresh_token: str) -> str:
    return hashlib.sha256(refresh_token.encode()).hexdigest()


def _lifetime(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return UNSTATED_LIFETIME_SECONDS
    return min(seconds, MAX_LIFETIME_SECONDS) if seconds > 0 else UNSTATED_LIFETIME_SECONDS


def cache_file(folder: str, issuer: str, client_id: str, refresh_token: str) -> TokenFile:
    """Return where tokens that were got with a bare refresh token are kept."""
    name = hashlib.sha256("\0".join((issuer, client_id, refresh_token)).encode()).hexdigest()
    return TokenFile(os.path.join(folder, name + ".json"))
