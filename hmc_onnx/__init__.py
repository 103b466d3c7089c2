"""hmc_onnx makes a trained ONNX ResNet smaller and faster, without training: see `compress`.

The public names are those of `hmc_onnx.api`. They are imported at first use, so that `import hmc_onnx` is instant.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hmc_onnx.own_modules import check_own_modules

# numpy and scipy have an OpenBLAS each. A thread of one that has nothing to do spins for a while, on a core that the
# other needs: on two cores, products and factorisations in turn take up to twice as long. At the least value threads
# sleep at once. OpenBLAS reads it as it is loaded, so it has no effect where numpy was imported before.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

if TYPE_CHECKING:
    from hmc_onnx.api import *  # noqa: F403

    __version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("hmc-onnx")
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module 'hmc_onnx' has no attribute '{name}'")
    check_own_modules()
    api = import_module("hmc_onnx.api")
    if name != "__all__" and name not in api.__all__:
        raise AttributeError(f"module 'hmc_onnx' has no attribute '{name}'")
    return getattr(api, name)


def __dir__() -> list[str]:
    try:
        return sorted({*globals(), *import_module("hmc_onnx.api").__all__})
    except ImportError:  # without onnxruntime there are none; using one says so
        return sorted(globals())
