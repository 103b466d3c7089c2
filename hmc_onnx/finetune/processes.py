"""The processes of one training: this one alone, or those that `torchrun` has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from passes.core.errors import SettingsError

__all__ = ["TrainingProcesses", "processes"]


@dataclass(frozen=True)
class TrainingProcesses:
    """This process's rank, the number of processes, and the device that this one computes on."""

    rank: int
    count: int
    device: torch.device

    def summed(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes; the tensor is changed in place."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def agreed(self, value: float) -> float:
        """The value of process 0, in all processes; used for times, as clocks differ."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(tensor, 0)
        return float(tensor)


@contextmanager
def processes(device: str) -> Iterator[TrainingProcesses]:
    """The process group, joined within the context; its size is that which `torchrun` sets.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        SettingsError: the device does not work on this machine.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise SettingsError("device 'cuda' does not work on this machine: use cpu, or install a torch with CUDA")
    on_gpu = cuda and device != "cpu"
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", 0))
    chosen = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if count == 1:
        yield TrainingProcesses(0, 1, chosen)
        return
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=count)
    try:
        yield TrainingProcesses(rank, count, chosen)
        # Destroying the group waits for the threads of collectives while it holds the GIL, and these threads need the
        # GIL to free their tensors. The barrier ensures that none is running by then.
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
