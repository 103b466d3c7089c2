"""One thread of BLAS: within the context, nested, and as many as before behind it."""

from __future__ import annotations

import threading

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from passes.core.blas import one_blas_thread


def of_blas() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def _two() -> None:
    with threadpool_limits(2, "blas"):
        if of_blas() != {2}:
            pytest.skip("BLAS has no two threads here")
        yield


def test_blas_has_one_thread_within_and_as_many_as_before_behind() -> None:
    with one_blas_thread():
        assert of_blas() == {1}
        with one_blas_thread():
            assert of_blas() == {1}
        assert of_blas() == {1}
    assert of_blas() == {2}


def test_a_layer_that_is_not_narrow_changes_nothing() -> None:
    with one_blas_thread(narrow=False):
        assert of_blas() == {2}
    assert of_blas() == {2}


def test_an_error_within_gives_the_threads_back() -> None:
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        1 / 0  # noqa: B018
    assert of_blas() == {2}


def test_contexts_of_two_threads_that_overlap_give_the_threads_back() -> None:
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with one_blas_thread():
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with one_blas_thread():
        thread.start()
        assert entered.wait(10)
    left.set()
    thread.join()
    assert of_blas() == {2}
