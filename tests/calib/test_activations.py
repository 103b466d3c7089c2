"""Activations on disk are those in memory, and a walk that holds them there finds the same."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import images, resnet

from calib.measure.activations import Activations, Store
from calib.measure.walk import Walk
from passes.normal_form.normalise import normalise

NAMES = ("fed", "also fed", "a", "b", "c")
# What is done to one of two chunks, to which tensor, and how many values it is set to.
STEPS = st.tuples(
    st.sampled_from(["set", "set", "get", "delete"]), st.integers(0, 1), st.sampled_from(NAMES), st.integers(0, 6)
)


def same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert (set(found), len(found)) == (set(expected), len(expected))
    for name in NAMES:
        assert (name in found) == (name in expected)
        if name in expected:
            np.testing.assert_array_equal(found[name], expected[name], strict=True)


def files(store: Store) -> list[Path]:
    return sorted(store.place().parent.iterdir())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([None, 0, 4, 20, 60]), st.lists(STEPS, max_size=30))
def test_activations_are_a_dict_whatever_the_bound(memory: int | None, steps: list[tuple[str, int, str, int]]) -> None:
    store = Store(memory)
    feeds = {name: np.full((2, 3), i, np.float64) for i, name in enumerate(NAMES[:2])}
    chunks, dicts = [Activations(store, feeds) for _ in range(2)], [dict(feeds) for _ in range(2)]
    for i, (what, at, name, size) in enumerate(steps):
        chunk, expected = chunks[at], dicts[at]
        if what == "set":
            chunk[name] = expected[name] = np.full(size, i, np.float32)
        elif name in expected and what == "delete":
            del chunk[name], expected[name]
        elif name not in expected:
            with pytest.raises(KeyError, match=name):
                chunk.__getitem__(name) if what == "get" else chunk.__delitem__(name)
        same(chunk, expected)
        held = sum(v.nbytes for d in dicts for n, v in d.items() if v is not feeds.get(n))
        assert store.used <= (held if memory is None else min(held, memory))
    same(chunks[0], dicts[0])
    same(chunks[1], dicts[1])
    for chunk in chunks:
        for name in list(chunk):
            del chunk[name]
    assert store.used == 0
    assert not files(store)
    assert feeds.keys() == set(NAMES[:2])  # they are the caller's


def test_what_does_not_fit_is_in_a_file_until_it_is_replaced_or_deleted() -> None:
    store = Store(100)
    chunk = Activations(store, {"fed": np.zeros(1000)})
    chunk["a"], chunk["b"] = np.zeros(20, np.float32), np.ones(6, np.float32)
    assert (store.used, len(files(store))) == (80, 1)
    del chunk["a"]
    chunk["c"] = np.zeros(25, np.float32)
    assert (store.used, len(files(store))) == (100, 1)
    chunk["b"] = np.ones(7, np.float32)
    assert len(files(store)) == 1 and chunk["b"].size == 7
    chunk["b"] = np.ones(0, np.float32)
    assert (store.used, files(store)) == (100, [])


@pytest.mark.parametrize(
    "value",
    [
        np.float64(3.5).reshape(()),
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.arange(12, dtype=np.float16)[::2],
        np.array([True, False]),
        np.zeros((0, 4), np.uint8),
    ],
    ids=lambda v: f"{v.dtype} {v.shape}",
)
def test_a_file_gives_back_the_array(value: np.ndarray) -> None:
    chunk = Activations(Store(-1), {})  # not even what is empty fits
    chunk["a"] = value
    assert chunk["a"] is not value
    np.testing.assert_array_equal(chunk["a"], value, strict=True)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the folder goes with the store
def test_nothing_stays_on_disk_when_the_walk_is_over() -> None:
    store = Store(0)
    chunk = Activations(store, {})
    chunk["a"] = np.zeros(3)
    folder = files(store)[0].parent
    del store, chunk
    gc.collect()
    assert not folder.exists()


def test_without_a_bound_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "place", lambda _: pytest.fail("a file"))
    store = Store()
    chunk = Activations(store, {})
    chunk["a"] = value = np.zeros(10**6)
    assert chunk["a"] is value
    assert store.used == value.nbytes


@pytest.mark.parametrize("memory", [0, 10_000])
@pytest.mark.parametrize(
    "proto",
    [resnet((2, 1), (4, 8), size=8), resnet((1, 1), (4, 8), shortcut="B", block="bottleneck", size=8)],
    ids=["option A", "option B, bottlenecks"],
)
def test_a_walk_on_disk_finds_what_one_in_memory_does(proto: onnx.ModelProto, memory: int) -> None:
    model = normalise(proto)
    chunks = [{"input": part} for part in np.split(images(7, 8), [3, 6])]
    bounded, free = Walk(model, chunks, memory=memory), Walk(model, chunks)
    head = model.graph.nodes[-1].inputs[1]
    changed = {head.name: -head.values}
    written = 0
    for node in model.graph.nodes:
        for walk in (bounded, free):
            walk.advance([node.outputs[0].name])
        written += len(files(bounded.chunks[0]._store))
        assert set(bounded.chunks[0]) == set(free.chunks[0])
        for name in free.chunks[0]:
            for a, b in zip(bounded.values(name), free.values(name), strict=True):
                np.testing.assert_array_equal(a, b, strict=True)
        (found,), (expected,) = (walk.tail([head.name]).outputs(changed) for walk in (bounded, free))
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected), strict=True)
    assert written
