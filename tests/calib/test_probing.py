"""Probes are timed kernel by kernel, many in a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pytest
from probes import probe

from calib.measure import probing
from calib.measure.latency import Measurement
from calib.measure.probing import time_probes
from calib.runtime.sessions import CPU, KernelTime, Runtime, Session
from passes.core.errors import ModelError
from passes.graph.layers import Geometry
from passes.probe import WITHIN_INT8, Probe, probe_model

ONE = Runtime(threads=1)


def test_more_work_takes_longer() -> None:
    probes = [
        probe(32, 32, 8),
        probe(32, 32, 32),
        probe(32, 32, 32, "Add", "Relu"),
        Probe((Geometry(512, 512),), (), 8),
    ]
    assert probes[1].macs == 16 * probes[0].macs
    found = dict(time_probes(probes, ONE))
    assert found.keys() == set(probes)
    seconds = [found[p].value for p in probes]
    assert all(s > 0 for s in seconds)
    assert seconds[1] > 2 * seconds[0]


def test_a_probe_timed_as_a_session_takes_longer_than_no_time() -> None:
    assert probing._alone(probe(64, 64, 24), ONE).value > 0


def test_a_probe_that_onnxruntime_cannot_run_has_no_time_and_the_others_of_its_lot_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def session(model: onnx.ModelProto, *arguments: object, **options: object) -> Session:
        if any(n.op_type == "Tanh" for n in model.graph.node):
            raise ModelError("onnxruntime cannot load the model: it has a Tanh")
        return Session(model, *arguments, **options)

    monkeypatch.setattr(probing, "Session", session)
    probes = [probe(), probe(16, 16, 8, "Tanh"), probe(16, 24), probe(16, 32, 8, "Add", "Tanh")]
    found = list(time_probes(probes, ONE))
    assert len(found) == len(probes)
    times = dict(found)
    assert [times[p] is not None and times[p].value > 0 for p in probes] == [True, False, True, False]


def test_where_kernels_say_nothing_each_probe_is_timed_as_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(own: Probe, _: Runtime) -> Measurement:
        if "Tanh" in own.epilogue:
            raise ModelError("onnxruntime cannot load the model: it has a Tanh")
        return Measurement(own.links[-1].outputs, 0.0)

    monkeypatch.setattr(Runtime, "on_cpu", property(lambda self: False))
    monkeypatch.setattr(probing, "_alone", alone)
    probes, steps = [probe(), probe(16, 16, 8, "Tanh"), probe(16, 24)], []
    found = list(time_probes(probes, ONE, lambda what, done, of: steps.append((what, done, of))))
    assert found == list(zip(probes, [Measurement(16, 0.0), None, Measurement(24, 0.0)], strict=True))
    assert steps == [("latency", done, 3) for done in range(4)]


def test_a_geometry_that_does_not_fit_its_size_has_no_time() -> None:
    large = Probe((Geometry(8, 8, (5, 5), (1, 1), (0,) * 4, (1, 1)),), (3, 3), 1)
    found = dict(time_probes([large, probe()], ONE))
    assert found[large] is None
    assert found[probe()].value > 0


Lots = list[list[Probe]]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Lots]:
    """The lots that run in turns, for each time that some do; a probe takes as many seconds as its batch has images."""
    runs: list[Lots] = []

    def run(lots: Lots, _: Runtime, tell: Callable[[float], None]) -> list[list[Measurement]]:
        runs.append(lots)
        tell(0.0)
        tell(0.5)
        return [[Measurement(p.batch, 0.0) for p in lot] for lot in lots]

    monkeypatch.setattr(probing, "_run", run)
    monkeypatch.setattr(probing, "_timed", [])
    monkeypatch.setattr(probing, "_fastest", {})
    return runs


def test_probes_share_a_session_with_their_like(monkeypatch: pytest.MonkeyPatch, runs: list[Lots]) -> None:
    monkeypatch.setattr(probing, "LOT_PROBES", 3)
    monkeypatch.setattr(probing, "LOT_MACS", 4e6)
    monkeypatch.setattr(probing, "LOTS", 2)
    probes = [
        replace(probe(16, n, size), batch=batch, dtype=dtype)
        for n, size, batch, dtype in [
            *((n, 2, 1, "float32") for n in range(1, 8)),
            *((n, 2, 2, "float32") for n in range(1, 3)),
            *((n, 2, 1, "float16") for n in range(1, 3)),
            *((16, size, 1, "float32") for size in (30, 31, 32)),
        ]
    ]
    steps: list[tuple[str, int, int]] = []
    found = list(time_probes(probes, CPU, lambda *step: steps.append(step)))
    assert sorted(str(p) for p, _ in found) == sorted(map(str, probes))
    assert all(time.value == p.batch for p, time in found)
    lots = [lot[:-2] for turns in runs for lot in turns]  # without the references
    for lot in lots:
        assert len({(p.batch, p.dtype) for p in lot}) == 1
        assert len(lot) == 1 or (len(lot) <= 3 and sum(p.macs for p in lot) <= 4e6)
    assert len(lots) < len(probes) / 2 + 3
    assert {len(turns) for turns in runs[:-1]} == {2}
    done = np.cumsum([0, *(sum(len(lot) - 2 for lot in turns) for turns in runs)])
    halves = [step for a, b in pairwise(done) for step in (a, a + (b - a) // 2)]
    assert [step for _, step, _ in steps] == [*halves, len(probes)]
    assert {(what, of) for what, _, of in steps} == {("latency", len(probes))}
    assert list(time_probes([], CPU)) == []


def test_what_is_in_memory_at_the_same_time_is_bounded(monkeypatch: pytest.MonkeyPatch, runs: list[Lots]) -> None:
    monkeypatch.setattr(probing, "LOT_PROBES", 1)
    large = [Probe((Geometry(1000, n),), (), 1) for n in (1000, 1001, 1002)]
    monkeypatch.setattr(
        probing, "LOTS_BYTES", 1.3e7
    )  # of 6 MB each, 2 MB of which are the activations of the large reference
    assert len(list(time_probes(large, CPU))) == 3
    assert [len(turns) for turns in runs] == [2, 1]
    monkeypatch.setattr(probing, "LOTS_BYTES", 1e6)
    assert len(list(time_probes(large, CPU))) == 3
    assert [len(turns) for turns in runs[2:]] == [1, 1, 1]


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[list[list[float]]]:
    """What `_run` is to find, in order: the times of each lot's probe and of its two references."""
    tries: list[list[list[float]]] = []

    def run(lots: Lots, *_: object) -> list[list[Measurement]]:
        assert [len(lot) for lot in lots] == [len(own) for own in tries[0]]
        return [[Measurement(value, 0.0) for value in own] for own in tries.pop(0)]

    monkeypatch.setattr(probing, "_run", run)
    monkeypatch.setattr(probing, "_timed", [])
    monkeypatch.setattr(probing, "_fastest", {})
    monkeypatch.setattr(probing, "TRIES", 4)
    monkeypatch.setattr(probing, "LOT_PROBES", 1)
    return tries


def times(*probes: Probe) -> list[tuple[int, float]]:
    """Numbers of outputs and times, as yielded."""
    return [(p.links[0].outputs, time.value) for p, time in time_probes(probes, CPU) if time is not None]


@pytest.mark.parametrize("reference", [1, 2])
def test_lots_are_run_again_while_a_reference_takes_longer_than_elsewhere(
    tries: list[list[list[float]]], reference: int
) -> None:
    def of(time: float, other: float) -> list[float]:
        return [time, other, 1.0] if reference == 1 else [time, 1.0, other]

    tries += [[of(5.0, 1.0), of(6.0, 1.2)]]  # within what calm lots differ
    assert times(probe(16, 8), probe(16, 16)) == [(8, 5.0), (16, 6.0)]
    tries += [[of(9.0, 1.5)], [of(7.0, 1.4)], [of(8.0, 1.1)]]
    assert times(probe(16, 24)) == [(24, 9.0), (24, 7.0), (24, 7.0)]
    tries += [[of(9.0, 2.0)], [of(9.0, 1.9)], [of(8.0, 1.9)], [of(9.0, 1.9)]]  # it lasts
    assert times(probe(16, 32)) == [(32, 9.0), (32, 9.0), (32, 8.0), (32, 8.0)]
    assert tries == []


def test_what_was_disturbed_in_an_earlier_call_is_run_again_when_later_ones_tell(
    tries: list[list[list[float]]],
) -> None:
    tries += [[[9.0, 2.0, 2.0]]]
    assert times(probe(16, 8)) == [(8, 9.0)]
    assert times() == []
    tries += [[[5.0, 1.0, 1.0]], [[4.0, 1.0, 1.0]]]
    assert times(probe(16, 16)) == [(16, 5.0), (8, 4.0)]
    tries += [[[6.0, 1.0, 1.0]]]
    assert times(probe(16, 24)) == [(24, 6.0)]
    assert tries == []


def test_no_lot_is_run_again_when_the_time_for_that_is_over(
    monkeypatch: pytest.MonkeyPatch, tries: list[list[list[float]]]
) -> None:
    monkeypatch.setattr(probing, "PATIENCE", -10.0)
    tries += [[[5.0, 1.0, 1.0]], [[9.0, 2.0, 1.0]]]
    assert times(probe(16, 8)) == [(8, 5.0)]
    assert times(probe(16, 16)) == [(16, 9.0)]


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_the_references_are_about_as_much_work_at_every_batch_size(batch: int) -> None:
    large, chain = probing._references(batch, "float32")
    assert large.batch == chain.batch == batch
    assert large.macs == pytest.approx(9 * 32 * 32 * 8192, rel=0.15)
    assert 0.5 <= chain.macs / (16 * 16 * 16 * 512) <= 1


# Each kernel takes another power of two, so that a sum tells which kernels are in it.
FIRST = [
    KernelTime(name, "", 2.0**i)
    for i, name in enumerate(
        [
            "ReorderInput",  # of the model's input
            "0/before_nchwc",
            "ReorderOutput_token_1",
            "0/link0_nchwc",
            "ReorderOutput",
            "0/Relu_nchwc",  # the last link, with the Relu
            "ReorderOutput_token_2",
            "0/after_nchwc",
            "ReorderInput_token_6",  # behind the layer behind the links
            "0/pool_nchwc",
            "ReorderOutput_token_3",  # of the model's output
            "ReorderInput_token_4",
            "1/before",
            "1/other",
            "1/link0",
            "1/Add",
            "HardSigmoid_8",
            "Mul_9",
            "1/after",
            "1/pool",
            "10/before",  # a Gemm, which no pool follows
            "10/link0",
            "fused 10/link1",
            "10/after",
            "ReorderOutput_token_5",
        ]
    )
]
WHAT_COUNTS = {0: [2, 3, 4, 5, 6], 1: [14, 15, 16, 17], 10: [21, 22]}


def test_a_probes_time_is_that_of_the_kernels_between_the_layers_around_it() -> None:
    found = probing._probe_seconds(FIRST, 11)
    assert len(found) == 11
    for i, seconds in enumerate(found):
        np.testing.assert_equal(seconds, [sum(2.0**k for k in WHAT_COUNTS[i]) if i in WHAT_COUNTS else np.nan])


def test_a_kernel_of_less_than_the_profilers_microsecond_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [KernelTime(f"0/{part}", "Conv", 0.0) for part in ("before", "link0", "after")]
    assert probing._probe_seconds(kernels, 1)[0].tolist() == [0.0]
    monkeypatch.setattr(Session, "profile", lambda self: kernels * (probing.WARM_UP + probing.LEAST_RUNS))
    own = probe(16, 16, 8)
    assert probing._run([[own]], ONE, lambda share: None) == [[Measurement(probing.SHORTEST, 0.0)]]


def test_probes_may_run_in_turns() -> None:
    names = [
        "0/before",
        "1/before",
        "Reorder",
        "0/link0",
        "0/after",
        "0/pool",
        "Reorder",
        "1/link0",
        "1/after",
        "1/pool",
    ]
    found = probing._probe_seconds([KernelTime(name, "", 2.0**i) for i, name in enumerate(names)], 2)
    assert [seconds.tolist() for seconds in found] == [[2.0**2 + 2.0**3], [2.0**7]]


def test_a_cast_of_what_the_links_read_counts_as_theirs() -> None:
    kernels = [
        ("0/before", "QLinearConv"),
        ("Transpose_1", "Transpose"),
        ("0/before_DequantizeLinear", "DequantizeLinear"),
    ]
    kernels += [("0/link0", "FusedConv"), ("0/Relu_QuantizeLinear", "QuantizeLinear"), ("0/after", "QLinearConv")]
    found = probing._probe_seconds([KernelTime(name, op, 2.0**i) for i, (name, op) in enumerate(kernels)], 1)
    assert [seconds.tolist() for seconds in found] == [[2.0**1 + 2.0**2 + 2.0**3 + 2.0**4]]


def test_links_in_float32_within_int8_are_run_so_and_their_neighbours_not() -> None:
    own = Probe((Geometry(8, 8, (1, 1), (1, 1), (0,) * 4, (1, 1)),) * 2, (8, 8), 1, WITHIN_INT8, ("Relu",))
    session = Session(probing._served(probe_model([own]), own, ONE), ONE, profiled=True)
    session.run(probing._feeds(session, own.dtype))
    ops = {k.name: k.op for k in session.profile() if "Conv" in k.op}
    assert sum(op.startswith("QLinear") for op in ops.values()) == 2
    assert sum(not op.startswith("QLinear") for op in ops.values()) == len(own.links)


def test_each_run_has_its_own_times() -> None:
    runs = [[k._replace(seconds=k.seconds * factor) for k in FIRST] for factor in (1, 3, 5)]
    found = probing._probe_seconds([k for run in runs for k in run], 11)
    for i, counts in WHAT_COUNTS.items():
        assert found[i].tolist() == [factor * sum(2.0**k for k in counts) for factor in (1, 3, 5)]


def test_every_kernel_of_a_real_profile_finds_its_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    follows = [(), ("Relu",), ("Add", "Relu"), ("HardSwish",), ("Add", "Clip")]
    probes = [probe(16, 16, 8, *f) for f in follows]
    probes += [Probe((Geometry(32, 4), Geometry(4, 10)), (), 1, epilogue=f) for f in follows]
    probes += [Probe((Geometry(8, 12, (3,), (1,), (1, 1), (1,)),), (9,), 1, epilogue=f) for f in follows]
    monkeypatch.setattr(probing, "undisturbed", lambda seconds: seconds)
    (found,) = probing._run([probes], ONE, lambda share: None)
    assert len(found) == len(probes)
    for seconds in found:
        assert seconds.shape == (probing.LEAST_RUNS,)
        assert seconds.sum() > 0  # a kernel of less than a microsecond takes none
