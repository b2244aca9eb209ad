"""pytest-benchmark: one training step's forward and backward pass.

pytest benchmarks --benchmark-group-by=param:shape,param:dtype
"""

from __future__ import annotations

import pytest
import torch
from formulations import EAGER, ours
from prompt_attention import SHAPES, Shape, check, make_inputs, step


@pytest.mark.parametrize("name", ["mhicl_fast", *EAGER])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_step(benchmark, shape: Shape, dtype: torch.dtype, name: str) -> None:
    model = {"mhicl_fast": ours, **EAGER}[name]
    inputs, grad_out = make_inputs(shape, dtype)
    check(name, model, inputs, grad_out, 1e-11 if dtype == torch.float64 else 2e-5)
    benchmark(step, model, inputs, grad_out)
