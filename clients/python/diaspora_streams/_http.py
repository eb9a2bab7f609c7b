"""One way to talk HTTP: no redirects, bounded answers, patience with bad moments."""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import random
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Mapping, NamedTuple, Optional

from ._errors import DiasporaError, Unavailable

MAX_ANSWER_BYTES = 1 << 20
MAX_ATTEMPTS = 4
ATTEMPT_SECONDS = 15.0
LOOK_SECONDS = 3.0  # for what can be done without
MAX_PAUSE_SECONDS = 10.0


class Answer(NamedTuple):
    status: int
    document: Any  # None if the body is not JSON
    retry_after: float


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could carry a token to wherever an answer points."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def is_loopback(host: Optional[str]) -> bool:
    """Tell whether a host names this machine, without asking anybody."""
    if host is None or host.lower() == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_private(url: str, what: str) -> str:
    """Return the URL if what is sent there, or read there, stays between the two."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is not None or parts.password is not None or not parts.hostname:
        raise DiasporaError(f"{what}: want a URL like https://host")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise DiasporaError(f"{what}: {parts.scheme}://{parts.netloc} is not https, and tokens depend on it")
    return url


def may_pass(status: int) -> bool:
    """Tell whether a status speaks of trouble that is over some time without anybody's help."""
    return status in (408, 425, 429) or 500 <= status <= 599 and status not in (501, 505, 511)


def call(
    op: str,
    url: str,
    form: Optional[Mapping[str, str]] = None,
    tls: Optional[ssl.SSLContext] = None,
    headers: Mapping[str, str] = {},
) -> Answer:
    """GET a URL, or POST a form to it, until there is an answer. Asking twice must do no harm."""
    for attempt in range(MAX_ATTEMPTS):
        pause = min((0.25 + random.random() / 2) * 2**attempt, MAX_PAUSE_SECONDS)
        last = attempt + 1 == MAX_ATTEMPTS
        try:
            answer = _attempt(url, form, tls, headers)
        except ssl.SSLError as e:
            raise Unavailable(f"{op}: {e.reason or 'TLS failed'}") from None
        except OSError as e:
            if isinstance(getattr(e, "reason", None), ssl.SSLError) or last:
                raise Unavailable(f"{op}: {_reason(e)}") from None
        except http.client.HTTPException as e:
            if last:
                raise Unavailable(f"{op}: {type(e).__name__}") from None
        except ValueError as e:
            raise Unavailable(f"{op}: {e}") from None
        else:
            pause = max(pause, answer.retry_after)
            if not may_pass(answer.status) or last or pause > MAX_PAUSE_SECONDS:
                return answer
        time.sleep(pause)
    raise AssertionError("unreachable")


def look(url: str, authorization: str, tls: Optional[ssl.SSLContext]) -> Answer:
    """GET a URL once, with a credential, and return the answer. Its status is 0 if there is none."""
    try:
        return _attempt(url, None, tls, {"Authorization": authorization}, LOOK_SECONDS)
    except (OSError, http.client.HTTPException, ValueError):
        return Answer(0, None, 0)


def printable(text: str) -> str:
    """Return a text from a server without the characters that control a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _reason(e: OSError) -> str:
    reason = getattr(e, "reason", e)
    return str(getattr(reason, "strerror", None) or reason or type(e).__name__)


def _attempt(
    url: str,
    form: Optional[Mapping[str, str]],
    tls: Optional[ssl.SSLContext],
    headers: Mapping[str, str] = {},
    seconds: float = ATTEMPT_SECONDS,
) -> Answer:
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if is_loopback(urllib.parse.urlsplit(url).hostname):
        handlers.append(urllib.request.ProxyHandler({}))
    if tls is not None:
        handlers.append(urllib.request.HTTPSHandler(context=tls))
    data = None if form is None else urllib.parse.urlencode(form).encode()
    request = urllib.request.Request(url, data, {"Accept": "application/json", "User-Agent": "diaspora-python/0.1", **headers})
    try:
        response = urllib.request.build_opener(*handlers).open(request, timeout=seconds)
    except urllib.error.HTTPError as e:
        response = e
    with response:
        body = response.read(MAX_ANSWER_BYTES + 1)
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError("the answer is too large")
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        return Answer(response.status, document, _retry_after(response.headers.get("Retry-After", "")))


def _retry_after(value: str) -> float:
    """Read the header of that name: seconds or a date."""
    if value.isascii() and value.isdigit() and len(value) <= 9:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError):
        return 0.0
