"""Times training steps of the transformer on sparse regression, natively and in PyTorch, against their floor.

    python benchmarks/sparse_step.py [--rounds 7] [--threads 1 2] [--only demo-8 …] [--json FILE]

A step is the loss of 128 prompts (d = 16, 40 context examples, 8 queries, float32) and its gradients, of three layers
of width 64 with 1, 2, 4 or 8 heads, and of width 256 with 8. The ways to make it:

* native: `transformer_step`;
* matmul, SDPA: the same model in plain PyTorch, with softmax and matrix products written out, and with
  `scaled_dot_product_attention`; keys and values of the context alone, and of the last layer the queries' rows alone;
* both of them compiled whole;
* autograd: `sparse.model.Transformer`, whose attention is this package's, and backward.

Loss and gradients are compared with float64 before anything is timed. A step's other parts, drawing prompts and the
optimiser's update, are timed beside it. The floor is the step's operations at the measured peak of multiply-adds:
twice as many for gradients as for the forward pass, with the read-in folded into the first layer's projections.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import mhicl_fast
from mhicl_fast.bench import Timing, fma_peak, time_in_turns
from mhicl_fast.ops.transformer import transformer_step
from mhicl_fast.sparse.model import Transformer, uniform_layers
from mhicl_fast.tasks import SparseRegression

N, DIM_X, SPARSITY, CONTEXT, QUERIES, LAYERS = 128, 16, 4, 40, 8, 3
TASK = SparseRegression(DIM_X, SPARSITY, CONTEXT, noise_variance=(0.0, 0.1, 0.4, 0.8))
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    width: int
    heads: int


CASES = {f"demo-{heads}": Case(64, heads) for heads in (1, 2, 4, 8)} | {"full-8": Case(256, 8)}


def matmul(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value


WAYS: dict[str, Attend] = {"matmul": matmul, "SDPA": F.scaled_dot_product_attention}


def plain_predictions(attend: Attend, heads: int, tokens: Tensor, weights: list[Tensor]) -> Tensor:
    """The model as a short PyTorch script has it."""
    read_in, *of_layers, read_out = weights
    hidden = F.linear(tokens, read_in)
    for layer in range(LAYERS):
        q, k, v, o = of_layers[4 * layer : 4 * layer + 4]
        context = hidden[:, :CONTEXT]
        if layer == LAYERS - 1:
            hidden = hidden[:, CONTEXT:]
        query, key, value = (
            F.linear(rows, weight).unflatten(-1, (heads, -1)).transpose(1, 2)
            for rows, weight in ((hidden, q), (context, k), (context, v))
        )
        hidden = hidden + F.linear(attend(query, key, value).transpose(1, 2).flatten(2), o)
    return hidden @ read_out


class Problem:
    """A model and its prompts, and all ways to make a step."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case, self.shapes = case, uniform_layers(case.width, LAYERS, case.heads)
        self.model = Transformer(DIM_X, case.width, self.shapes)
        torch.nn.init.normal_(self.model.read_out, std=case.width**-0.5)
        of_layers = [getattr(layer, name) for layer in self.model.layers for name in "qkvo"]
        self.weights = [self.model.read_in, *of_layers, self.model.read_out]
        self.scales = [layer.scale for layer in self.model.layers]
        prompts = TASK.sample(N, n_queries=QUERIES, seed=0, step=0)
        self.tokens, self.target = prompts.tokens(), prompts.target

    def native(self) -> tuple[float, list[Tensor]]:
        return transformer_step(
            self.tokens, self.target, self.weights, self.shapes, activation="softmax", scales=self.scales
        )

    def autograd(self) -> tuple[Tensor, ...]:
        loss = (self.model(self.tokens, QUERIES) - self.target).square().mean()
        return loss.detach(), torch.autograd.grad(loss, self.weights)

    def plain(self, attend: Attend, *, compiled: bool = False, dtype: torch.dtype = torch.float32) -> Callable[[], Any]:
        weights = [weight.detach().to(dtype).requires_grad_() for weight in self.weights]
        tokens, target = self.tokens.to(dtype), self.target.to(dtype)

        def compute_loss(tokens: Tensor, target: Tensor, weights: list[Tensor]) -> Tensor:
            return (plain_predictions(attend, self.case.heads, tokens, weights) - target).square().mean()

        function = torch.compile(compute_loss, dynamic=False, fullgraph=True) if compiled else compute_loss

        def step() -> tuple[Tensor, ...]:
            loss = function(tokens, target, weights)
            return loss.detach(), torch.autograd.grad(loss, weights)

        return step

    def steps(self) -> dict[str, Callable[[], Any]]:
        eager = {name: self.plain(attend) for name, attend in WAYS.items()}
        compiled = {f"{name}, compiled": self.plain(attend, compiled=True) for name, attend in WAYS.items()}
        return {"native": self.native, **eager, **compiled, "autograd": self.autograd}

    def other_parts(self) -> dict[str, Callable[[], Any]]:
        """What a training step does besides loss and gradients."""
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        for weight, gradient in zip(self.weights, self.native()[1]):
            weight.grad = gradient
        norm_of = list(self.model.parameters())

        def update() -> None:
            torch.nn.utils.clip_grad_norm_(norm_of, 1.0)
            optimiser.step()

        return {"drawing prompts": lambda: TASK.sample(N, n_queries=QUERIES, seed=0, step=1), "clip and AdamW": update}

    def operations(self) -> int:
        """Of the products, forward and backward."""
        width, total = self.case.width, 0
        for layer in range(LAYERS):
            read = DIM_X + 1 if layer == 0 else width
            rows = QUERIES if layer == LAYERS - 1 else CONTEXT + QUERIES
            projections = 2 * (rows + 2 * CONTEXT) * read * width
            rest = 2 * rows * width * (2 * CONTEXT + width)
            # Tokens need no gradient, which saves the first layer a product; the read-in's states need two more.
            total += (2 * projections + 4 * rows * read * width if layer == 0 else 3 * projections) + 3 * rest
        return N * total


def check(problem: Problem, steps: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Each way's largest relative error of a gradient, by float64; too large an error ends the run."""
    exact_loss, exact = problem.plain(matmul, dtype=torch.float64)()
    errors = {}
    for name, step in steps.items():
        loss, gradients = step()
        relative = [float((a.double() - b).norm() / b.norm()) for a, b in zip(gradients, exact, strict=True)]
        errors[name] = max(abs(float(loss) / float(exact_loss) - 1), *relative)
        if not errors[name] <= 2e-5:
            raise SystemExit(f"{name} is wrong: relative error {errors[name]:.2e}")
    return errors


def run(name: str, rounds: int) -> dict[str, Any]:
    problem = Problem(CASES[name])
    steps = problem.steps()
    errors = check(problem, steps)
    timings = time_in_turns(steps, rounds)
    parts = time_in_turns(problem.other_parts(), rounds)
    operations, peak = problem.operations(), fma_peak(torch.float32)
    show(name, timings, parts, operations, peak, errors)
    return {
        "case": name,
        "threads": torch.get_num_threads(),
        "milliseconds": {way: [second * 1e3 for second in timing] for way, timing in (timings | parts).items()},
        "errors": errors,
        "operations": operations,
        "peak": peak,
    }


def show(
    name: str,
    timings: dict[str, Timing],
    parts: dict[str, Timing],
    operations: int,
    peak: float,
    errors: dict[str, float],
) -> None:
    native, threads = timings["native"].median, torch.get_num_threads()
    print(
        f"\n{name}: width {CASES[name].width}, {CASES[name].heads} heads, {threads} threads; "
        f"{operations / 1e9:.2f} GFLOP, floor {operations / peak * 1e3:.1f} ms at {peak / 1e9:.0f} GFLOP/s"
    )
    for way, timing in timings.items():
        speed = operations / timing.median
        print(f"    {way:<17} {timing.median * 1e3:8.2f} ms   ({timing.low * 1e3:.2f} to {timing.high * 1e3:.2f})"
              f"   {timing.median / native:6.2f}   {speed / 1e9:6.1f} GFLOP/s, {speed / peak:4.0%} of the peak"
              f"   error {errors[way]:.0e}")  # fmt: skip
    for part, timing in parts.items():
        print(f"    {part:<17} {timing.median * 1e3:8.2f} ms   ({timing.low * 1e3:.2f} to {timing.high * 1e3:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    info = mhicl_fast.build_info()
    print(f"mhicl_fast {info['version']}, torch {torch.__version__}, {info['instruction_sets']['active']}; "
          "medians and quartiles, and times native's")  # fmt: skip
    results = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        torch._dynamo.reset()  # compiled code has its number of threads
        results += [run(name, arguments.rounds) for name in arguments.only]
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
