"""pytest-benchmark: one training step's forward and backward pass, the result checked first.

pytest benchmarks --benchmark-group-by=param:shape,param:dtype
"""

from __future__ import annotations

import pytest
from torch import Tensor

from mhicl_fast.bench import default_shapes
from mhicl_fast.bench.measuring import BOUNDS
from mhicl_fast.bench.problem import DTYPES, Problem, relative_errors
from mhicl_fast.bench.prompt_formulations import EAGER
from mhicl_fast.bench.shapes import Shape


@pytest.mark.parametrize("name", ["mhicl_fast", *EAGER])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", default_shapes("prompt_attention"), ids=str)
def test_step(benchmark, shape: Shape, dtype: str, name: str) -> None:
    problem = Problem.make(shape, DTYPES[dtype])
    model = problem.models([name])[name]
    found: tuple[Tensor, ...] = problem.step(model)
    assert max(relative_errors(found, problem.exact(), problem.grad_out)) <= BOUNDS[dtype]
    benchmark(problem.timed_step, model, problem.leaves())
