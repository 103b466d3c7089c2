"""What importing the package does to the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = "import hmc_onnx, os, sys; print(os.environ['OPENBLAS_THREAD_TIMEOUT'], 'numpy' in sys.modules)"


@pytest.mark.parametrize(("own", "found"), [(None, "4"), ("20", "20")])
def test_idle_threads_of_openblas_sleep_unless_the_user_says_otherwise(own: str | None, found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    if own is not None:
        environment["OPENBLAS_THREAD_TIMEOUT"] = own
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found, "False"]  # OpenBLAS, which comes with numpy, is still to be loaded
