"""Logging in, and claiming topics, with the functions of the original."""

from __future__ import annotations

import re
import urllib.parse

from diaspora_streams import from_env

from . import _java
from ._endpoint import request
from ._login import log_in

_RULE = "=" * 32


def request_token_workflow(save_for_java: bool = False) -> None:
    """Log in with Globus: print the URL to visit, ask for the authorization code, and print the tokens.

    The login is stored as a profile, as "diaspora login" stores it. With save_for_java, an access key is created
    and written to <username>.properties, for Kafka's Java clients.
    """
    login = log_in()
    username = login.identity["username"].partition("@")[0]
    lines = [
        _RULE,
        f"Subject claim:     {login.identity['subject']}",
        f"Principal name:    {username}",
        f"Access token:      {login.token.access_token}",
        f"Refresh token:     {login.token.refresh_token}",
        f"Py clients:        export DIASPORA_REFRESH={login.token.refresh_token}",
    ]
    print("\n".join(lines), flush=True)
    if save_for_java:
        path = (re.sub(r"[^A-Za-z0-9@._+-]", "_", username).lstrip(".-") or "diaspora") + ".properties"
        _java.save(login.fabric, login.token, path)
        print(f"Java clients:      Connection properties are saved to {path}.", flush=True)
    print(_RULE, flush=True)


def claim_topics(sub: str, *topics: str) -> None:
    """Claim topics at the ACL endpoint for the owner of the login, whose subject claim is sub.

    Print the answer for each topic. Without a topic, print the address of the form, where topics are claimed
    in a browser.
    """
    fabric = from_env()
    if not topics:
        print(f"No topic is named, so none is claimed. Name them: claim_topics({sub!r}, \"<topic>\"), or use the form:")
        print(f"{fabric.url}/acl?{urllib.parse.urlencode({'subject': sub})}", flush=True)
        return
    token = fabric._good_token()
    for topic in topics:
        print(request(fabric, token, f"claim topic {topic!r}", "/acl", form={"subject": sub, "topic": topic}), end="", flush=True)


if __name__ == "__main__":
    request_token_workflow()
