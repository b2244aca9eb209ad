"""Operators on GPUs as tracing sees them, which needs none: what they return is as on the CPU, but on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map_only

import mhicl_fast  # noqa: F401  (registers the operators)

OPS = torch.ops.mhicl
N, L, D, H = 3, 7, 5, 4


def prompts(models: int = 2) -> tuple[Tensor, ...]:
    return torch.randn(N, L, D), torch.randn(N, D), torch.randn(models, H, D, D), torch.randn(models, H, 2, D)


def prompt_attention() -> tuple[Any, ...]:
    return OPS.prompt_attention, *prompts(), torch.tensor([0, 3, L]), True, True, {}


def prompt_attention_backward() -> tuple[Any, ...]:
    arguments = *prompts(), None
    out, moments, jacobian = OPS.prompt_attention(*arguments, True, True)
    return OPS.prompt_attention_backward, out, *arguments, moments, jacobian, [True, False, True, True], {}


def prompt_moments() -> tuple[Any, ...]:
    context, query, kq, _ = prompts(1)
    return OPS.prompt_moments, context, query, kq[0], None, True, {}


def prompt_moments_backward() -> tuple[Any, ...]:
    operator, *arguments, want_overlaps, _ = prompt_moments()
    moments, overlaps = operator(*arguments, want_overlaps)
    return OPS.prompt_moments_backward, moments, overlaps, *arguments, [True, True, False], {}


def attention() -> tuple[Any, ...]:
    query, key, value = torch.randn(2, 4, 3, 6), torch.randn(2, 2, L, 6), torch.randn(2, 2, L, 5)
    options = {"scale": 0.5, "is_causal": False, "activation": "softmax"}
    return (
        OPS.attention,
        query,
        key,
        value,
        None,
        torch.tensor([3, L]),
        options | {"want_lse": True, "want_weights": True},
    )


def attention_backward() -> tuple[Any, ...]:
    operator, *arguments, options = attention()
    out, lse, _, stats = operator(*arguments, **options)
    options = {name: options[name] for name in ("scale", "is_causal", "activation")} | {
        "needs": [True, True, True, False]
    }
    return OPS.attention_backward, out, lse, None, *arguments, stats, options


def sample_multi_task() -> tuple[Any, ...]:
    address = {"seed": 1, "step": 2, "first_prompt": 3, "noise_std": 0.5, "noisy_target": True}
    outputs = torch.empty(N, L, D + 2), torch.empty(N, D + 2), torch.empty(N, 2)
    return OPS.sample_multi_task, *outputs, torch.ones(2, D), None, address


def sample_covariates() -> tuple[Any, ...]:
    return OPS.sample_covariates, torch.empty(N, L, D), torch.empty(N, D), {"seed": 1, "step": 2, "first_prompt": 3}


CALLS = [
    prompt_attention,
    prompt_attention_backward,
    prompt_moments,
    prompt_moments_backward,
    attention,
    attention_backward,
    sample_multi_task,
    sample_covariates,
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_fakes_on_a_gpu(call: Callable[[], tuple[Any, ...]]) -> None:
    operator, *arguments, keywords = call()
    expected = tree_flatten(operator(*arguments, **keywords))[0]
    with FakeTensorMode():
        try:
            torch.empty(1, device="cuda")
        except (RuntimeError, AssertionError) as error:
            pytest.skip(f"this PyTorch has no fake GPUs: {error}")

        def on_gpu(tensor: Tensor) -> Tensor:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")

        found = tree_flatten(operator(*tree_map_only(Tensor, on_gpu, arguments), **keywords))[0]
    assert len(found) == len(expected)
    for mine, real in zip(found, expected, strict=True):
        if not isinstance(real, Tensor):
            continue
        assert (mine.shape, mine.dtype) == (real.shape, real.dtype)
        assert mine.device == torch.device("cuda", 0)
        assert real.numel() == 0 or mine.stride() == real.stride()


@pytest.mark.parametrize(
    "operator", [prompt_attention, prompt_moments, attention, sample_multi_task, sample_covariates]
)
def test_schemas_hold(operator: Callable[[], tuple[Any, ...]]) -> None:
    call, *arguments, keywords = operator()
    torch.library.opcheck(call, tuple(arguments), keywords, test_utils=("test_schema", "test_faketensor"))
