"""Builds wheels that carry the program diaspora. `make dist` sets the variables; without them the wheel is pure."""

import os

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VERSION = os.environ.get("DIASPORA_DIST_VERSION", "0.1.0")


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version, build_data):
        binary = os.environ.get("DIASPORA_DIST_BINARY")
        if not binary:
            return
        if not os.path.isfile(binary):  # hatchling would leave it out and say nothing
            raise FileNotFoundError(binary)
        build_data["shared_scripts"][binary] = "diaspora"
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + os.environ["DIASPORA_DIST_PLATFORM"]
