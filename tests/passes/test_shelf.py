"""What is kept is what comes back, from memory and from files, here and in another process."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from passes.core import shelf
from passes.core.errors import OutputError, SettingsError
from passes.core.shelf import Kept, Shelf


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "float16"])
def test_a_large_array_is_in_a_file_and_comes_back(tmp_path: Path, dtype: str) -> None:
    array = (np.arange(shelf.SMALL) % 1000).reshape(4, -1).astype(dtype)
    kept = Shelf(tmp_path).keep(array)
    assert isinstance(kept.held, Path) and kept.held.parent == tmp_path
    assert kept.array.dtype == array.dtype
    np.testing.assert_array_equal(kept.array, array)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(kept)).array, array)
    with pytest.raises(ValueError, match="read-only"):
        kept.array[0] = 1
    kept.writable()[0] = 7
    assert (kept.array[0] == 7).all() and array[0, 0] == 0
    kept.drop()
    assert list(tmp_path.iterdir()) == []


def test_a_view_is_kept_as_what_it_shows(tmp_path: Path) -> None:
    array = np.arange(2 * shelf.SMALL, dtype=np.float32).reshape(4, -1).T[::2]
    np.testing.assert_array_equal(Shelf(tmp_path).keep(array).array, array)


def test_small_arrays_and_those_on_no_shelf_stay_in_memory(tmp_path: Path) -> None:
    small, large = np.ones(4), np.ones(shelf.SMALL)
    assert Shelf(tmp_path).keep(small).held is small
    assert Shelf().keep(large).held is large
    assert list(tmp_path.iterdir()) == []
    Kept(small).drop()
    assert Kept(small).array is small


def test_no_room_and_a_file_that_is_gone_are_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write to .*missing.*: make room"):
        Shelf(tmp_path / "missing").keep(np.ones(shelf.SMALL))
    kept = Shelf(tmp_path).keep(np.ones(shelf.SMALL))
    kept.drop()
    with pytest.raises(SettingsError, match=r"cannot read .*: give another `work_dir`"):
        _ = kept.array
