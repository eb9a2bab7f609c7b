"""Log each line of standard input with diaspora_streams, and print it once it is safe.

    log.py spool|kafka-python|confluent-kafka

TOPIC is in the environment, and with it what signs in. Two lines are orders instead: "kill child" kills
the process that holds the spool, and "kill self" this program.
"""

import logging
import os
import signal
import sys

import diaspora_streams


def main():
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    with diaspora_streams.Logger(os.environ["TOPIC"], transport=sys.argv[1], timeout=float(os.environ.get("LOG_TIMEOUT", "60"))) as log:
        for line in map(str.strip, sys.stdin):
            if line == "kill child":
                log._to._process.kill()
            elif line == "kill self":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                log.log(line, key="one")
                print(line, flush=True)


if __name__ == "__main__":
    main()
