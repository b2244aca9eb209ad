"""Calls of the GPU's operators that make every kernel run, on shapes that are awkward and small: each instruction of a
launch costs the simulator some ten microseconds, and more where many threads run it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from emulated import RecordedLaunch, device_limits, emulated, record, tf32

from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train.objective import Objective
from mhicl_fast.train.optimisers import make_optimizer
from ptx.generated import ROUNDING, Tolerance

FLOATS = (torch.float32, torch.float64)
ADDRESS = {"seed": -123456789, "step": 2**32 - 2, "first_prompt": 2**33 + 5}


@dataclass(frozen=True)
class Call:
    """A call to record, on a device with these limits if any."""

    make: Callable[[], tuple[Any, ...]]  # the operator and its arguments, the last a dict of those with names
    tolerance: Tolerance = ROUNDING
    limits: tuple[int, int] | None = None  # multiprocessors, shared memory of a block
    tf32: bool = False  # whether PyTorch's switch lets float32 products go to the matrix units

    def launches(self) -> list[RecordedLaunch]:
        """The launches that the call makes."""
        with tf32(self.tf32):
            operator, *arguments, keywords = self.make()
            with device_limits(*self.limits) if self.limits else nullcontext():
                return record(operator, *arguments, arena_bytes=16 << 20, **keywords)[1]


HALVES = Tolerance(relative=1e-3, absolute=1e-3, halves=True)
TF32 = Tolerance(relative=4e-3, absolute=4e-3)  # a float32 that differs by a rounding can go to another TF32


CALLS: dict[str, Call] = {}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers of order 1, the same on every run."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


# The self check

CALLS["self check"] = Call(lambda: (emulated().cuda_self_check, numbers(37), {}))

# The sampler


def sampled(
    n_prompts: int, length: int, dim_x: int, n_tasks: int, dtype: torch.dtype, correlated: bool
) -> tuple[Any, ...]:
    context, query, target = (
        torch.empty(*shape, dtype=dtype)
        for shape in ((n_prompts, length, dim_x + n_tasks), (n_prompts, dim_x + n_tasks), (n_prompts, n_tasks))
    )
    factor = torch.eye(dim_x, dtype=dtype) + numbers(dim_x, dim_x, dtype=dtype).tril(-1) if correlated else None
    options = {**ADDRESS, "noise_std": 0.5, "noisy_target": True}
    scale = numbers(n_tasks, dim_x, dtype=dtype)
    return emulated().sample_multi_task, context, query, target, scale, factor, options


def stream_of(operator: str, dtype: torch.dtype) -> tuple[Any, ...]:
    address = {"seed": 7, "step": 3, "prompt": 2**40, "stream": 1, "first_element": 37}
    return getattr(emulated(), operator), torch.empty(300, dtype=dtype), address


CALLS["words"] = Call(partial(stream_of, "philox_words", torch.int32))
for _dtype in FLOATS:
    _name = name_of(_dtype)
    CALLS[f"normals {_name}"] = Call(partial(stream_of, "philox_normals", _dtype))
    CALLS[f"prompts {_name}"] = Call(partial(sampled, 2, 19, 5, 1, _dtype, False))
    CALLS[f"short prompts {_name}"] = Call(partial(sampled, 7, 3, 3, 5, _dtype, True), limits=(1, 64 << 10))
    CALLS[f"prompts in chunks {_name}"] = Call(partial(sampled, 1, 35, 9, 2, _dtype, True), limits=(1, 4 << 10))
    CALLS[f"wide prompts {_name}"] = Call(partial(sampled, 1, 70, 9, 2, _dtype, True), limits=(1, 1 << 10))

# Matrix products: each kind of tile


def product(batch: int, rows: int, columns: int, depth: int, dtype: torch.dtype, tf32: bool = False) -> tuple[Any, ...]:
    emulated()
    a, b = numbers(batch, rows, depth, dtype=dtype), numbers(batch, depth, columns, dtype=dtype)
    return torch.ops.mhicl_gemm.multiply, a, b, numbers(batch, rows, columns, dtype=dtype), 0.5, True, tf32, {}


def sliced_product(dtype: torch.dtype) -> tuple[Any, ...]:
    emulated()
    sums = numbers(9, 5, dtype=torch.float64)
    return (
        torch.ops.mhicl_gemm.multiply_sliced,
        numbers(9, 300, dtype=dtype),
        numbers(300, 5, dtype=dtype),
        sums,
        2.0,
        True,
        {},
    )


for _dtype in FLOATS:
    _name = name_of(_dtype)
    for _kind, _shape in {"small": (2, 33, 10, 17), "large": (110, 9, 10, 5), "flat": (2, 3, 70, 35)}.items():
        CALLS[f"product {_kind} {_name}"] = Call(partial(product, *_shape, _dtype))
    CALLS[f"sliced product {_name}"] = Call(partial(sliced_product, _dtype))
CALLS["product tf32"] = Call(partial(product, 1, 70, 35, 37, torch.float32, True), TF32)

# Prompts in memory: two and eight heads at a time


def prompt_attention(heads: int, storage: torch.dtype, length: int = 37, dim: int = 5) -> tuple[Any, ...]:
    context, query = numbers(2, length, dim, dtype=storage), numbers(2, dim, dtype=storage)
    kq, ov = numbers(1, heads, dim, dim, dtype=storage) / dim, numbers(1, heads, 2, dim, dtype=storage)
    return emulated().prompt_attention, context, query, kq, ov, torch.tensor([length, 19]), True, True, {}


def prompt_attention_backward(heads: int, storage: torch.dtype, length: int = 37, dim: int = 5) -> tuple[Any, ...]:
    forward, *arguments, _, _, _ = prompt_attention(heads, storage, length, dim)
    out, moments, jacobian = forward(*arguments, True, True)
    needs = [True, True, True, True]
    return (
        emulated().prompt_attention_backward,
        numbers(*out.shape, dtype=storage),
        *arguments,
        moments,
        jacobian,
        needs,
        {},
    )


def prompt_moments_backward(heads: int, dtype: torch.dtype) -> tuple[Any, ...]:
    context, query, kq = numbers(2, 37, 5, dtype=dtype), numbers(2, 5, dtype=dtype), numbers(heads, 5, 5, dtype=dtype)
    grads = numbers(2, heads, 5, dtype=dtype), numbers(2, heads, heads, dtype=dtype)
    return emulated().prompt_moments_backward, *grads, context, query, kq, torch.tensor([37, 19]), [True] * 3, {}


for _heads in (2, 9):
    for _storage in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        _tolerance = HALVES if _storage.itemsize == 2 else ROUNDING
        _name = f"{_heads} heads {name_of(_storage)}"
        CALLS[f"prompt_attention {_name}"] = Call(
            partial(prompt_attention, _heads, _storage),
            _tolerance,
        )
        CALLS[f"prompt_attention backward {_name}"] = Call(
            partial(prompt_attention_backward, _heads, _storage),
            _tolerance,
        )
    for _dtype in FLOATS:
        CALLS[f"prompt_moments backward {_heads} heads {name_of(_dtype)}"] = Call(
            partial(prompt_moments_backward, _heads, _dtype)
        )

# General attention: one or four rows a thread, columns of one, four or eight a thread


def attention(rows: int, dim: int, dtype: torch.dtype, keys: int = 37, hiding: bool = False) -> tuple[Any, ...]:
    query, key, value = (
        numbers(2, heads, length, dim, dtype=dtype) for heads, length in ((2, rows), (1, keys), (1, keys))
    )
    mask = None
    if hiding:  # every third key, which is NaN, and is not to show
        mask = numbers(2, 1, rows, keys, dtype=dtype)
        mask[..., ::3] = -torch.inf
        key[:, :, ::3] = value[:, :, ::3] = torch.nan
    options = {"scale": 0.3, "is_causal": False, "activation": "softmax", "want_lse": True, "want_weights": hiding}
    return emulated().attention, query, key, value, mask, torch.tensor([keys, 20]), options


def attention_backward(
    rows: int, dim: int, dtype: torch.dtype, keys: int = 37, hiding: bool = False
) -> tuple[Any, ...]:
    forward, *inputs, options = attention(rows, dim, dtype, keys, hiding)
    out, lse, weights, stats = forward(*inputs, **options)
    options = {"scale": 0.3, "is_causal": False, "activation": "softmax", "needs": [True, True, True, hiding]}
    grad_weights = numbers(*weights.shape, dtype=dtype) if hiding else None
    grads = numbers(*out.shape, dtype=dtype), numbers(*lse.shape, dtype=lse.dtype), grad_weights
    return emulated().attention_backward, *grads, *inputs, stats, options


for _dtype in (*FLOATS, torch.bfloat16):
    _tolerance = HALVES if _dtype.itemsize == 2 else ROUNDING
    for _rows, _dim in ((1, 5), (1, 20), (1, 67), (3, 5), (3, 20), (3, 67), (18, 5), (18, 20), (18, 67)):
        _name = f"{_rows} rows of {_dim} {name_of(_dtype)}"
        if _rows < 18:
            CALLS[f"attention {_name}"] = Call(partial(attention, _rows, _dim, _dtype), _tolerance)
        CALLS[f"attention backward {_name}"] = Call(partial(attention_backward, _rows, _dim, _dtype), _tolerance)

# Steps of training


def objective(estimator: str, symmetric: bool, correlated: bool) -> Objective:
    covariance = torch.eye(4) + 0.3 if correlated else None
    support = [[1, 1, 0, 0], [0, 0, 1, 1]]
    task = MultiTaskRegression(4, 2, 19, support=support, noise_std=0.5, noisy_target=True, covariance=covariance)
    return Objective(task, estimator, 5, 11, symmetric=symmetric)


def weights(heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    kq, ov = numbers(heads, 6, 6, dtype=dtype) * 0.4, numbers(heads, 2, 6, dtype=dtype) * 0.4
    kq[:, 4:] = 0  # logits that do not read labels, as the conditional estimate demands
    return [kq, ov]


def flow_step(estimator: str, heads: int, dtype: torch.dtype) -> tuple[Any, ...]:
    asked = objective(estimator, False, True)
    return (
        emulated().flow_step,
        *weights(heads, dtype),
        *asked.native_distribution(),
        {**asked.native_estimate(), "step": 3, "first_prompt": 0},
    )


def train_steps(estimator: str, rule: str, factored: bool, symmetric: bool, dtype: torch.dtype) -> tuple[Any, ...]:
    asked = objective(estimator, symmetric, False)
    parameters = weights(3, dtype)
    if factored:
        parameters = [numbers(3, 2, 6, dtype=dtype) * 0.4 for _ in range(3)] + [numbers(3, 2, 2, dtype=dtype)]
        parameters[1][:, :, 4:] = 0
    if symmetric:
        kq = torch.zeros(3, 6, 6, dtype=dtype)
        kq[:, range(4), range(4)] = 0.3
        ov = torch.zeros(3, 2, 6, dtype=dtype)
        ov[:, [0, 1], [4, 5]] = 0.5
        parameters = [kq, ov]
    optimizer = make_optimizer(rule, learning_rate=0.01)
    state = optimizer.buffers({str(i): tensor for i, tensor in enumerate(parameters)})
    options = {"scale": 1.0, "step": 3, "n_steps": 1, "max_seconds": float("inf"), "flow_time": 0.0}
    return (
        emulated().train_steps,
        parameters,
        state,
        *asked.native_distribution(),
        {**asked.native_estimate(), **optimizer.native_rule(), **options},
    )


for _dtype in FLOATS:
    for _estimator in ("sampled", "conditional"):
        for _heads in (2, 9):
            CALLS[f"{_estimator} step {_heads} heads {name_of(_dtype)}"] = Call(
                partial(flow_step, _estimator, _heads, _dtype)
            )
        for _rule, _factored, _symmetric in (("flow", False, True), ("adam", True, False), ("sgd", False, False)):
            CALLS[f"training {_estimator} {_rule} {name_of(_dtype)}"] = Call(
                partial(train_steps, _estimator, _rule, _factored, _symmetric, _dtype)
            )

# On the matrix units: prompts with eight heads at a time

for _name, _make in {
    "prompt_attention": partial(prompt_attention, 9, torch.float32),
    "prompt_attention backward": partial(prompt_attention_backward, 9, torch.float32),
    "prompt_moments backward": partial(prompt_moments_backward, 9, torch.float32),
    "sampled step": partial(flow_step, "sampled", 9, torch.float32),
    "conditional step": partial(flow_step, "conditional", 9, torch.float32),
}.items():
    CALLS[f"{_name} tf32"] = Call(_make, TF32, tf32=True)

# On the matrix units: attention of several rows, columns of eight or sixteen a thread

for _rows, _dim in ((3, 20), (3, 67), (18, 20), (18, 67)):
    _name = f"{_rows} rows of {_dim} tf32"
    if _rows < 18:
        CALLS[f"attention {_name}"] = Call(partial(attention, _rows, _dim, torch.float32), TF32, tf32=True)
    CALLS[f"attention backward {_name}"] = Call(
        partial(attention_backward, _rows, _dim, torch.float32), TF32, tf32=True
    )

# Several tiles of keys, with a mask, and with NaN that it hides

for _tf32 in (False, True):
    _name = f"hiding {'tf32' if _tf32 else 'float32'}"
    for _rows, _what, _make in (
        (3, "attention", attention),
        (3, "attention backward", attention_backward),
        (18, "attention backward", attention_backward),
    ):
        CALLS[f"{_what} {_rows} rows {_name}"] = Call(
            partial(_make, _rows, 5, torch.float32, 70, True), TF32 if _tf32 else ROUNDING, tf32=_tf32
        )
