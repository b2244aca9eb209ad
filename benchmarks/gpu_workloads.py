"""What kernels do, as formulas in the sizes: warps' passes through their hottest loops, multiply-adds, bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

WARP = 32  # lanes
TILE = 16  # tokens that the sampler draws together
HEADS, TOKENS = 8, 64  # heads of a group, tokens of a warp's pass over logits
FLOAT = 4


class Sizes(NamedTuple):
    """Prompts, context length, covariates, tasks, heads."""

    n: int
    length: int
    dim_x: int
    tasks: int
    heads: int

    @property
    def dim(self) -> int:
        return self.dim_x + self.tasks

    def __str__(self) -> str:
        return f"N={self.n}, L={self.length}, d={self.dim_x}, I={self.tasks}, H={self.heads}"


@dataclass(frozen=True)
class Phase:
    """A part of a kernel: how often warps go through the loop of a kind, in all."""

    what: str
    kind: str
    passes: float


@dataclass(frozen=True)
class Work:
    """One kernel's work: its phases, multiply-adds that its loop of products is gone through for, and bytes."""

    kernel: str
    phases: tuple[Phase, ...]
    bytes: int


def blocks_of_normals(tokens: int, columns: int) -> int:
    """Philox blocks, of four normals each, of so many columns: tiles are drawn whole."""
    return math.ceil(tokens / TILE) * columns * TILE // 4


def _normals(s: Sizes, columns: int) -> Phase:
    return Phase("normals", "normals", s.n * blocks_of_normals(s.length, columns) / WARP)


def _products(what: str, s: Sizes, rows: int) -> Phase:
    """Products of a group's heads with 64 tokens at a time, four numbers of a token in each pass of the loop."""
    return Phase(what, "products", s.n * math.ceil(s.heads / HEADS) * math.ceil(s.length / TOKENS) * rows / 4)


def _sums(what: str, s: Sizes, rows: int) -> Phase:
    """Weighted sums of tokens, four at a time, two columns a lane; narrow tokens share a warp."""
    width = WARP
    while width > 1 and width >= rows:
        width //= 2
    passes = math.ceil(rows / (2 * width)) * math.ceil(s.length / 4 / (WARP // width))
    return Phase(what, "products", s.n * math.ceil(s.heads / HEADS) * passes)


def _softmax(s: Sizes) -> Phase:
    """Exponentials of 32 tokens at a time; heads that a group lacks are computed too."""
    return Phase("softmax", "exponentials", s.n * math.ceil(s.heads / HEADS) * HEADS * math.ceil(s.length / WARP))


def _matrix_product(what: str, multiply_adds: int, elements: int) -> Work:
    return Work("matrix product", (Phase(what, "multiply-adds", multiply_adds / WARP),), FLOAT * elements)


def sampled_step(s: Sizes) -> list[Work]:
    """Queries, projections, the fused kernel, and the gradients' sums; of prompts without noise."""
    row = s.heads * s.dim
    fused = Work(
        "sampled step",
        (
            _normals(s, s.dim_x),
            _products("logits", s, s.dim_x),
            _softmax(s),
            _sums("averages", s, s.dim_x),
            _products("derivatives of weights", s, s.dim_x),
            _sums("gradient of projections", s, s.dim_x),
        ),
        FLOAT * s.n * 3 * row,  # r in, c and the gradient of r out
    )
    weights = s.dim_x * row
    return [
        _matrix_product("projected queries", s.n * s.dim_x * row, s.n * (s.dim_x + row) + weights),
        fused,
        _matrix_product("gradient of KQ", s.n * s.dim_x * row, s.n * (s.dim_x + row) + 2 * weights),
        _matrix_product("gradient of OV", s.n * s.tasks * row, s.n * (s.tasks + row)),
    ]


def conditional_step(s: Sizes) -> list[Work]:
    """The same with coefficients integrated out: tokens are covariates alone, and sums of products are kept."""
    d, row = s.dim_x, s.heads * s.dim_x
    pairs = (s.heads + 1) * (s.heads + 2) // 2
    fused = Work(
        "conditional step",
        (
            _normals(s, d),
            _products("logits", s, d),
            _softmax(s),
            _sums("averages", s, d),
            _products("derivatives of weights", s, d),
            _sums("gradient of projections", s, d),
        ),
        FLOAT * s.n * (3 * row + d),
    )
    return [
        _matrix_product("projected queries", s.n * d * row, s.n * (d + row) + d * row),
        fused,
        _matrix_product("gradient of KQ", s.n * d * row, s.n * (d + row) + 2 * d * row),
        Work(
            "matrix product",
            (Phase("sums of products", "multiply-adds", s.n * pairs * d / WARP),),
            FLOAT * s.n * (row + d),
        ),
    ]


def drawn_prompts(s: Sizes) -> list[Work]:
    """`sample`: prompts into memory, the labels' products not counted."""
    return [Work("sampler", (_normals(s, s.dim_x),), FLOAT * s.n * ((s.length + 1) * s.dim + s.tasks))]


def given_prompts(s: Sizes) -> dict[str, list[Work]]:
    """`prompt_attention` of contexts in memory, with gradients in KQ and OV: the context is read once a pass."""
    row, context = s.heads * s.dim, s.n * s.length * s.dim
    forward = Work(
        "moments, forward",
        (_products("logits", s, s.dim), _softmax(s), _sums("averages", s, s.dim)),
        FLOAT * (context + 2 * s.n * row),
    )
    backward = Work(
        "moments, backward",
        (
            _products("logits", s, s.dim),
            _softmax(s),
            _products("derivatives of weights", s, s.dim),
            _sums("gradient of projections", s, s.dim),
        ),
        FLOAT * (context + 3 * s.n * row),
    )
    project = _matrix_product("projected queries", s.n * s.dim * row, s.n * (s.dim + row))
    return {
        "forward": [project, forward, _matrix_product("outputs", s.n * s.tasks * row, s.n * (s.tasks + row))],
        "backward": [
            _matrix_product("gradient of averages", s.n * s.tasks * row, s.n * (s.tasks + row)),
            backward,
            _matrix_product("gradient of KQ", s.n * s.dim * row, s.n * (s.dim + row)),
            _matrix_product("gradient of OV", s.n * s.tasks * row, s.n * (s.tasks + row)),
        ],
    }


class Operation(NamedTuple):
    """One of PyTorch's kernels: elements that it reads and writes, its operations."""

    what: str
    elements: int
    operations: int


def eager_prompts(s: Sizes) -> list[Operation]:
    """Prompts as study code draws them: normals, labels, tokens of both."""
    return [
        Operation("randn", s.n * (s.length + 1) * s.dim_x, 0),
        Operation("labels", s.n * (s.length + 1) * s.dim, 2 * s.n * s.length * s.dim_x * s.tasks),
        Operation("cat", 2 * s.n * s.length * s.dim, 0),
    ]


def eager_absorbed(s: Sizes, *, draws: bool) -> list[Operation]:
    """The absorbed form with gradients in KQ and OV; every intermediate result goes through memory."""
    row, context, logits = s.n * s.heads * s.dim, s.n * s.length * s.dim, s.n * s.heads * s.length
    product, flat = 2 * s.heads * s.length * s.dim * s.n, 2 * row * s.dim
    return [
        *(eager_prompts(s) if draws else []),
        Operation("projected queries", s.n * s.dim + row, flat),
        Operation("logits", row + context + logits, product),
        Operation("softmax", 2 * logits, 0),
        Operation("averages", logits + context + row, product),
        Operation("outputs", row, 2 * row * s.tasks),
        Operation("gradient of OV", row, 2 * row * s.tasks),
        Operation("gradient of averages", row, 2 * row * s.tasks),
        Operation("gradient of weights", row + context + logits, product),
        Operation("softmax's gradient", 3 * logits, 0),
        Operation("gradient of projections", logits + context + row, product),
        Operation("gradient of KQ", row + s.n * s.dim, flat),
    ]


def sdpa_absorbed(s: Sizes, *, draws: bool) -> list[Operation]:
    """SDPA's fused kernels in the absorbed form: keys and values are read each, and their gradients written, though
    they are the same context and data."""
    row, context = s.n * s.heads * s.dim, s.n * s.length * s.dim
    product, flat = 2 * s.heads * s.length * s.dim * s.n, 2 * row * s.dim
    return [
        *(eager_prompts(s) if draws else []),
        Operation("projected queries", s.n * s.dim + row, flat),
        Operation("SDPA", 2 * row + 2 * context, 2 * product),
        Operation("outputs", row, 2 * row * s.tasks),
        Operation("gradients of OV and averages", 3 * row, 4 * row * s.tasks),
        Operation("SDPA's backward pass", 4 * row + 4 * context, 5 * product),
        Operation("gradient of KQ", row + s.n * s.dim, flat),
    ]


class AttentionSizes(NamedTuple):
    """Batch, query heads, key heads, rows, keys, dim of queries, keys and values; causal or not."""

    batch: int
    heads: int
    key_heads: int
    rows: int
    keys: int
    dim: int
    causal: bool = False

    def __str__(self) -> str:
        heads = f"{self.heads}/{self.key_heads}" if self.heads != self.key_heads else f"{self.heads}"
        return f"{self.batch},{heads},{self.rows},{self.keys},{self.dim}" + (",causal" if self.causal else "")

    @property
    def pairs(self) -> int:
        square = min(self.rows, self.keys)
        seen = square * (square + 1) // 2 + (self.rows - square) * self.keys if self.causal else self.rows * self.keys
        return self.batch * self.heads * seen

    @property
    def query(self) -> int:
        return self.batch * self.heads * self.rows * self.dim

    @property
    def key(self) -> int:
        return self.batch * self.key_heads * self.keys * self.dim


def general_attention(a: AttentionSizes) -> dict[str, list[Work]]:
    """Two kernels backwards, one for the gradient in queries and one for those in keys and values; each computes the
    logits and the weights' derivatives anew."""

    def work(kernel: str, products: int, elements: int) -> Work:
        passes = a.pairs / WARP
        exponentials = Phase("softmax", "exponentials", passes)
        return Work(
            kernel, (Phase("products", "multiply-adds", products * a.dim * passes), exponentials), FLOAT * elements
        )

    return {
        "forward": [work("attention, forward", 2, 2 * a.query + 2 * a.key)],
        "backward": [
            work("attention, backward in rows", 3, 4 * a.query + 2 * a.key),
            work("attention, backward in keys", 4, 3 * a.query + 4 * a.key),
        ],
    }


def eager_attention(a: AttentionSizes) -> dict[str, list[Operation]]:
    """Scores, softmax, sum; keys that heads share are repeated, a mask is one more pass over the scores."""
    logits, key = a.batch * a.heads * a.rows * a.keys, a.key * a.heads // a.key_heads
    product = 2 * logits * a.dim
    repeated = [Operation("repeated keys and values", 2 * (a.key + key), 0)] if a.heads != a.key_heads else []
    mask = [Operation("mask", 2 * logits, 0)] if a.causal else []
    back = [Operation("gradients of repeated ones", 2 * (a.key + key), 0)] if repeated else []
    return {
        "forward": [
            *repeated,
            Operation("scores", a.query + key + logits, product),
            Operation("scale", 2 * logits, 0),
            *mask,
            Operation("softmax", 2 * logits, 0),
            Operation("sum", logits + key + a.query, product),
        ],
        "backward": [
            Operation("gradient of weights", a.query + key + logits, product),
            Operation("gradient of values", logits + a.query + key, product),
            Operation("softmax's gradient", 3 * logits, 0),
            *mask,
            Operation("scale's gradient", 2 * logits, 0),
            Operation("gradient of queries", logits + key + a.query, product),
            Operation("gradient of keys", logits + a.query + key, product),
            *back,
        ],
    }


def sdpa_attention(a: AttentionSizes) -> dict[str, list[Operation]]:
    """A fused kernel each way: what must move, and the products, logits once more backwards."""
    product = 2 * a.pairs * a.dim
    return {
        "forward": [Operation("SDPA", 2 * a.query + 2 * a.key, 2 * product)],
        "backward": [Operation("SDPA's backward pass", 4 * a.query + 4 * a.key, 5 * product)],
    }


# What stands in the page: kernel, bytes, multiply-adds, special functions, integer work; of float32 elements.
FORMULAS = [
    ("fused step, sampled", "4 · 3 N H D", "4 N H L d", "N H L exponentials, 2 for each Philox block",
     "N ⌈L/16⌉ 4 d Philox blocks"),
    ("fused step, conditional", "4 N (3 H d + d)", "4 N H L d", "the same", "the same"),
    ("matrix products of the step", "4 · 2 N (H D + d)", "2 N d H D + N I H D", "–", "–"),
    ("`prompt_attention`, forward", "4 (N L D + 2 N H D)", "2 N H L D + N H D² + N I H D", "N H L", "–"),
    ("`prompt_attention`, backward in KQ, OV", "4 (N L D + 3 N H D)", "3 N H L D + N H D² + 2 N I H D", "N H L", "–"),
    ("`attention`, forward", "4 (2 q + 2 k)", "2 E pairs", "pairs", "–"),
    ("`attention`, backward", "4 (7 q + 6 k)", "7 E pairs", "2 pairs", "–"),
    ("`sample`", "4 N (L + 1) D", "N (L + 1) d I", "2 for each Philox block", "N ⌈L/16⌉ 4 d Philox blocks"),
]  # fmt: skip
