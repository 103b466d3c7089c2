"""What all tests share: no more processes, threads and time than a test needs.

Where tests run side by side, in processes of pytest-xdist, each has one thread, as more would only wait for another.
Tasks run in the process of the test unless it asks for workers (`Work(jobs=2)`, or `workers_by_default`), which take
seconds to start. Times are measured for no longer than they have to be, as no test looks at what they are; the user's
cache of them is left alone.
"""

import gc
import os
import signal
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
os.environ["LOKY_MAX_CPU_COUNT"] = "1"  # the cores that joblib counts
settings.register_profile("quick", max_examples=4)
settings.register_profile("thorough", max_examples=40)
settings.load_profile("quick")  # but where --hypothesis-profile, which is read later, says otherwise

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it leaves in the background so, and what is interrupted in tests would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _quick_clock(tmp_path_factory: pytest.TempPathFactory) -> None:
    import hmc_onnx.run
    from calib.measure import latency, probing
    from hmc_onnx.comparison import verification
    from hmc_onnx.planning import planner

    latency.SECONDS, latency.REPEATS, latency.WARM_UP = 0.0, 6, 1
    planner.PATIENCE = verification.PATIENCE = 0.0
    hmc_onnx.run.BATCHES = (1, 8)  # at 64 the runs of one comparison would take longer than all the rest of it
    probing.SECONDS, probing.TRIES, probing.LEAST_RUNS, probing.WARM_UP = 0.0, 1, 4, 1
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def few_iterations() -> Iterator[None]:
    """CP decompositions that are hardly iterated, in this process: they would take most of the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("passes.decompose.alternating.MOST", 2)
        yield


@pytest.fixture
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Half of the channels, or an SVD of half the MACs: for tests of many graphs, not of the choice among many.

    The repair follows the few images that such a test has as closely as it can, so that a mistake shows.
    """
    from passes.decompose import DECOMPOSITIONS

    monkeypatch.setattr("hmc_onnx.rewriting.fitting.PLENTY", 0)

    for constant in ("pruning_steps.SHARES", "candidates.RATIOS", "variants.RATIOS_WHEN_PRUNED"):
        monkeypatch.setattr(f"hmc_onnx.search_space.{constant}", (0.5,))
    # which restores their order, too: equal candidates are taken by it
    with mock.patch.dict(DECOMPOSITIONS, {"svd": DECOMPOSITIONS["svd"]}, clear=True):
        yield


@pytest.fixture
def quick_decompositions() -> Iterator[None]:
    """The decompositions in closed form alone."""
    from passes.decompose import DECOMPOSITIONS

    quick = {name: method for name, method in DECOMPOSITIONS.items() if name not in ("cp", "tucker")}
    with mock.patch.dict(DECOMPOSITIONS, quick, clear=True):
        yield


@pytest.fixture
def coarse_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as many shares of channels and ranks: for tests of what is done with candidates, whatever they are."""
    for constant in ("pruning_steps.SHARES", "candidates.RATIOS", "variants.RATIOS_WHEN_PRUNED"):
        monkeypatch.setattr(f"hmc_onnx.search_space.{constant}", (0.7, 0.5, 0.3, 0.22))


@pytest.fixture
def all_is_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models and tensors of any size are kept on disk, as large ones are.

    Garbage is collected before each session of such a model, which would take most of the time of a test among the
    many objects of this process: those that are there already are left out.
    """
    import hmc_onnx.execution.context
    import passes.core.shelf
    import passes.graph.external

    for owner in (passes.graph.external, hmc_onnx.execution.context):
        monkeypatch.setattr(owner, "LARGE", 0)
    monkeypatch.setattr(passes.graph.external, "LARGE_TENSOR", 256)
    monkeypatch.setattr(passes.core.shelf, "SMALL", 256)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def workers_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers where nobody says how many, in this process and in those that it starts."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
