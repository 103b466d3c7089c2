"""What a service on onnxruntime needs: the model, the options of a session, and a script that serves one image."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from calib.data.preprocess import Preprocess
from calib.runtime.providers import CPU, known_provider, with_fallbacks
from hmc_onnx.analysis.model_inputs import for_input, signature
from hmc_onnx.handoff.engines import engine_options
from hmc_onnx.handoff.served import Dims, Served
from hmc_onnx.records.handoff import MOST_IMAGES
from hmc_onnx.records.settings import MOST_THREADS
from passes.core.errors import ModelError, SettingsError
from passes.core.records import Frozen
from passes.graph.files import save
from passes.graph.model import Model

__all__ = ["SESSION", "SessionFile", "write"]

SESSION = "session.json"

TEMPLATE = '''\
"""Print what the model beside this file makes of an image: python serve.py IMAGE"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

if len(sys.argv) != 2:
    sys.exit(__doc__)
folder = Path(__file__).resolve().parent
session_of = json.loads((folder / "session.json").read_text())
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = session_of["intra_op_num_threads"]
for own in session_of["provider_options"]:  # engines are kept beside this file
    own.update({{key: str(folder / path) for key, path in own.items() if key.endswith("_cache_path")}})
session = onnxruntime.InferenceSession(
    folder / "model.onnx", options, session_of["providers"], session_of["provider_options"]
)
{image}
(answer,) = session.run([{output!r}], {{{input!r}: {batch}}})
print({answer})
'''


class SessionFile(Frozen):
    """The options of a session of onnxruntime, under its own names.

    Attributes:
        batch: images that the model was planned for at once.
        intra_op_num_threads: 0: what onnxruntime chooses.
        providers: in the order in which they are asked.
        provider_options: of each.
    """

    batch: int = Field(ge=1, le=MOST_IMAGES)
    intra_op_num_threads: int = Field(ge=0, le=MOST_THREADS)
    providers: list[str] = Field(min_length=1)
    provider_options: list[dict[str, str]]

    @model_validator(mode="after")
    def _for_each_provider(self) -> SessionFile:
        if len(self.provider_options) != len(self.providers):
            raise ValueError("give options for each of the providers, {} where there are none")
        for provider in self.providers:
            try:
                known = known_provider(provider)
            except SettingsError as e:
                raise ValueError(str(e)) from e
            if known != provider:
                raise ValueError(f"'{provider}' is not onnxruntime's name of a provider, such as {CPU}")
        return self


def write(served: Served, folder: Path) -> list[str]:
    """Write the files into a folder that is there; returns remarks, a sentence each.

    Raises:
        ModelError: the model has several inputs, or an input that is no image.
        SettingsError: the preprocessing does not fit the input.
    """
    text = _script(served)
    save(served.proto, folder / "model.onnx")
    (folder / "serve.py").write_text(text, encoding="utf-8")
    first, *others = with_fallbacks(known_provider("cpu" if served.provider == "auto" else served.provider))
    SessionFile(
        batch=served.batch,
        intra_op_num_threads=served.threads,
        providers=[first, *others],
        provider_options=[
            engine_options(served, "engines") if "Tensorrt" in first else served.provider_options,
            *({} for _ in others),
        ],
    ).save(folder / SESSION)
    if not served.images.model_fields_set:
        return [
            "serve.py divides pixels by 255 and does nothing else to them: give `preset`, or `mean` and `std`, where "
            "the model was trained with others."
        ]
    return []


def _script(served: Served) -> str:
    if len(served.inputs) != 1:
        raise ModelError(f"the model has {len(served.inputs)} inputs, and serve.py feeds one: use another target")
    ((name, (dtype, dims)),) = signature(served.proto).items()
    how = _fitted(for_input(served.images.preprocess(), dtype), name, dims)
    how.check_type()
    output, answer = _answer(served)
    batch = "pixels[None]" if dims[0] in (None, 1) else f"np.repeat(pixels[None], {dims[0]}, axis=0)"
    image = "\n".join(_preprocessing(how, dtype.name))
    return TEMPLATE.format(image=image, input=name, output=output, answer=answer, batch=batch)


def _fitted(how: Preprocess, name: str, dims: Dims) -> Preprocess:
    """The preprocessing, with the size that the model declares where none is given."""
    if len(dims) != 4:
        raise ModelError(f"the model's input '{name}' has {len(dims)} axes, and serve.py feeds images, which have four")
    channels, *sides = dims[1:] if how.layout == "NCHW" else (dims[3], *dims[1:3])
    if how.size is None and None not in sides:
        how = how.with_overrides(size=[side for side in sides if side is not None])
    fits = how.size is None or all(side in (None, own) for side, own in zip(sides, how.size, strict=True))
    if channels not in (None, how.channels) or not fits:
        shown = ", ".join("?" if d is None else str(d) for d in dims)
        raise SettingsError(
            f"the model's input '{name}' is of shape ({shown}), and images would come out with {how.channels} channels "
            f"of {how.size} in {how.layout}: set `size`, `layout`, `mean` or `preset` to match"
        )
    return how


def _preprocessing(how: Preprocess, dtype: str) -> list[str]:
    """Lines of the script that make `image` and `pixels`; they do what `Preprocess.apply` does."""
    lines = [
        "try:",
        f'    image = Image.open(sys.argv[1]).convert("{"RGB" if how.channels == 3 else "L"}")',
        "except OSError as e:",
        "    sys.exit(f\"cannot read the image '{sys.argv[1]}' ({e.strerror or 'it is no image'})\")",
    ]
    resampling = f"Image.Resampling.{how.interpolation.upper()}"
    if how.resize is not None:
        lines.append("shorter = min(image.size)")
        lines.append(f"image = image.resize([{how.resize} * side // shorter for side in image.size], {resampling})")
        if how.size is not None:
            height, width = how.size
            lines.append(f"left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)")
            lines.append(f"image = image.crop((left, top, left + {width}, top + {height}))")
    elif how.size is not None:
        lines.append(f"image = image.resize(({how.size[1]}, {how.size[0]}), {resampling})")
    lines.append(f"pixels = np.asarray(image).reshape(image.height, image.width, {how.channels})")
    if how.order == "bgr":
        lines.append("pixels = pixels[:, :, ::-1]")
    if dtype != "uint8":
        scaled = f"(pixels / {how.scale!r} - np.array({list(how.mean)})) / np.array({list(how.std)})"
        kind = "" if dtype == "float32" else f'.astype("{dtype}")'
        lines.append(f"pixels = ({scaled}).astype(np.float32){kind}")
    if how.layout == "NCHW":
        lines.append("pixels = pixels.transpose(2, 0, 1)")
    return lines


def _answer(served: Served) -> tuple[str, str]:
    """The output that says most, and what to print of it: the class where it chooses one, else its values."""
    output = next((o for o in Model(served.proto).compared if o.name in served.outputs), None)
    if output is None:
        raise ModelError("the model has no output of a fixed size that serve.py could print: use another target")
    if output.tensor != output.name:  # the output is the chosen class itself
        return output.name, "answer[0]"
    if output.kind in ("scores", "probabilities"):
        rank = len(served.outputs[output.name])
        axis = output.axis - 1 if output.axis > 0 else output.axis
        return output.name, "answer[0].argmax()" if rank == 2 else f"answer[0].argmax({axis})"
    if output.kind == "logit":
        return output.name, "(answer[0] > 0).astype(int)"
    if output.kind == "probability":
        return output.name, "(answer[0] > 0.5).astype(int)"
    return output.name, "answer[0]"
