"""The examples of the original, by the same names."""

from .example_consumer import run_consumer_example
from .example_producer import run_producer_example

__all__ = ["run_consumer_example", "run_producer_example"]
