"""Run scripts that were written for diaspora_logger 0.0.8 with Diaspora Streams.

    from diaspora_logger import DiasporaLogger

    logger = DiasporaLogger()
    logger.send("weather", {"temperature": 21.5}).get(timeout=60)

It has the names of the original and stands on diaspora_streams, which new programs should use.
"""

from .credential import claim_topics, request_token_workflow
from .logger import DiasporaLogger, GlobusAuthTokenProvider, KafkaConsumer, KafkaProducer

__all__ = [
    "DiasporaLogger",
    "GlobusAuthTokenProvider",
    "KafkaConsumer",
    "KafkaProducer",
    "claim_topics",
    "request_token_workflow",
]
