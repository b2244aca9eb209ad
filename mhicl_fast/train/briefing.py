"""How the processes of one run start it: the leader says what to train and from where, the others hear it.

The configuration is a word of JSON; a checkpoint, which may be large, follows it as a broadcast of bytes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from .._extension import native
from ..processes import DistributedError, Processes, in_short
from .checkpoints import Checkpoint
from .config import RunConfig


def brief(processes: Processes, config: RunConfig, device: torch.device, start: Checkpoint | None) -> None:
    """Tell the others what the leader is about to train, with what, and from which checkpoint if any.

    DistributedError where one is lost meanwhile.
    """
    if processes.size == 1:
        return
    content = b"" if start is None else start.to_bytes()
    processes.tell(
        {
            "config": replace(config, device=device.type).to_dict(),
            "instruction set": native.active_isa(),
            "checkpoint": len(content),
        }
    )
    if content:
        _broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), processes)


def hear_briefing(processes: Processes) -> tuple[RunConfig, Checkpoint | None] | None:
    """What the leader told, None where it has nothing to share.

    DistributedError where the leader is lost meanwhile, or rounds in another way than this process.
    """
    word = processes.hear()
    if "config" not in word:
        return None
    _check_instruction_set(word["instruction set"], processes)
    config = RunConfig.from_dict(word["config"])
    if not word["checkpoint"]:
        return config, None
    content = torch.empty(word["checkpoint"], dtype=torch.uint8)
    _broadcast(content, processes)
    return config, Checkpoint.from_bytes(content.numpy().tobytes())


def _check_instruction_set(leaders: str, processes: Processes) -> None:
    """Weights are never sent, so updates that round in two ways would drift apart."""
    own = native.active_isa()
    if own != leaders:
        lower = min(own, leaders, key=native.compiled_isas().index)
        raise DistributedError(
            f"{processes.name} computes with {own}, its leader with {leaders}, which rounds in another way: set "
            f"MHICL_ISA={lower} for all processes"
        )


def _broadcast(content: torch.Tensor, processes: Processes) -> None:
    try:
        dist.broadcast(content, src=0)
    except RuntimeError as error:
        raise DistributedError(
            f"{processes.name} lost the others while the run's start was shared: {in_short(error)}"
        ) from error
