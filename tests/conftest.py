"""Where tests run side by side, in processes of pytest-xdist, each has one thread: more would only wait for another.

Times are measured for no longer than they have to be, as no test looks at what they are; the user's cache of them is
left alone.
"""

import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it leaves in the background so, and what is interrupted in tests would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _quick_clock(tmp_path_factory: pytest.TempPathFactory) -> None:
    from calib.measure import latency, probing
    from hmc_onnx.comparison import verification
    from hmc_onnx.planning import planner

    latency.SECONDS, latency.REPEATS, latency.WARM_UP = 0.0, 6, 1
    planner.PATIENCE = verification.PATIENCE = 0.0
    probing.SECONDS, probing.TRIES, probing.LEAST_RUNS, probing.WARM_UP = 0.0, 1, 4, 1
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
