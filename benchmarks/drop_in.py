"""Times whole training steps of other people's kinds of models, with this package's attention and without.

    python benchmarks/drop_in.py [--rounds 9] [--only single-task …] [--json FILE]

A step is forward, loss, backward and the optimiser's step, on prompts drawn before. Three kinds of models:

* the one-layer modules of four public studies: one query per prompt, full-width heads. Theirs project every token, then
  attend; ours is `nn.MultiHeadAttention` with the same parameters;
* an attention-only transformer of 3 layers, 8 heads and width 256 on 41 tokens, through `mhicl_fast.attention`;
* a tiny GPT-2 of transformers on 82 tokens, through `attn_implementation="mhicl_fast"`.

Each runs with eager attention, with SDPA, compiled whole, and with ours, which is compiled whole too for comparison.
Outputs and gradients are compared before anything is timed. A ratio is their step's time over ours within one round;
median and quartiles are over the rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import drop_in_models as models
import torch
from torch import Tensor, nn

import mhicl_fast
from mhicl_fast.bench.timing import Timing, time_in_turns


class Workload(NamedTuple):
    """One model in several forms that share their parameters' values, and what a step of it is."""

    description: str
    forms: dict[str, nn.Module]  # "ours" last; the names of all that have our attention start so
    inputs: tuple[Tensor, ...]
    target: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    optimiser: Callable[[Any], torch.optim.Optimizer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def squared_error(out: Tensor, target: Tensor) -> Tensor:
    return (out - target).square().sum(-1).mean()


def one_layer(dim_x: int, tasks: int, length: int, heads: int, prompts: int, optimiser: Any) -> Workload:
    torch.manual_seed(0)
    x, beta = torch.randn(prompts, length + 1, dim_x), torch.randn(prompts, dim_x, tasks) * dim_x**-0.5
    y = x @ beta
    tokens = torch.cat([x, y], -1)
    query = tokens[:, -1:].clone()
    query[..., dim_x:] = 0
    forms = models.one_layer(dim_x + tasks, heads, tasks)
    inputs = (query, tokens[:, :-1].contiguous())
    description = f"one layer: d={dim_x}, I={tasks}, L={length}, H={heads}, N={prompts}"
    return Workload(description, forms, inputs, y[:, -1:], squared_error, optimiser)


def transformer() -> Workload:
    torch.manual_seed(0)
    batch, tokens, width = 64, 41, 21
    x, target = torch.randn(batch, tokens, width), torch.randn(batch, tokens, 1)
    description = f"attention-only transformer: 3 layers, 8 heads, width 256, {tokens} tokens, N={batch}"
    return Workload(description, models.transformer(width), (x,), target, squared_error, adam)


def gpt2() -> Workload:
    torch.manual_seed(0)
    batch, tokens, vocabulary = 64, 82, 128
    ids = torch.randint(vocabulary, (batch, tokens))
    description = f"GPT-2: 3 layers, 8 heads, width 256, {tokens} tokens, N={batch}"
    return Workload(description, models.gpt2(vocabulary, tokens), (ids,), ids.roll(-1, 1), models.next_token_loss, adam)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "multi-task": lambda: one_layer(50, 3, 100, 3, 1000, sgd),
    "single-task": lambda: one_layer(50, 1, 100, 8, 2000, sgd),
    "demystified": lambda: one_layer(5, 1, 40, 4, 256, adam),
    "superposition": lambda: one_layer(6, 2, 48, 3, 256, adam),
    "transformer": transformer,
    "gpt2": gpt2,
}


def check(workload: Workload) -> dict[str, float]:
    """Each form's largest relative difference in output and gradients from the first form, which must be small."""
    results = {}
    for name, module in workload.forms.items():
        out = module(*workload.inputs)
        grads = torch.autograd.grad(workload.loss(out, workload.target), list(module.parameters()))
        results[name] = [out.detach(), *grads]
    expected = next(iter(results.values()))
    errors = {
        name: max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(values, expected))
        for name, values in results.items()
    }
    for name, error in errors.items():
        if error > 1e-4:
            raise AssertionError(f"{workload.description}: {name} differs by {error:.1e} from {next(iter(results))}")
    return errors


def step(module: nn.Module, workload: Workload) -> Callable[[], None]:
    optimiser = workload.optimiser(module.parameters())

    def run() -> None:
        optimiser.zero_grad()
        workload.loss(module(*workload.inputs), workload.target).backward()
        optimiser.step()

    return run


def measure(workload: Workload, rounds: int) -> dict[str, Any]:
    errors = check(workload)
    steps = {name: step(module, workload) for name, module in workload.forms.items()}
    ours = "ours"
    others = [name for name in steps if not name.startswith(ours)]
    samples = [time_in_turns(steps, rounds=1) for _ in range(rounds)]
    times = {name: Timing.of([sample[name].median for sample in samples]) for name in steps}
    ratios = {
        name: Timing.of([sample[name].median / sample[ours].median for sample in samples])
        for name in steps
        if name != ours
    }
    best = [min(sample[name].median for name in others) / sample[ours].median for sample in samples]
    return {
        "description": workload.description,
        "relative_difference": errors,
        "seconds": {name: timing._asdict() for name, timing in times.items()},
        "ratio_to_ours": {name: timing._asdict() for name, timing in (ratios | {"best": Timing.of(best)}).items()},
    }


def table(name: str, result: dict[str, Any]) -> str:
    lines = [f"{name}: {result['description']}"]
    for form, seconds in result["seconds"].items():
        median, low, high = (1e3 * seconds[name] for name in Timing._fields)
        line = f"  {form:15s} {median:9.2f} ms ({low:.2f} to {high:.2f})"
        if form in result["ratio_to_ours"]:
            line += "   {median:6.2f} × ours ({low:.2f} to {high:.2f})".format(**result["ratio_to_ours"][form])
        lines.append(line)
    lines.append(
        "  the best of the others {median:.2f} × ours ({low:.2f} to {high:.2f})".format(
            **result["ratio_to_ours"]["best"]
        )
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of timing, at least 2 (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="which models")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "build": mhicl_fast.build_info(),
        "rounds": arguments.rounds,
        "models": {},
    }
    for name in arguments.only:
        torch._dynamo.reset()
        report["models"][name] = measure(WORKLOADS[name](), arguments.rounds)
        print(table(name, report["models"][name]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
