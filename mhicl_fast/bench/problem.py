"""One shape's data: random inputs, what is differentiated, the exact result, and one step on it."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..devices import CPU
from . import competitors, prompt_formulations
from .shapes import AttentionShape, PromptShape, Shape
from .timing import HOST, HostClock

Model = Callable[..., Tensor]
NAMES = {"attention": competitors.NAMES, "prompt_attention": prompt_formulations.NAMES}
COMPILED = {"attention": competitors.COMPILED, "prompt_attention": tuple(prompt_formulations.COMPILED)}
DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}

_ZERO = 1e-12
_EXACT_LOGITS = 2**22  # of a part of the batch whose exact result is computed at once


@dataclass(frozen=True)
class Problem:
    """`inputs` in the operator's order, those at `wanted` differentiated; `grad_out` is the output's gradient.

    The inputs at `batched` and the output hold a prompt at each first index; gradients of the others are sums.
    """

    shape: Shape
    inputs: list[Tensor]
    wanted: tuple[int, ...]
    batched: tuple[int, ...]
    grad_out: Tensor

    @classmethod
    def make(cls, shape: Shape, dtype: torch.dtype, seed: int = 0, device: torch.device = CPU) -> Problem:
        """Standard normal inputs, the same for the same seed; kq is divided by its dim."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, dtype=torch.float64).to(device, dtype)

        if isinstance(shape, AttentionShape):
            query = normal(shape.batch, shape.heads, shape.rows, shape.dim)
            key = normal(shape.batch, shape.key_heads, shape.keys, shape.dim)
            value = normal(shape.batch, shape.key_heads, shape.keys, shape.value_dim)
            grad_out = normal(shape.batch, shape.heads, shape.rows, shape.value_dim)
            return cls(shape, [query, key, value], (0, 1, 2), (0, 1, 2), grad_out)
        assert isinstance(shape, PromptShape)
        context, query = normal(shape.n, shape.length, shape.dim), normal(shape.n, shape.dim)
        kq = normal(shape.heads, shape.dim, shape.dim) / shape.dim
        ov = normal(shape.heads, shape.n_tasks, shape.dim)
        return cls(shape, [context, query, kq, ov], (2, 3), (0, 1), normal(shape.n, shape.n_tasks))

    def models(self, wanted: Container[str]) -> dict[str, Model]:
        """Those functions of the operator's `NAMES` that are wanted and make a difference at this shape."""
        if isinstance(self.shape, AttentionShape):
            return competitors.attention_competitors(self.shape, wanted, self.grad_out.device)
        return prompt_formulations.prompt_competitors(wanted)

    def fitted(self, model: Model) -> Model:
        """A caller's function, told what the tensors alone do not say."""
        if isinstance(self.shape, AttentionShape):
            shared = self.shape.heads != self.shape.key_heads
            return partial(model, is_causal=self.shape.causal, enable_gqa=shared)
        return model

    def leaves(self) -> list[Tensor]:
        """The inputs, on the same memory, with those that are wanted as leaves of a graph."""
        return [x.detach().requires_grad_(k in self.wanted) for k, x in enumerate(self.inputs)]

    def forward(self, model: Model) -> Tensor:
        """The output as for inference."""
        with torch.no_grad():
            return model(*self.inputs)

    def step(self, model: Model) -> tuple[Tensor, ...]:
        """The output and the gradients of the wanted inputs."""
        leaves = self.leaves()
        out = model(*leaves)
        return out.detach(), *torch.autograd.grad(out, [leaves[k] for k in self.wanted], self.grad_out)

    def timed_forward(self, model: Model, clock: HostClock = HOST) -> Any:
        """A forward pass; the moment of its end."""
        self.forward(model)
        return clock.now()

    def timed_step(self, model: Model, leaves: list[Tensor], clock: HostClock = HOST) -> Any:
        """A forward and a backward pass on these leaves; the moment between them."""
        out = model(*leaves)
        middle = clock.now()
        torch.autograd.grad(out, [leaves[k] for k in self.wanted], self.grad_out)
        return middle

    def exact(self) -> list[Tensor]:
        """Output and gradients by the definition in float64, a part of the prompts at a time."""
        inputs = [x.double() for x in self.inputs]
        part = max(1, _EXACT_LOGITS // self.shape.logits)
        outs: list[Tensor] = []
        grads: list[list[Tensor]] = [[] for _ in self.wanted]
        for start in range(0, self.shape.prompts, part):
            here = slice(start, start + part)
            leaves = [
                (x[here] if k in self.batched else x).detach().requires_grad_(k in self.wanted)
                for k, x in enumerate(inputs)
            ]
            out = self._definition(*leaves)
            outs.append(out.detach())
            found = torch.autograd.grad(out, [leaves[k] for k in self.wanted], self.grad_out[here].double())
            for collected, grad in zip(grads, found, strict=True):
                collected.append(grad)
        joined = [torch.cat(g) if k in self.batched else sum(g, g[0] * 0) for k, g in zip(self.wanted, grads)]
        return [torch.cat(outs), *joined]

    def _definition(self, *inputs: Tensor) -> Tensor:
        if isinstance(self.shape, AttentionShape):
            scale, causal = self.shape.dim**-0.5, self.shape.causal
            return reference.attention(*inputs, scale=scale, is_causal=causal)[0]
        return reference.prompt_attention(*inputs)


def relative_errors(found: tuple[Tensor, ...], exact: list[Tensor], grad_out: Tensor) -> list[float]:
    """‖x − ref‖ / ‖ref‖ of each; infinite where the shapes differ.

    A gradient that is zero but for rounding, as a query's that sees one key, is set against the size of the output's
    gradient: relative to its own rounding it has no digit.
    """
    least = _ZERO * float(grad_out.double().norm())
    errors = []
    for mine, theirs in zip(found, exact, strict=True):
        if mine.shape != theirs.shape:
            errors.append(float("inf"))
            continue
        size = float(theirs.norm())
        errors.append(float((mine.double() - theirs).norm()) / (size if size > least else least / _ZERO))
    return errors
