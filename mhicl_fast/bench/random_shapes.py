"""Shapes drawn at random from the range of in-context learning."""

from __future__ import annotations

import math
import random

from .errors import BenchInputError
from .shapes import AttentionShape, PromptShape, Shape

KEYS, DIM, TASKS = (10, 2000), (5, 128), (1, 3)
HEADS = (1, 2, 4, 8)
MOST_PROMPTS = 20_000
OPERATIONS = (3e7, 6e8)  # of the forward pass
MOST_LOGITS = 2**25  # what eager PyTorch stores per copy: 128 MiB in float32


def random_shapes(operator: str, count: int, seed: int) -> list[Shape]:
    """`count` shapes, the same for the same seed.

    Keys 10 to 2000 and dims 5 to 128, uniform in their logarithm; 1, 2, 4 or 8 heads. For attention one of one query
    row (the last token asks) on heads that share their keys, one query row on heads of their own, and as many rows as
    keys, causal or not; for prompt_attention 1 to 3 tasks. The batch is the one with a forward pass of 3·10⁷ to 6·10⁸
    useful operations (uniform in the logarithm), at most 20,000 prompts and 2²⁵ logits.
    """
    if count < 1:
        raise BenchInputError(f"the number of random shapes must be positive, got {count}")
    draw = random.Random(seed)
    one = {"attention": _attention, "prompt_attention": _prompt_attention}[operator]
    return [one(draw) for _ in range(count)]


def _attention(draw: random.Random) -> Shape:
    keys, dim, heads = _log_uniform(draw, *KEYS), _log_uniform(draw, *DIM), draw.choice(HEADS)
    kind = draw.choice(("shared", "one row", "all rows", "causal"))
    rows = keys if kind in ("all rows", "causal") else 1
    one = AttentionShape(1, heads, 1 if kind == "shared" else heads, rows, keys, dim, dim, kind == "causal")
    batch = _batch(draw, one)
    return AttentionShape(batch, one.heads, one.key_heads, rows, keys, dim, dim, one.causal)


def _prompt_attention(draw: random.Random) -> Shape:
    length, dim_x, heads = _log_uniform(draw, *KEYS), _log_uniform(draw, *DIM), draw.choice(HEADS)
    n_tasks = draw.randint(*TASKS)
    one = PromptShape(1, length, dim_x, heads, n_tasks)
    return PromptShape(_batch(draw, one), length, dim_x, heads, n_tasks)


def _batch(draw: random.Random, one: Shape) -> int:
    """How many prompts such as this one."""
    wanted = math.exp(draw.uniform(*map(math.log, OPERATIONS))) / one.operations.forward
    return max(1, min(round(wanted), MOST_PROMPTS, MOST_LOGITS // one.logits))


def _log_uniform(draw: random.Random, low: int, high: int) -> int:
    return round(math.exp(draw.uniform(math.log(low), math.log(high))))
