"""A login with Globus in a browser, and where it is stored."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import json
import os
import re
import secrets
import sys
import time
import urllib.parse
import webbrowser
from typing import Any, Optional

from diaspora_streams import DiasporaError, Fabric, LoginRequired, Token, TokenSource, Unavailable, Untrusted
from diaspora_streams import _fabric, _http, _store, _trust

AUTH_SERVER = "auth.globus.org"  # the resource server for the scopes openid, profile and email
LOCK_SECONDS = 45.0

_TEXT_BROWSERS = ("lynx", "links", "links2", "elinks", "w3m", "www-browser")
_CODE = re.compile(r"[!-~]{1,4096}")
_SUBJECT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclasses.dataclass
class Login:
    fabric: Fabric
    identity: dict[str, str]
    token: Token  # the one for the fabric


@dataclasses.dataclass
class Target:
    """The fabric to log in to."""

    url: str
    folder: str  # of the profiles
    profile: Optional[str]  # the stored profile of the fabric
    confirmed: bool  # the user has confirmed the fabric's hosts
    document: dict[str, Any]  # discovery
    fabric: Fabric

    @property
    def issuer(self) -> str:
        return str(self.document["globus"]["issuer"])


def log_in() -> Login:
    """Log the user in, who pastes an authorization code, and store the login as a profile."""
    target = find_target()
    code, verifier, redirect = _ask_for_code(target)
    tokens = _exchange(target, code, verifier, redirect)
    server = target.document["globus"]["resource_server"]
    token = tokens.get(server)
    if token is None or not token.refresh_token:
        raise DiasporaError(f"log in to {target.url}: Globus gave no token for this fabric's service {server}; tell the operator of the fabric")
    identity = _identity(target, tokens)
    _keep(target, identity, tokens)
    return Login(target.fabric, identity, token)


def find_target() -> Target:
    """Return the fabric of DIASPORA_URL or of the stored profile, if its tokens may be sent to its hosts."""
    credentials = ("DIASPORA_REFRESH", "DIASPORA_KEY_FILE", "DIASPORA_KEY_ID", "DIASPORA_KEY_SECRET", "DIASPORA_CLIENT_ID", "DIASPORA_CLIENT_SECRET")
    env = {name: value for name, value in os.environ.items() if name not in credentials}  # the login replaces them
    folder = env.get("DIASPORA_CONFIG_DIR") or os.path.join(_fabric._user_config_dir(env), "diaspora")
    try:
        url, profile = _fabric._choose(env, folder, {})
    except DiasporaError as e:
        if env.get("DIASPORA_URL"):
            raise
        raise DiasporaError(f"log in: {e}; or set DIASPORA_URL to the address of the fabric's ACL endpoint") from None
    fabric = Fabric(url, _no_source, ca_file=env.get("DIASPORA_CA_FILE", ""), trusted=lambda _: trusted)
    document = fabric.discovery
    named_issuer = _fabric._issuer(env)
    document["globus"]["issuer"] = (named_issuer or document["globus"]["issuer"]).rstrip("/")
    stored = None if profile is None else _fabric._profile(folder, profile)
    brokers = _fabric._bootstrap(env.get("DIASPORA_BOOTSTRAP", ""))
    trusted = _trust.Fabric(
        url=url,
        brokers=document["brokers"],
        issuer=document["globus"]["issuer"],
        scope=document["globus"].get("scope", ""),
        named_issuer=named_issuer,
        named=(urllib.parse.urlsplit(url).netloc, *brokers) if brokers and env.get("DIASPORA_URL") else (),
        confirmed=stored is not None and _still_confirmed(stored, document),
        profile=profile or "",
    )
    trusted.check_login()
    for address in (urllib.parse.urlsplit(url).netloc, *document["brokers"]):
        trusted.check_host(address, [trusted.scope])
    # The environment may not name the issuer when the profile is used, so record that the user named it now.
    confirmed = trusted.confirmed or bool(named_issuer) and not trusted.named
    return Target(url, folder, profile, confirmed, document, fabric)


def _no_source(_: Any) -> TokenSource:
    raise LoginRequired("nobody has logged in yet")


def _still_confirmed(profile: dict[str, Any], document: dict[str, Any]) -> bool:
    """Tell whether all that a discovery document says was confirmed when the user logged in before."""
    before, now = profile["discovery"], document
    hosts = {_trust.host_of(b) for b in before["brokers"]}
    return (
        profile.get("confirmed") is True
        and before["globus"]["issuer"].rstrip("/") == now["globus"]["issuer"]
        and before["globus"].get("scope", "") == now["globus"].get("scope", "")
        and all(_trust.host_of(b) in hosts for b in now["brokers"])
    )


def _ask_for_code(target: Target) -> tuple[str, str, str]:
    """Return the authorization code that the user pastes, with the verifier (RFC 7636) and the redirect URI."""
    globus, redirect = target.document["globus"], target.issuer + "/v2/web/auth-code"
    verifier = secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    scopes = ["openid", "profile", "email", globus.get("scope", "")]
    query = {
        "client_id": globus["client_id"],
        "redirect_uri": redirect,
        "response_type": "code",
        "scope": " ".join(scopes),
        "state": secrets.token_urlsafe(16),
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "access_type": "offline",
        "prompt": "login",
    }
    address = f"{target.issuer}/v2/oauth2/authorize?{urllib.parse.urlencode(query)}"
    print(f"Please visit the following URL to authorize the application: {address}", flush=True)
    if _http.is_loopback(urllib.parse.urlsplit(target.issuer).hostname):
        _note('the page asks for the secret of the stand-in for Globus, which is in the file that "diaspora up" names')
    if _has_browser():
        webbrowser.open(address)
    try:
        code = input("Paste the authorization code here: ").strip()
    except EOFError:
        code = ""
    if not _CODE.fullmatch(code):
        raise LoginRequired("log in: no authorization code was pasted; call request_token_workflow again, and paste the code that the page shows")
    return code, verifier, redirect


def _has_browser() -> bool:
    """Tell whether a browser with windows can be started here."""
    env = os.environ
    if any(env.get(name) for name in ("SSH_TTY", "SSH_CONNECTION", "SSH_CLIENT")):
        return False
    if os.path.basename(env.get("BROWSER", "").split(" ")[0]) in _TEXT_BROWSERS:
        return False
    return sys.platform in ("darwin", "win32") or bool(env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))


def _exchange(target: Target, code: str, verifier: str, redirect: str) -> dict[str, Token]:
    """Return the tokens for an authorization code, by resource server. The code is sent once, because it works once."""
    form = {
        "grant_type": "authorization_code",
        "client_id": target.document["globus"]["client_id"],
        "code": code,
        "code_verifier": verifier,
        "redirect_uri": redirect,
    }
    try:
        answer = _http._attempt(target.issuer + "/v2/oauth2/token", form, None)
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise Unavailable(f"exchange the authorization code: {type(e).__name__}; call request_token_workflow again") from None
    document = answer.document if isinstance(answer.document, dict) else {}
    if answer.status in (400, 401):
        raise LoginRequired("exchange the authorization code: Globus Auth does not accept this code; call request_token_workflow again, and paste the whole code")
    others = document.get("other_tokens") or []
    if answer.status != 200 or not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
        raise Unavailable(f"exchange the authorization code: Globus Auth answers status {answer.status}; call request_token_workflow again")
    tokens = {}
    for each in (document, *others):
        server = str(each.get("resource_server"))
        tokens[server] = TokenSource(target.issuer, form["client_id"], server)._parse("exchange the authorization code", each, "")
    return tokens


def _identity(target: Target, tokens: dict[str, Token]) -> dict[str, str]:
    """Ask Globus Auth who has logged in."""
    op = "ask Globus Auth who has logged in"
    token = tokens.get(AUTH_SERVER)
    if token is None:
        raise DiasporaError(f"{op}: it gave no token for that; tell the operator of the fabric")
    try:
        answer = _http._attempt(target.issuer + "/v2/oauth2/userinfo", None, None, {"Authorization": "Bearer " + token.access_token})
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise Unavailable(f"{op}: {type(e).__name__}; call request_token_workflow again") from None
    claims = answer.document if isinstance(answer.document, dict) else {}
    subject, username = str(claims.get("sub", "")), str(claims.get("preferred_username", ""))
    if answer.status != 200 or not _SUBJECT.fullmatch(subject) or not username.isprintable():
        raise Unavailable(f"{op}: it answers status {answer.status} and no identity; call request_token_workflow again")
    return {"subject": subject, "username": username}


def _keep(target: Target, identity: dict[str, str], tokens: dict[str, Token]) -> None:
    """Store the login as a profile, which becomes the current one. A login of another identity is not replaced.

    If that fails, a note says so, and the login goes on: the block has the tokens.
    """
    try:
        name = _store_login(target, identity, tokens)
    except (OSError, DiasporaError) as e:
        _note(f"the login is not stored: {e}; set DIASPORA_REFRESH and DIASPORA_URL instead")
        return
    _note(f"{name} is now the current profile, for {target.url}")


def _store_login(target: Target, identity: dict[str, str], tokens: dict[str, Token]) -> str:
    content = {
        "version": _store.VERSION,
        "issuer": target.issuer,
        "client_id": target.document["globus"]["client_id"],
        "identity": identity,
        "tokens": {},
    }
    for token in tokens.values():
        _store.set_token(content, token)
    for name in _names(target, identity):
        file = _store.TokenFile(os.path.join(target.folder, "tokens", name + ".json"))
        file.make_folder()
        with file.lock(time.monotonic() + LOCK_SECONDS):
            if _holds_another(file, identity["subject"]):
                continue
            file.write(content)
        break
    else:
        raise DiasporaError("all profiles for it hold logins of other identities; log one of them out")
    profile: dict[str, Any] = {"url": target.url, "discovery": target.document}
    if target.confirmed:
        profile["confirmed"] = True
    os.makedirs(os.path.join(target.folder, "profiles"), mode=0o700, exist_ok=True)
    _store.replace_file(os.path.join(target.folder, "profiles", name + ".json"), json.dumps(profile, indent=2) + "\n")
    _store.replace_file(os.path.join(target.folder, "current"), name + "\n")
    return name


def _names(target: Target, identity: dict[str, str]) -> list[str]:
    """Return the names that the profile may have, the best first."""
    name = target.profile or urllib.parse.urlsplit(target.url).netloc.replace(":", "-")
    if not _fabric._NAME.fullmatch(name):
        name = "default"
    user = re.sub(r"[^A-Za-z0-9_.-]", "-", identity["username"].partition("@")[0])[:20]
    base = f"{name[:40]}-{user}"
    taken = _fabric._names(target.folder)
    return [n for n in (name, base, *(f"{base}-{i}" for i in range(2, 100))) if n not in taken or _is_for(target, n)]


def _is_for(target: Target, name: str) -> bool:
    try:
        return bool(_fabric._base(_fabric._profile(target.folder, name)["url"]) == target.url)
    except DiasporaError:
        return False


def _holds_another(file: _store.TokenFile, subject: str) -> bool:
    try:
        there = str(file.read()["identity"].get("subject", ""))
    except (LoginRequired, _store.Damaged):
        return False
    return there not in ("", subject)


def _note(text: str) -> None:
    sys.stderr.write(f"diaspora_logger: {text}\n")  # in one piece, so that it stays one line in a log
    sys.stderr.flush()
