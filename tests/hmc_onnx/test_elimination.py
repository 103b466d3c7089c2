"""Backward elimination against brute force: at every step each channel is tried and solved for by lstsq."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmc_onnx.search_space import elimination
from hmc_onnx.search_space.elimination import Consumer, Elimination, Floors, _State, eliminate
from passes.core import shelf
from passes.core.shelf import Kept, Shelf


def ridged(moment: np.ndarray) -> np.ndarray:
    """The moment with a millionth of its mean eigenvalue on the diagonal: what is solved for."""
    return moment + 1e-6 * np.trace(moment) / len(moment) * np.eye(len(moment))


def consumer(rng: np.random.Generator, classes: list[int], kernel: tuple[int, ...] = (), outputs: int = 3) -> Consumer:
    """A layer with random weights, and the moment of random patches that are correlated."""
    weight = rng.normal(size=(outputs, len(classes), *kernel))
    n = weight[0].size
    x = rng.normal(size=(10 * n, n)) @ (np.eye(n) + 0.3 * rng.normal(size=(n, n)))
    return Consumer(Kept(weight), Kept(x.T @ x / len(x)), np.array(classes))


def features(c: Consumer, gone: list[int]) -> np.ndarray:
    """Mask of the features that stay."""
    return np.repeat(~np.isin(c.classes, gone), c.weight.array[0, 0].size)


def solved(c: Consumer, gone: list[int]) -> np.ndarray:
    """Least-squares weights (O, n) with zeros at the removed classes."""
    root = np.linalg.cholesky(ridged(c.moment.array)).T
    flat, keep = c.weight.array.reshape(len(c.weight.array), -1), features(c, gone)
    out = np.zeros_like(flat)
    out[:, keep] = np.linalg.lstsq(root[:, keep], root @ flat.T, rcond=None)[0].T
    return out


def loss(c: Consumer, weights: np.ndarray) -> float:
    """Share of the layer's response that these weights lose."""
    flat = c.weight.array.reshape(len(c.weight.array), -1)
    difference = flat - weights.reshape(flat.shape)
    return float(
        np.trace(difference @ ridged(c.moment.array) @ difference.T) / np.trace(flat @ c.moment.array @ flat.T)
    )


def assert_greedy(consumers: list[Consumer], size: int, found: Elimination) -> None:
    gone: list[int] = []
    for c in found.order:
        costs = {k: sum(loss(m, solved(m, [*gone, k])) for m in consumers) for k in set(range(size)) - set(gone)}
        assert costs[c] == pytest.approx(min(costs.values()), rel=1e-6)
        gone.append(int(c))


def assert_solved(consumers: list[Consumer], found: Elimination) -> None:
    for m, weights in found.weights.items():
        gone = [int(c) for c in found.order[:m]]
        for c, weight in zip(consumers, weights, strict=True):
            flat = weight.array.reshape(len(weight.array), -1)
            assert not flat[:, ~features(c, gone)].any()
            np.testing.assert_allclose(flat, solved(c, gone), rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(), (3,), (2, 2)]))
def test_each_step_removes_what_costs_least_and_solves_for_the_rest(seed: int, kernel: tuple[int, ...]) -> None:
    c = consumer(np.random.default_rng(seed), list(range(6)), kernel)
    found = eliminate([c], 6, range(1, 6))
    assert sorted(found.weights) == [1, 2, 3, 4, 5]
    assert_greedy([c], 6, found)
    assert_solved([c], found)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_two_layers_are_served_in_relative_terms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = consumer(rng, [0, 1, 2, 3, 4], (2,), outputs=2)
    second = consumer(rng, [4, 3, -1, 2, 1, 0, 0], outputs=5)  # in another order, one class twice, one channel fixed
    found = eliminate([first, second], 5, [1, 2, 4])
    assert_greedy([first, second], 5, found)
    assert_solved([first, second], found)
    # a layer whose answers are a thousand times as large has no more say
    louder = eliminate([first, replace(second, weight=Kept(1e3 * second.weight.array))], 5, [4])
    np.testing.assert_array_equal(louder.order, found.order)


@pytest.mark.parametrize("kernel", [(), (3,), (2, 2)], ids=str)
def test_every_score_is_the_error_that_the_removal_adds(kernel: tuple[int, ...]) -> None:
    c = consumer(np.random.default_rng(3), [0, 1, 1, 2, 3, -1, 4], kernel)
    state, gone = _State(c, 6, Shelf()), []
    for removed in (3, 1, None):  # class 5 is read by other layers only
        left = [k for k in range(6) if k not in gone]
        added = [loss(c, solved(c, [*gone, k])) - loss(c, solved(c, gone)) for k in left]
        np.testing.assert_allclose(state.scores(~np.isin(range(6), gone))[left], added, rtol=1e-6, atol=1e-9)
        assert added[left.index(5)] == 0
        if removed is not None:
            state.remove([removed])
            gone.append(removed)


def test_many_channels_go_in_lots_that_cost_hardly_more_than_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2000, 64)) @ rng.normal(size=(64, 64)) * rng.uniform(0.1, 2, 64)
    c = Consumer(Kept(rng.normal(size=(16, 64))), Kept(x.T @ x / 2000), np.arange(64))
    losses = []
    for lots in (128, 16):
        monkeypatch.setattr(elimination, "LOTS", lots)
        found = eliminate([c], 64, [20, 33])
        assert len(found.order) == len(set(found.order.tolist())) == 33
        np.testing.assert_allclose(found.weights[33][0].array, solved(c, found.order.tolist()), atol=1e-4)
        losses.append(loss(c, found.weights[33][0].array))
    assert losses[0] <= losses[1] < 1.3 * losses[0]


def test_a_copy_of_a_channel_goes_for_free_and_the_other_takes_its_part() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4))
    x = np.concatenate([x, x[:, :1]], 1)  # channel 4 is channel 0
    weight = rng.normal(size=(3, 5)) + 3
    found = eliminate([Consumer(Kept(weight), Kept(x.T @ x / 500), np.arange(5))], 5, [1])
    gone = int(found.order[0])
    assert gone in (0, 4)
    np.testing.assert_allclose(found.weights[1][0].array[:, 4 - gone], weight[:, 0] + weight[:, 4], rtol=1e-4)
    np.testing.assert_allclose(found.weights[1][0].array[:, 1:4], weight[:, 1:4], rtol=1e-4)


def test_a_channel_that_is_never_on_goes_first() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4))
    x[:, 2] = 0
    weight = rng.normal(size=(3, 4))
    found = eliminate([Consumer(Kept(weight), Kept(x.T @ x / 500), np.arange(4))], 4, [1])
    assert found.order.tolist() == [2]
    np.testing.assert_allclose(found.weights[1][0].array, np.where(np.arange(4) == 2, 0, weight), rtol=1e-4)


def test_floors_hold_on_every_axis_and_the_rest_goes_on() -> None:
    c = consumer(np.random.default_rng(0), list(range(8)))
    cheap = replace(c, weight=Kept(c.weight.array * np.array([1e-3] * 3 + [1] * 5)))  # 0, 1, 2 would go first
    free = eliminate([cheap], 8, [3])
    assert sorted(free.order) == [0, 1, 2]
    held = eliminate([cheap], 8, [8], Floors([np.arange(8), np.array([0, 1, 2, -1])], 2))
    assert len(held.order) == 6  # two of all stay,
    assert len(set(held.order) & {0, 1, 2}) == 1  # and two of the three
    assert not held.weights  # what was asked for cannot be had
    twice = eliminate([cheap], 8, [8], Floors([np.array([0, 0, 0, 1])], 3))  # class 0 takes three entries at once
    assert 0 not in twice.order and 1 in twice.order


def test_the_given_weights_stay_as_they_were() -> None:
    c = consumer(np.random.default_rng(0), [0, 1, 2], (2,))
    weight, moment = c.weight.array.copy(), c.moment.array.copy()
    eliminate([c], 3, [1, 2])
    np.testing.assert_array_equal(c.weight.array, weight)
    np.testing.assert_array_equal(c.moment.array, moment)


@pytest.mark.parametrize("kernel", [(), (3,)], ids=str)
def test_on_a_shelf_of_files_it_is_the_same_and_leaves_the_repaired_weights_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, ...]
) -> None:
    monkeypatch.setattr(shelf, "SMALL", 0)
    c = consumer(np.random.default_rng(0), list(range(8)), kernel)
    filed = [replace(c, weight=Shelf(tmp_path).keep(c.weight.array), moment=Shelf(tmp_path).keep(c.moment.array))]
    there, here = eliminate(filed, 8, [2, 5], shelf=Shelf(tmp_path)), eliminate([c], 8, [2, 5])
    np.testing.assert_array_equal(there.order, here.order)
    for count in (2, 5):
        np.testing.assert_array_equal(there.weights[count][0].array, here.weights[count][0].array)
    assert len(list(tmp_path.iterdir())) == 2 + 2  # what was given, and two weights


def test_no_axis_loses_more_than_it_may() -> None:
    consumer = Consumer(Kept(np.ones((2, 6, 1))), Kept(np.eye(6)), np.arange(6))
    floors = [np.arange(6), np.array([0, 1, 2])]
    found = eliminate([consumer], 6, [6], Floors(floors, 2))
    assert len(found.order) == 4
    assert sum(c < 3 for c in found.order) == 1
