"""Log a hundred records with logging, and die without notice once they are safe."""

import logging
import os
import signal

import diaspora_streams

handler = diaspora_streams.Handler(os.environ["TOPIC"])
assert handler.logger.transport == "spool", handler.logger
logging.getLogger().addHandler(handler)
for number in range(100):
    logging.warning("record %d", number)
handler.flush()
os.kill(os.getpid(), signal.SIGKILL)
