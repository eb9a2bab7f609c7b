"""Produce to and consume from a fabric with confluent-kafka.

    client.py produce < lines    a record for each line; prints the lines that are acknowledged
    client.py consume            prints the value of each record, until it is ended

TOPIC, GROUP and SIGN_IN are in the environment. SIGN_IN is oauth (a Globus login,
by what diaspora_streams reads), plain (an access key: KEY_ID, KEY_SECRET and
BOOTSTRAP) or oidc (the same, and TOKEN_URL). GROUP_PROTOCOL is that of the group,
classic or consumer.
"""

import os
import select
import signal
import sys
import time

from confluent_kafka import Consumer, KafkaError, Producer

import diaspora_streams


class Logins:
    """Ends the program when it is refused.

    librdkafka goes on trying for ever, and calls a connection that is cut during a
    login a refusal as well. So the first one means nothing yet; a refusal is final
    if nothing has come through for ten seconds since.
    """

    def __init__(self):
        self.since, self.reason = None, ""

    def error(self, error):
        print(f"{error.name()}: {error.str()}", file=sys.stderr, flush=True)
        if error.code() == KafkaError._AUTHENTICATION:
            self.since, self.reason = self.since or time.monotonic(), error.str()

    def good(self):
        self.since = None

    def check(self):
        if self.since is not None and time.monotonic() - self.since > 10:
            print(self.reason, file=sys.stderr, flush=True)
            os._exit(1)  # to close a consumer that is refused takes the 45 s of its session


logins = Logins()


def settings():
    env, s = os.environ, {}
    if env["SIGN_IN"] == "oauth":
        s = diaspora_streams.from_env().confluent_kafka()
    else:
        s = {"bootstrap.servers": env["BOOTSTRAP"], "security.protocol": "SASL_PLAINTEXT"}
    if env["SIGN_IN"] == "plain":
        s.update({"sasl.mechanism": "PLAIN", "sasl.username": env["KEY_ID"], "sasl.password": env["KEY_SECRET"]})
    if env["SIGN_IN"] == "oidc":
        s.update({
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.token.endpoint.url": env["TOKEN_URL"],
            "sasl.oauthbearer.client.id": env["KEY_ID"],
            "sasl.oauthbearer.client.secret": env["KEY_SECRET"],
        })
    return dict(s, error_cb=logins.error)


def produce(topic):
    client = Producer(dict(settings(), **{"enable.idempotence": True, "linger.ms": 5}))
    failed = []

    def delivered(error, message):
        if error is None:
            logins.good()
            print(message.value().decode(), flush=True)
        else:
            print(f"not acknowledged: {error.str()}", file=sys.stderr, flush=True)
            failed.append(error)

    while not failed:
        logins.check()
        client.poll(0)  # which also renews the token: not only when there is a line
        if select.select([sys.stdin.buffer], [], [], 0.1)[0]:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                break
            client.produce(topic, line.rstrip(b"\n"), on_delivery=delivered)
    while len(client) > 0 and not failed:
        logins.check()
        client.poll(0.1)
    return 1 if failed else 0


def consume(topic, group):
    protocol = os.environ.get("GROUP_PROTOCOL", "classic")
    client = Consumer(dict(settings(), **{"group.id": group, "group.protocol": protocol, "auto.offset.reset": "earliest"}))
    client.subscribe([topic])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        logins.check()
        message = client.poll(0.1)
        if message is None:
            continue
        if message.error() is None:
            logins.good()
            print(message.value().decode(), flush=True)
        else:
            print(message.error().str(), file=sys.stderr, flush=True)


def main():
    if sys.argv[1] == "produce":
        return produce(os.environ["TOPIC"])
    return consume(os.environ["TOPIC"], os.environ["GROUP"])


if __name__ == "__main__":
    sys.exit(main())
