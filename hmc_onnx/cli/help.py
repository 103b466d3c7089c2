"""What the help says of each command. Kept apart from the commands, so that the list of them is shown at once."""

from __future__ import annotations

__all__ = ["COMMANDS", "LATENCY", "PROGRAM"]

PROGRAM = (
    "Make a trained ONNX ResNet smaller and faster: prune and decompose each layer by how little accuracy the network "
    "loses by it."
)

COMMANDS = {
    "compress": "Compress a model with calibration images: profile, plan, apply and verify, and fine-tune if asked to.",
    "inspect": "Show a model's layers, costs and channel groups, and what can be done to each Conv.",
    "profile": "Measure what each candidate costs and how much accuracy it loses; writes a profile (JSON).",
    "plan": "Choose one candidate for each channel group and layer within a target; writes a plan (JSON).",
    "apply": "Carry a plan out and repair the layers; give the data that the profile was made with.",
    "verify": "Compare two models, or a model and what was handed over: signature, cost, fidelity, accuracy, latency.",
    "handoff": "Write what a server needs to run a model: Triton, TensorRT or onnxruntime.",
    "report": "Make an HTML page of the report (JSON) of a run: one file that opens without a network.",
    "finetune": "Train a compressed model against the original, in torch; only its weights' values change.\n\n"
    "Under `torchrun --nproc-per-node N -m hmc_onnx finetune …` it trains in N processes.",
    "latency": "Show, clear or make latency tables: what parts of networks take on a machine.",
}

LATENCY = {
    "show": "Show latency tables: the machine, and each part of a network with its time.",
    "clear": "Forget what was timed on this machine, such as while it was busy: it is timed again when it is needed.",
    "measure": "Measure all that a model and its parts may become on this machine, to plan for it on another.",
}
