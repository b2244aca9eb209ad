"""Drawing random numbers for prompts: which prompts, where, in which type, and the operators that do it."""

from __future__ import annotations

from typing import Any, SupportsIndex

import torch
from torch import Tensor

from .._extension import has_cuda_kernels
from ..sampling import check_address
from .arguments import integer

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Address:
    """Which prompts of which step of which seed, checked."""

    def __init__(
        self, n_prompts: SupportsIndex, seed: SupportsIndex, step: SupportsIndex, first_prompt: SupportsIndex
    ) -> None:
        self.n_prompts = integer("n_prompts", n_prompts, at_least=0)
        self.seed = integer("seed", seed)
        self.step = integer("step", step)
        self.first_prompt = integer("first_prompt", first_prompt)
        check_address(self.seed, self.step, self.first_prompt, self.n_prompts)

    def as_operands(self) -> dict[str, int]:
        """What the operators take: their integers are signed, so the seed is folded."""
        seed = self.seed - 2**64 if self.seed >= 2**63 else self.seed
        return {"seed": seed, "step": self.step, "first_prompt": self.first_prompt}


def result_device(device: torch.device | str | None) -> torch.device:
    chosen = torch.get_default_device() if device is None else torch.device(device)
    if chosen.type == "meta":
        raise ValueError("prompts cannot be drawn on the meta device, which holds no numbers")
    return chosen


def drawing_device(device: torch.device) -> torch.device:
    """Where prompts for a device are drawn."""
    return device if device.type == "cuda" and has_cuda_kernels("sample_multi_task") else torch.device("cpu")


def result_dtype(dtype: torch.dtype | None) -> torch.dtype:
    chosen = torch.get_default_dtype() if dtype is None else dtype
    if chosen not in _DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {chosen}")
    return chosen


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def draw_covariates(
    address: Address, length: int, width: int, place: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Standard normals in float32 or float64: (N, length, width) of each prompt's stream `CONTEXT`, of which a shorter
    one is a prefix, and the first (N, width) of its stream `PROMPT`."""
    xi = torch.empty(address.n_prompts, length, width, dtype=dtype, device=place)
    xi_query = torch.empty(address.n_prompts, width, dtype=dtype, device=place)
    torch.ops.mhicl.sample_covariates(xi, xi_query, **address.as_operands())
    return xi, xi_query


@torch.library.register_fake("mhicl::sample_multi_task")
def _sample_multi_task_fake(*tensors: Tensor | None, **address: Any) -> None:
    """Fills tensors that the caller allocated: nothing to infer."""


@torch.library.register_fake("mhicl::sample_covariates")
def _sample_covariates_fake(*tensors: Tensor, **address: Any) -> None:
    """Fills tensors that the caller allocated: nothing to infer."""
