"""Where long work is done, and who is told how far it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from hmc_onnx.records.options import Option, Options
from passes.core.errors import SettingsError
from passes.core.progress import Progress, silent

__all__ = ["HERE", "Backend", "Work"]

Backend = Literal["processes", "dask", "ray"]


class Work(Options):
    """Where long work is done; nothing here changes its results.

    Raises:
        SettingsError: a value is out of range, or an address is given without a cluster.
    """

    panel: ClassVar[str] = "Work"

    work_dir: Annotated[Path | None, Option(metavar="DIR", default="nothing is kept")] = Field(
        default=None, description="Folder that keeps every measurement: a run that was cut off goes on from it."
    )
    backend: Backend = Field(
        default="processes", description="Where to profile: processes of this machine, or a Dask or Ray cluster."
    )
    address: Annotated[str | None, Option(metavar="ADDRESS")] = Field(
        default=None, description="Address of the Dask or Ray cluster."
    )
    jobs: Annotated[int | None, Option(default="one a core")] = Field(
        default=None, ge=1, description="Processes of this machine to profile in."
    )
    memory: float = Field(
        default=2.0,
        gt=0,
        allow_inf_nan=False,
        description="Gigabytes of activations to hold in memory, of all processes together; more is held on disk.",
    )
    progress: Annotated[Progress, Option(command_line=False, file=False, default="tells nobody")] = Field(
        default=silent, exclude=True, repr=False, description="A function that is told what is done, and how far it is."
    )

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            work_dir: str | os.PathLike[str] | None = None,
            backend: Backend = "processes",
            address: str | None = None,
            jobs: int | None = None,
            memory: float = 2.0,
            progress: Progress = silent,
        ) -> None: ...

    def model_post_init(self, _: object) -> None:
        """Check that an address has its cluster."""
        if self.address is not None and self.backend == "processes":
            raise SettingsError(
                "`address` goes with a cluster: give `backend='dask'` or `backend='ray'`, too", "address"
            )


HERE = Work()
