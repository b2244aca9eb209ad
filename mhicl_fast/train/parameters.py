"""The two parameterisations of a multi-head attention layer, as small value objects.

Combined: KQ (H, D, D) and OV (H, I, D). Factored: W_Q, W_K, W_V (H, E, D), W_O (H, I, E) with
KQ_h = scale · W_K,hᵀ W_Q,h and OV_h = W_O,h W_V,h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def resolve_scale(scale: float | None, width: int) -> float:
    """The factor on W_KᵀW_Q that `scale` stands for: None is E^-½ for projections of width E."""
    return float(width) ** -0.5 if scale is None else scale


@dataclass(frozen=True, eq=False)
class Combined:
    """The combined matrices as parameters: kq (H, D, D), ov (H, I, D)."""

    kq: Tensor
    ov: Tensor

    def __post_init__(self) -> None:
        _check_types(self.tensors())
        if self.kq.dim() != 3 or self.kq.shape[1] != self.kq.shape[2]:
            raise ValueError(f"kq must be (heads, dim, dim), got shape {list(self.kq.shape)}")
        heads, dim = self.kq.shape[:2]
        if self.ov.dim() != 3 or (self.ov.shape[0], self.ov.shape[2]) != (heads, dim):
            raise ValueError(f"ov must be ({heads}, outputs, {dim}), got shape {list(self.ov.shape)}")

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name."""
        return {"kq": self.kq, "ov": self.ov}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Combined:
        """The same parameterisation holding other tensors."""
        return Combined(**tensors)

    def to(self, device: torch.device) -> Combined:
        """The same weights on a device."""
        return self.with_tensors(_moved(self.tensors(), device))

    def to_combined(self) -> tuple[Tensor, Tensor]:
        """(kq, ov), differentiable in the trained tensors."""
        return self.kq, self.ov


@dataclass(frozen=True, eq=False)
class Factored:
    """Projections as parameters: w_q, w_k, w_v (H, E, D), w_o (H, I, E).

    `scale` multiplies KQ; None stands for E^-½, the convention of `nn.MultiheadAttention`.
    """

    w_q: Tensor
    w_k: Tensor
    w_v: Tensor
    w_o: Tensor
    scale: float | None = None

    def __post_init__(self) -> None:
        _check_types(self.tensors())
        if self.w_q.dim() != 3:
            raise ValueError(f"w_q must be (heads, width, dim), got shape {list(self.w_q.shape)}")
        for name in ("w_k", "w_v"):
            if getattr(self, name).shape != self.w_q.shape:
                raise ValueError(
                    f"{name} must have w_q's shape {list(self.w_q.shape)}, got {list(getattr(self, name).shape)}"
                )
        heads, width = self.w_q.shape[:2]
        if self.w_o.dim() != 3 or (self.w_o.shape[0], self.w_o.shape[2]) != (heads, width):
            raise ValueError(f"w_o must be ({heads}, outputs, {width}), got shape {list(self.w_o.shape)}")

    @property
    def logit_scale(self) -> float:
        """The number that multiplies W_Kᵀ W_Q."""
        return resolve_scale(self.scale, self.w_q.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name."""
        return {"w_q": self.w_q, "w_k": self.w_k, "w_v": self.w_v, "w_o": self.w_o}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Factored:
        """The same parameterisation holding other tensors."""
        return Factored(**tensors, scale=self.scale)

    def to(self, device: torch.device) -> Factored:
        """The same weights on a device."""
        return self.with_tensors(_moved(self.tensors(), device))

    def to_combined(self) -> tuple[Tensor, Tensor]:
        """(kq (H, D, D), ov (H, I, D)), differentiable in the trained tensors."""
        return self.logit_scale * (self.w_k.transpose(1, 2) @ self.w_q), self.w_o @ self.w_v


Parameters = Combined | Factored


@torch.no_grad()
def pull_back(parameters: Parameters, grad_kq: Tensor, grad_ov: Tensor) -> dict[str, Tensor]:
    """Gradients in the trained tensors, by name, from those in KQ (H, D, D) and OV (H, I, D)."""
    if isinstance(parameters, Combined):
        return {"kq": grad_kq, "ov": grad_ov}
    scaled = parameters.logit_scale * grad_kq
    return {
        "w_q": parameters.w_k @ scaled,
        "w_k": parameters.w_q @ scaled.mT,
        "w_v": parameters.w_o.mT @ grad_ov,
        "w_o": grad_ov @ parameters.w_v.mT,
    }


def _moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _check_types(tensors: Mapping[str, Tensor]) -> None:
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        got = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise TypeError(f"parameters must share one type, float32 or float64, got {got}")
