"""The command `handoff`, and what `verify --against` runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmc_onnx.cli.console import show
from hmc_onnx.cli.groups import Config, Destination, Handoff, Images
from hmc_onnx.cli.help import COMMANDS
from hmc_onnx.cli.options import Given, Group, command
from passes.core.errors import SettingsError

if TYPE_CHECKING:
    import onnx

    from calib.runtime.sessions import Runtime

__all__ = ["app", "check_one_of", "second_model"]

app = typer.Typer()

PREPROCESSING = Group(Images, without=("labels_offset", "label_map", "skip_unreadable"))


@command(app, "handoff", COMMANDS["handoff"], Destination, Config, Handoff, PREPROCESSING)
def handoff(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The model, as `compress` wrote it.", show_default=False)
    ],
    given: Given,
) -> None:
    """Hand a model over to a server."""
    from hmc_onnx.cli.wording import in_options
    from hmc_onnx.handoff import handoff as write

    place = given.of(Destination)
    remarks = write(model, place.to, place.output, options=given.of(Handoff), images=given.of(Images))
    show(*map(in_options, remarks), f"Written: {place.output}")


def check_one_of(b: Path | None, against: Path | None) -> None:
    """Check that either a file or a folder is given; raises SettingsError."""
    if (b is None) == (against is None):
        raise SettingsError("give either the compressed model's file or, with `against`, the folder of a handoff")


def second_model(
    b: Path | None, against: Path | None, given: Given, runtime: Runtime
) -> tuple[onnx.ModelProto, Runtime, tuple[int, ...] | None]:
    """The model that another is compared with, how both are to be run, and at which batch sizes (None: as always).

    Args:
        b: its file, or
        against: the folder that it was handed over in, which says how it is served.
        given: the options; a provider or threads that were given go before what the folder says.
        runtime: that these options make.
    """
    from calib.runtime.sessions import Runtime
    from hmc_onnx.cli.reading import opened
    from hmc_onnx.handoff.handed_over import read
    from passes.graph.external import on_disk

    if b is not None:
        return opened(b, given), runtime, None
    assert against is not None
    found = read(against)
    provider = runtime.provider if "provider" in given else found.provider
    options = runtime.options if "provider" in given or runtime.options else found.provider_option
    threads = runtime.threads if "threads" in given else found.threads
    sizes = None if found.batch is None else tuple(sorted({1, found.batch}))
    return given.resources.enter_context(on_disk(found.proto)), Runtime(provider, threads, options), sizes
