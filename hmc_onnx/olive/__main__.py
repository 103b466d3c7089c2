"""Print the package configuration for `olive run`: python -m hmc_onnx.olive > package_config.json."""

from __future__ import annotations

import json
import sys

from hmc_onnx.olive.package_config import package_config
from passes.core.errors import HmcError

if __name__ == "__main__":
    try:
        print(json.dumps(package_config(), indent=2))
    except HmcError as e:
        sys.exit(f"error: {e}")
