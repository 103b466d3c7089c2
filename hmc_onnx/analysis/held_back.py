"""Images that are held back from all fitting: to search with, and to report what the network does on new images."""

from __future__ import annotations

from dataclasses import dataclass

from calib.data.calibration import CalibrationData
from hmc_onnx.records.plan import HeldBack
from passes.core.errors import DataError

__all__ = ["CalibrationSplit", "hold_back", "images_to_ask_for"]

# Share of the images that is held back to report on, and that to search and to confirm with.
SHARES = {"report": 0.2, "search": 0.4}
# Fewer images than these say nothing, and more say little more than these.
LEAST = {"report": 20, "search": 40}
MOST = {"report": 1000, "search": 4000}


@dataclass(frozen=True)
class CalibrationSplit:
    """Images to calibrate with, and others. No image is in both.

    Attributes:
        calibration: everything is measured on these and fitted to them.
        held: nothing is fitted to these; None where there are too few images to hold some back.
        fewer: whether `calibration` would have more images if none were held back.
    """

    calibration: CalibrationData
    held: CalibrationData | None = None
    fewer: bool = False


def images_to_ask_for(samples: int, purpose: HeldBack) -> int:
    """How many images a reader should give, so that `samples` are left to calibrate with."""
    return samples + (0 if purpose == "nothing" else max(min(samples, MOST[purpose]), LEAST[purpose]))


def hold_back(data: CalibrationData, samples: int, seed: int, purpose: HeldBack) -> CalibrationSplit:
    """Hold images back from calibration.

    The first `samples` images are to calibrate with, and those behind them are held back. Where these are fewer than a
    share (`SHARES`) of the first, that share of all images is drawn at random and held back.

    Args:
        data: all images.
        samples: how many to calibrate with.
        seed: of the draw, which depends on the number of images besides.
        purpose: what images are held back for.

    Raises:
        DataError: there are too few images to search with.
    """
    if purpose == "nothing":
        return CalibrationSplit(data.head(samples))
    calibration = min(samples, len(data))
    if len(data) - calibration >= max(SHARES[purpose] * calibration, LEAST[purpose]):
        first, rest = data.part(samples)
        return CalibrationSplit(first, rest.draw(MOST[purpose], seed))
    held = int(SHARES[purpose] * len(data))
    if held >= LEAST[purpose]:
        return CalibrationSplit(*data.split(len(data) - held, seed), fewer=True)
    if purpose == "search":
        least = round(LEAST[purpose] / SHARES[purpose])
        raise DataError(f"there are {len(data)} images, too few to search with: give {least} or more")
    return CalibrationSplit(data.head(samples))
