"""A good guest: importing and running change nothing of the process that we run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Prints the state of the process before and after `import hmc_onnx` and a compression in two worker processes that
# tries all decompositions.
HOST = """
import json
import logging
import os
import signal
import sys
import warnings

import joblib
import numpy as np
import onnx_graphsurgeon
import onnxscript.optimizer
import tensorly
from joblib.externals import loky
from tensorly import tenalg

tenalg.set_backend("einsum")  # not the default
executor = loky.get_reusable_executor(max_workers=1, timeout=600)
worker = executor.submit(os.getpid).result()
logging.getLogger("host").setLevel(logging.DEBUG)
signal.signal(signal.SIGTERM, signal.default_int_handler)

def threads_backend():
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: repr(tenalg.current_backend())).result()

def state():
    return {
        "root logger": logging.root.level,
        "levels of loggers": {n: logging.getLogger(n).level for n in before},
        "severity of graphsurgeon": int(onnx_graphsurgeon.logger.G_LOGGER.severity),
        "environment": dict(os.environ),
        "signals": {str(s): repr(signal.getsignal(s)) for s in signal.valid_signals()},
        "folder": os.getcwd(),
        "tensorly": [tensorly.get_backend(), repr(tenalg.current_backend()), threads_backend()],
        "core product": repr(tenalg.core_tenalg.CoreTenalgBackend.unfolding_dot_khatri_rao),
        "errors of numpy": np.geterr(),
        "warnings": [repr(f) for f in warnings.filters if "sympy" not in repr(f)],  # sympy's import adds its own
        "joblib": [joblib.effective_n_jobs(-1), repr(joblib.parallel.get_active_backend()[0].__class__)],
        "sys.path": list(sys.path),
        "hooks": [repr(sys.excepthook), repr(sys.displayhook)],
        "random": [str(np.random.get_state()[1][:4])],
    }

before = set(logging.root.manager.loggerDict)
states = [state()]
import hmc_onnx
from calib.data.calibration import CalibrationData
from calib.measure import latency
from hmc_onnx.records.work import Work
from zoo import images, resnet
states.append(state())
latency.SECONDS, latency.REPEATS, latency.WARM_UP = 0.0, 6, 1  # what the times are is not asked
data = CalibrationData({"input": images(16, 8)}, None, "noise")
settings = hmc_onnx.Settings(samples=16, kl_samples=16, positions=4, align=4, chunk=16)
result = hmc_onnx.compress(
    resnet((1,), (8,), size=8), data, "macs=0.5", settings=settings, work=Work(jobs=2)
)
states.append(state())
print(json.dumps([states, [worker, executor.submit(os.getpid).result()]]))
"""


def test_a_compression_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    paths = map(str, Path(__file__).parents[1:3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", HOST], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert all("HmcWarning" in line or line.startswith(" ") for line in run.stderr.splitlines())  # of few images
    (before, imported, ran), workers = json.loads(run.stdout)
    for what in before:
        assert imported[what] == before[what], what
        assert ran[what] == before[what], what
    assert workers[0] == workers[1]  # the caller's executor goes on, with the worker that it had


SEVERITY = """
import onnxruntime as ort
seen = []
for name in ("set_default_logger_severity", "set_default_logger_verbosity", "disable_telemetry_events"):
    setattr(ort, name, lambda *a, name=name: seen.append(name))
from calib.runtime.sessions import Session, providers
from zoo import images, resnet
providers("auto")
Session(resnet((1,), (4,), size=8)).run({"input": images(2, 8)})
print(seen)
"""


def test_onnxruntimes_own_logger_is_not_touched() -> None:
    """Its severity cannot be read, so that nobody asks to set it is what can be seen."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3]))}
    run = subprocess.run([sys.executable, "-c", SEVERITY], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


MAIN = """
import json, os, signal, sys, warnings
from hmc_onnx.cli import main

def state():
    filters = [repr(f) for f in warnings.filters if "sympy" not in repr(f)]
    return [dict(os.environ), repr(signal.getsignal(signal.SIGTERM)), sys.stdout.errors, filters]

before, sys.argv = state(), ["hmc-onnx", *sys.argv[1:]]
try:
    main()
except SystemExit as e:
    print("exit", e.code)
assert state() == before
"""


@pytest.mark.parametrize(("arguments", "code"), [(["latency", "show"], 0), (["inspect", "none.onnx"], 1), (["no"], 2)])
def test_the_command_line_puts_back_what_it_has_set(tmp_path: Path, arguments: list[str], code: int) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("PYTHONWARNINGS", None)
    run = subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == f"exit {code}"
