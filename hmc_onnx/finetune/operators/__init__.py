"""How torch computes each ONNX operator: one rule per operator, registered by its name (see `registry`)."""

from hmc_onnx.finetune.operators import elementwise, layers, movement, normalisation, resizing
from hmc_onnx.finetune.operators.elementwise import torch_type
from hmc_onnx.finetune.operators.registry import RULES, Mode, Operator

__all__ = ["RULES", "Mode", "Operator", "elementwise", "layers", "movement", "normalisation", "resizing", "torch_type"]
