"""What C code prints on standard output does not stand among the results there."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRINTING = """
import ctypes
from hmc_onnx.planning.spared_stdout import spared_stdout
print("before")
with spared_stdout():
    ctypes.CDLL(None).puts(b"of the solver")
print("after")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="ctypes.CDLL(None) is POSIX's")
def test_what_c_code_prints_goes_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTING], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["before", "after"]
    assert "of the solver" in done.stderr


THREADS = """
import os, threading, time
from hmc_onnx.planning.spared_stdout import spared_stdout
before = os.fstat(1)

def enter(seconds):
    with spared_stdout():
        time.sleep(seconds)

threads = [threading.Thread(target=enter, args=(s,)) for s in (0.2, 0.1, 0.3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert os.path.samestat(before, os.fstat(1))
"""


def test_after_several_threads_it_is_what_it_was() -> None:
    subprocess.run([sys.executable, "-c", THREADS], stdout=subprocess.PIPE, check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="file descriptors are closed as in a POSIX shell")
def test_a_process_without_standard_output_goes_on() -> None:
    program = "import os; os.close(1)\n" + PRINTING.replace("print(", "len(").replace("ctypes.CDLL(None).puts", "len")
    subprocess.run([sys.executable, "-c", program], check=True)
