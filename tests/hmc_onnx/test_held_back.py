"""Which images are held back from calibration."""

from __future__ import annotations

import numpy as np
import pytest

from calib.data.calibration import CalibrationData
from hmc_onnx.analysis.held_back import hold_back, images_to_ask_for
from passes.core.errors import DataError


def numbered(count: int) -> CalibrationData:
    return CalibrationData({"x": np.arange(count, dtype=np.float32)}, np.arange(count), "numbers")


@pytest.mark.parametrize(
    ("purpose", "count", "samples", "sizes", "fewer"),
    [
        ("report", 300, 200, (200, 100), False),
        ("report", 240, 200, (200, 40), False),
        ("report", 239, 200, (192, 47), True),
        ("report", 100, 200, (80, 20), True),
        ("report", 99, 200, (99, 0), False),
        ("report", 9000, 100, (100, 1000), False),
        ("search", 300, 100, (100, 200), False),
        ("search", 100, 100, (60, 40), True),
        ("search", 9000, 100, (100, 4000), False),
        ("nothing", 300, 200, (200, 0), False),
    ],
)
def test_no_image_is_in_two_parts(purpose: str, count: int, samples: int, sizes: tuple[int, int], fewer: bool) -> None:
    parts = hold_back(numbered(count), samples, 0, purpose)  # type: ignore[arg-type]
    found = [parts.calibration, *([] if parts.held is None else [parts.held])]
    assert (len(found[0]), sum(map(len, found[1:]))) == sizes
    assert parts.fewer == fewer
    values = np.concatenate([p.feeds["x"] for p in found])
    assert len(set(values)) == len(values)
    assert all(np.array_equal(p.feeds["x"], p.labels) for p in found)


def test_too_few_to_search_with_are_refused() -> None:
    with pytest.raises(DataError, match="there are 70 images, too few to search with: give 100 or more"):
        hold_back(numbered(70), 48, 0, "search")


def test_images_that_are_sorted_by_class_are_held_back_from_every_class() -> None:
    data = CalibrationData({"x": np.zeros((1000, 1), np.float32)}, np.arange(1000) // 100, "sorted")
    parts = hold_back(data, 1000, 0, "report")
    assert parts.held is not None and parts.held.labels is not None and parts.calibration.labels is not None
    assert set(parts.held.labels) == set(parts.calibration.labels) == set(range(10))


def test_as_many_are_asked_for_as_are_held_back() -> None:
    asked = [images_to_ask_for(n, p) for n in (10, 100, 5000) for p in ("nothing", "report", "search")]  # type: ignore[arg-type]
    assert asked == [10, 30, 50, 100, 200, 200, 5000, 6000, 9000]
