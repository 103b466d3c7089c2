"""Where long work is done, and who is told how far it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field

from passes.core.errors import SettingsError
from passes.core.progress import Progress, silent
from passes.core.records import Frozen

__all__ = ["HERE", "Backend", "Work"]

Backend = Literal["processes", "dask", "ray"]


class Work(Frozen):
    """Where long work is done; nothing here changes its results.

    Raises:
        SettingsError: an address without a cluster.
    """

    work_dir: Path | None = Field(
        default=None, description="folder in which every measurement is kept: a run that was cut off goes on from it"
    )
    backend: Backend = Field(
        default="processes", description="where to profile: processes of this machine, or a Dask or Ray cluster"
    )
    address: str | None = Field(default=None, description="address of the Dask or Ray cluster")
    jobs: int | None = Field(
        default=None, ge=1, description="processes of this machine to profile in; None: one a core"
    )
    memory: float = Field(
        default=2.0,
        gt=0,
        lt=math.inf,
        description="gigabytes of activations to hold in memory, of all processes together; more is held on disk",
    )
    progress: Progress = Field(default=silent, exclude=True, repr=False)

    def model_post_init(self, _: object) -> None:
        """Check that an address has its cluster."""
        if self.address is not None and self.backend == "processes":
            raise SettingsError("an address is that of a cluster: choose the backend dask or ray, too")


HERE = Work()
