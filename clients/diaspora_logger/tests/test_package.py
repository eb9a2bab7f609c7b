"""The distribution as a whole."""

import os
import re
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))


def version(project: str) -> str:
    with open(os.path.join(HERE, "..", "..", project, "hatch_build.py"), encoding="utf-8") as f:
        return re.search(r'"DIASPORA_DIST_VERSION", "(.*)"', f.read())[1]


class PackageTest(unittest.TestCase):
    def test_the_version_is_that_of_diaspora_streams(self):
        self.assertEqual(version("diaspora_logger"), version("python"))
        self.assertGreater(tuple(map(int, version("python").split("."))), (0, 0, 8))

    def test_the_names_of_the_original_can_be_imported(self):
        from diaspora_logger import DiasporaLogger, GlobusAuthTokenProvider, claim_topics, request_token_workflow
        from diaspora_logger.credential import claim_topics as claim, request_token_workflow as log_in
        from diaspora_logger.examples import run_consumer_example, run_producer_example
        from diaspora_logger.examples.example_consumer import run_consumer_example as consume
        from diaspora_logger.examples.example_producer import on_send_success, run_producer_example as produce
        from diaspora_logger.logger import DiasporaLogger as Logger, GlobusAuthTokenProvider as Provider

        self.assertEqual((DiasporaLogger, GlobusAuthTokenProvider), (Logger, Provider))
        self.assertEqual((claim_topics, request_token_workflow), (claim, log_in))
        self.assertEqual((run_consumer_example, run_producer_example), (consume, produce))
        self.assertTrue(callable(on_send_success))


if __name__ == "__main__":
    unittest.main()
