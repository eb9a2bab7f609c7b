"""Gives both distributions the same version. `make dist` sets the variable."""

import os

from hatchling.metadata.plugin.interface import MetadataHookInterface

VERSION = os.environ.get("DIASPORA_DIST_VERSION", "0.1.0")


class CustomMetadataHook(MetadataHookInterface):
    def update(self, metadata):
        metadata["version"] = VERSION
        metadata["dependencies"] = ["diaspora-streams==" + VERSION, "kafka-python>=2.0.2"]
