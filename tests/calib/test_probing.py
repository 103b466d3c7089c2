"""Probes are timed kernel by kernel, many in a session."""

from __future__ import annotations

from dataclasses import replace

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
    (found,) = probing._by_session([probe(64, 64, 24)], ONE)
    assert found.value > 0


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
    assert [p for p, _ in found] == probes
    assert [time is not None and time.value > 0 for _, time in found] == [True, False, True, False]


def test_a_geometry_that_does_not_fit_its_size_has_no_time() -> None:
    large = Probe((Geometry(8, 8, (5, 5), (1, 1), (0,) * 4, (1, 1)),), (3, 3), 1)
    found = dict(time_probes([large, probe()], ONE))
    assert found[large] is None
    assert found[probe()].value > 0


def test_probes_share_a_session_with_their_like(monkeypatch: pytest.MonkeyPatch) -> None:
    lots: list[list[Probe]] = []

    def timed(lot: list[Probe], *_: object) -> list[Measurement]:
        lots.append(lot)
        return [Measurement(p.batch, 0.0) for p in lot]

    monkeypatch.setattr(probing, "_time_lot", timed)
    monkeypatch.setattr(probing, "LOT_PROBES", 3)
    monkeypatch.setattr(probing, "LOT_MACS", 4e6)
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
    for lot in lots:
        assert len({(p.batch, p.dtype) for p in lot}) == 1
        assert len(lot) == 1 or (len(lot) <= 3 and sum(p.macs for p in lot) <= 4e6)
    assert len(lots) < len(probes) / 2 + 3
    assert [done for _, done, _ in steps] == [0, *np.cumsum([len(lot) for lot in lots])]
    assert {(what, of) for what, _, of in steps} == {("latency", len(probes))}
    assert list(time_probes([], CPU)) == []


def test_a_lot_is_run_again_while_what_all_lots_have_takes_longer_than_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "TRIES", 5)
    monkeypatch.setattr(probing, "_references", {})
    tries: list[list[float]] = []  # of two probes and the reference
    monkeypatch.setattr(probing, "_run_lot", lambda *_: [Measurement(value, 0.0) for value in tries.pop(0)])

    def values(size: int = 16) -> list[float]:
        return [e.value for e in probing._by_kernel([probe(size), probe(16, 24)], CPU)]

    tries += [[5.0, 6.0, 1.0]]
    assert values() == [5.0, 6.0]
    tries += [[9.0, 9.0, 1.5], [7.0, 3.0, 1.2], [8.0, 8.0, 1.01]]
    assert values() == [7.0, 3.0]
    tries += [[9.0, 9.0, 2.0], [8.0, 9.5, 1.95]]  # the load lasts
    assert values() == [8.0, 9.0]
    tries += [[9.0 - i, 9.0, 9.0 - i] for i in range(5)]
    assert values() == [5.0, 9.0]
    tries += [[9.0, 9.0, 2.0]]  # beside larger probes
    assert values(size=64) == [9.0, 9.0]
    assert tries == []


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_what_all_lots_have_is_about_as_much_work_at_every_batch_size(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    lots: list[list[Probe]] = []
    monkeypatch.setattr(probing, "probe_model", lambda lot: lots.append(lot))
    monkeypatch.setattr(probing, "_run_lot", lambda *_: [Measurement(1.0, 0.0)] * 2)
    probing._by_kernel([replace(probe(16), batch=batch)], CPU)
    assert lots[0][1].macs == pytest.approx(9 * 32 * 32 * 8192, rel=0.15)


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
    (found,) = probing._run_lot(probe_model([own]), own.dtype, 1, ONE)
    assert found.value == probing.SHORTEST


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
    for seconds in probing._run_lot(probe_model(probes), probes[0].dtype, len(probes), ONE):
        assert seconds.shape == (probing.LEAST_RUNS,)
        assert seconds.sum() > 0  # a kernel of less than a microsecond takes none
