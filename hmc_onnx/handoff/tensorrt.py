"""What TensorRT needs: the model, a script that builds an engine from it, and options for onnxruntime's provider."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from hmc_onnx.handoff.engines import engine_options, profiles
from hmc_onnx.handoff.served import Served
from hmc_onnx.handoff.tensorrt_check import check_buildable
from passes.core.errors import ModelError, SettingsError
from passes.graph.files import save

__all__ = ["OPTIONS", "SCRIPT", "build_command", "check_provider", "write"]

SCRIPT, OPTIONS = "build_engine.sh", "provider_options.json"

TEMPLATE = """\
#!/bin/sh
# Builds {engine} from model.onnx with trtexec of TensorRT 10 or 11; TRTEXEC says where that is.
set -eu
cd "$(dirname "$0")"
trtexec=${{TRTEXEC:-trtexec}}
# The types are those of the graph. TensorRT 11 takes no others; TensorRT 10 has to be told.
typed=
if "$trtexec" --help 2>&1 | grep -q -e --stronglyTyped; then typed=--stronglyTyped; fi
"$trtexec" $typed \\
{arguments}
"""


def write(served: Served, folder: Path) -> list[str]:
    """Write the files into a folder that is there; returns remarks, a sentence each.

    Raises:
        ModelError: TensorRT cannot build the graph, or the model leaves the size of an input open.
        SettingsError: another provider is asked for.
    """
    remarks = check_buildable(served.proto)
    if any("," in name for name in served.inputs):
        raise ModelError("trtexec takes no commas in the names of inputs: export the model with other names")
    save(served.proto, folder / "model.onnx")
    arguments = " \\\n".join(f"  {shlex.quote(argument)}" for argument in build_command(served))
    script = folder / SCRIPT
    script.write_text(TEMPLATE.format(engine=_engine(served), arguments=arguments), encoding="utf-8")
    script.chmod(script.stat().st_mode | 0o111)
    options = json.dumps(engine_options(served, "engines"), indent=1)
    (folder / OPTIONS).write_text(options + "\n", encoding="utf-8")
    return remarks


def build_command(served: Served) -> list[str]:
    """The arguments of trtexec, but for the one that TensorRT 10 alone wants.

    Where the number of images is open, the engine takes from one to the planned number, and is fastest at that. An
    engine's file is named by the model's digest, so that one of other weights is not taken for it.
    """
    command = ["--onnx=model.onnx", f"--saveEngine={_engine(served)}"]
    command += [f"--{which}Shapes={shapes}" for which, shapes in profiles(served).items()]
    return [*command, "--timingCacheFile=timing.cache", "--skipInference"]


def _engine(served: Served) -> str:
    return f"{served.name}_{served.digest}.engine"


def check_provider(provider: str | None) -> None:
    """Refuse a provider that TensorRT's folder is not for."""
    if provider not in (None, "auto", "tensorrt"):
        raise SettingsError(f"`provider` {provider}: what is handed over to TensorRT runs on it: leave `provider` out")
