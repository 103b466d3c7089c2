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

__all__ = ["Processes", "processes"]


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, and the device that it computes on."""

    rank: int
    count: int
    device: torch.device

    def summed(self, values: Tensor) -> Tensor:
        """The sum of all processes' values."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def agreed(self, value: float) -> float:
        """The first process's value, as clocks differ."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(tensor, 0)
        return float(tensor)


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """The processes, joined while the context lasts.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        SettingsError: there is no such device.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise SettingsError("device 'cuda' does not work on this machine: use cpu, or install a torch with CUDA")
    on_gpu = cuda and device != "cpu"
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", 0))
    chosen = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if count == 1:
        yield Processes(0, 1, chosen)
        return
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=count)
    try:
        yield Processes(rank, count, chosen)
        # A collective's thread needs the interpreter to let its tensors go, and the group's end waits for that thread
        # with the interpreter in hand: nothing may be under way by then.
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
