"""Requests to the fabric's ACL endpoint that need a login."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Mapping, Optional

from diaspora_streams import DiasporaError, Fabric, LoginRequired, Token, Unavailable
from diaspora_streams._http import MAX_ANSWER_BYTES, _NoRedirects, _reason, check_private, is_loopback, printable

REQUEST_SECONDS = 60.0


def request(fabric: Fabric, token: Token, op: str, path: str, form: Optional[Mapping[str, str]] = None, document: Any = None) -> str:
    """GET a path, or POST a form or a JSON document to it, once. Return the body of the response, in printable text."""
    url = check_private(fabric.url, "DIASPORA_URL") + path
    fabric._check_endpoint(token)
    body, headers = None, {"Authorization": "Bearer " + token.access_token, "User-Agent": "diaspora-logger/0.1"}
    if form is not None:
        body, headers["Accept"] = urllib.parse.urlencode(form).encode(), "text/plain"
    elif document is not None:
        body, headers["Content-Type"] = json.dumps(document).encode(), "application/json"
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if is_loopback(urllib.parse.urlsplit(url).hostname):
        handlers.append(urllib.request.ProxyHandler({}))
    if url.startswith("https"):
        handlers.append(urllib.request.HTTPSHandler(context=fabric._tls_context(fabric.discovery.get("ca", ""))))
    try:
        try:
            response = urllib.request.build_opener(*handlers).open(urllib.request.Request(url, body, headers), timeout=REQUEST_SECONDS)
        except urllib.error.HTTPError as e:
            response = e
        with response:
            data = response.read(MAX_ANSWER_BYTES + 1)
    except OSError as e:
        raise Unavailable(f"{op}: {_reason(e)}") from None
    except http.client.HTTPException as e:
        raise Unavailable(f"{op}: {type(e).__name__}") from None
    if len(data) > MAX_ANSWER_BYTES:
        raise Unavailable(f"{op}: the answer is too large")
    if response.status // 100 != 2:
        raise _refusal(op, response.status, data)
    return printable(str(data, "utf-8", "replace"))


def _refusal(op: str, status: int, data: bytes) -> DiasporaError:
    """Return the error for a response that is a problem document (RFC 9457), or not even that."""
    try:
        problem = json.loads(data)
        said = ": ".join(str(problem[name])[:500] for name in ("title", "detail", "hint") if problem.get(name))
    except (ValueError, AttributeError):
        said = ""
    text = f"{op}: {said or f'the ACL endpoint answers status {status}'}"
    if status == 401:
        return LoginRequired(text)
    return Unavailable(text) if status >= 500 else DiasporaError(text)
