"""The GPU's attention, emulated: values and gradients against the definition in float64, and outputs like the CPU's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from attention_checks import assert_as_defined
from attentions import Case, definition, make_inputs, make_lengths, make_mask, wanted
from emulated import device_limits, emulated, run_sanitized, seed_schedule
from emulated_attention import attention
from prompts import relative_errors, value_and_grads

# Rows by the kernels' configurations: at most 2, 8, 16, 32 in one block, and past them in several.
CASES = [
    Case(1, 1, 1, 1, 1, 1, 1),
    Case(2, 3, 3, 4, 5, 1, 2),
    Case(3, 2, 1, 1, 7, 5, 3),
    Case(2, 2, 2, 2, 130, 17, 66),
    Case(2, 6, 2, 5, 9, 6, 6),
    Case(1, 8, 1, 3, 65, 7, 16),
    Case(2, 4, 4, 33, 19, 21, 16),
    Case(1, 2, 2, 41, 64, 51, 51),
    Case(2, 8, 2, 1, 40, 64, 65),
    Case(1, 2, 1, 65, 81, 127, 33),
    Case(1, 1, 1, 9, 130, 256, 256),
    Case(1, 1, 1, 34, 66, 130, 257),
    Case(2, 2, 2, 70, 6, 8, 8),
]
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "linear": {"activation": "linear", "scale": 0.2},
    "causal relu": {"activation": "relu", "is_causal": True},
}
MASK_KINDS = ["boolean", "additive", "hiding"]
TOGETHER, APART = Case(2, 6, 2, 4, 70, 5, 7), Case(2, 4, 2, 20, 70, 5, 7)  # one block of rows a problem, and two
ALL = (True, True, True, True)


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_in_float64(case: Case, options: dict, with_lengths: bool) -> None:
    lengths = make_lengths(case.batch, case.keys, seed=1) if with_lengths else None
    assert_as_defined(attention, make_inputs(case, torch.float64, seed=0), ALL[:3], key_lengths=lengths, **options)


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("case", [TOGETHER, APART], ids=["together", "apart"])
def test_masks_of_every_broadcastable_shape(case: Case, kind: str) -> None:
    inputs = make_inputs(case, torch.float64, seed=3)
    for full in itertools.product([False, True], repeat=4):
        size = tuple(n if whole else 1 for n, whole in zip(case.logits, full, strict=True))
        mask = make_mask(size, kind, torch.float64, seed=2)
        options = {"is_causal": sum(full) == 2, "key_lengths": torch.tensor([0, 67])}
        if kind == "boolean":
            assert_as_defined(attention, inputs, ALL[:3], attn_mask=mask, **options)
        else:
            assert_as_defined(attention, [*inputs, mask], ALL, **options)


def backward_arguments(case: Case, dtype: torch.dtype, seed: int, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of attention_backward, with everything that can be given."""
    mask = make_mask(case.logits, "hiding", dtype, seed)
    lengths = make_lengths(case.batch, case.keys, seed + 1)
    options = {"scale": 0.3, "is_causal": False, "activation": "softmax"} | options
    tensors = [*make_inputs(case, dtype, seed + 2), mask, lengths]
    stats = emulated().attention(*tensors, **options, want_lse=False, want_weights=False)[3]
    generator = torch.Generator().manual_seed(seed + 3)
    sizes = [(*case.logits[:3], case.value_dim), case.logits[:3], case.logits]
    grads = [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]
    grad_lse = grads[1].to(stats.dtype) if options["activation"] == "softmax" else None
    return [grads[0], grad_lse, grads[2], *tensors, stats], options


@pytest.mark.parametrize("activation", ["softmax", "relu"])
@pytest.mark.parametrize("case", [Case(2, 2, 1, 1, 70, 6, 5), TOGETHER, APART], ids=str)
def test_every_choice_of_gradients(case: Case, activation: str) -> None:
    arguments, options = backward_arguments(case, torch.float32, seed=4, activation=activation)
    whole = emulated().attention_backward(*arguments, **options, needs=ALL)
    on_cpu = torch.ops.mhicl.attention_backward(*arguments, **options, needs=ALL)
    assert max(relative_errors(whole, on_cpu)) < 3e-6
    for needs in itertools.product([False, True], repeat=4):
        part = emulated().attention_backward(*arguments, **options, needs=needs)
        for need, gradient, expected in zip(needs, part, whole, strict=True):
            assert torch.equal(gradient, expected) if need else gradient.numel() == 0


@pytest.mark.parametrize("which", [0, 1, 2], ids=["out", "lse", "weights"])
@pytest.mark.parametrize("case", [TOGETHER, APART], ids=["together", "apart"])
def test_one_output_differentiated_alone(case: Case, which: int) -> None:
    inputs = [x.requires_grad_() for x in make_inputs(case, torch.float64, seed=7)]
    leaves = inputs[:2] if which else inputs
    got, expected = (
        torch.autograd.grad(f(*inputs, return_lse=True, return_weights=True)[which].square().sum(), leaves)
        for f in (attention, definition)
    )
    assert max(relative_errors(got, expected)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wants", list(itertools.product([False, True], repeat=2)), ids=str)
def test_outputs_are_laid_out_as_on_the_cpu(wants: tuple[bool, bool], dtype: torch.dtype) -> None:
    for inside in (False, True):
        inputs = make_inputs(TOGETHER, dtype, seed=8)
        if inside:
            inputs = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
        options = {"scale": 0.4, "is_causal": False, "activation": "softmax"}
        outputs, on_cpu = (
            ops.attention(*inputs, None, None, **options, want_lse=wants[0], want_weights=wants[1])
            for ops in (emulated(), torch.ops.mhicl)
        )
        grads, cpu_grads = (
            ops.attention_backward(
                on_cpu[0], None, None, *inputs, None, None, on_cpu[3], **options, needs=(True, True, True, False)
            )
            for ops in (emulated(), torch.ops.mhicl)
        )
        for ours, theirs in zip([*outputs, *grads], [*on_cpu, *cpu_grads], strict=True):
            assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
            tolerance = 8 * torch.finfo(torch.float32 if ours.dtype == torch.float32 else dtype).eps
            assert max(relative_errors([ours], [theirs])) < tolerance


def assert_same_bits_in_any_order(case: Case, shared_per_block: int) -> None:
    """And on a device that has so little shared memory, whose blocks have fewer rows."""
    arguments, options = backward_arguments(case, torch.float32, seed=9)

    def run() -> list[torch.Tensor]:
        outputs = emulated().attention(*arguments[3:8], **options, want_lse=True, want_weights=True)
        return [*outputs, *emulated().attention_backward(*arguments, **options, needs=ALL)]

    expected = run()
    try:
        for seed in range(1, 5):
            seed_schedule(seed)
            assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        seed_schedule(0)
    with device_limits(multiprocessors=2, shared_per_block=shared_per_block):
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))


@pytest.mark.parametrize("case", [Case(3, 2, 1, 1, 40, 6, 6), TOGETHER, APART], ids=str)
def test_the_same_bits_in_any_order_and_on_any_device(case: Case) -> None:
    assert_same_bits_in_any_order(case, 20 << 10)


def test_wide_rows_fit_devices_with_less_shared_memory() -> None:
    case = Case(1, 1, 1, 40, 70, 130, 130)
    for dtype in (torch.float32, torch.float64):
        inputs = make_inputs(case, dtype, seed=10)
        expected = value_and_grads(wanted(attention), inputs, ALL[:3])
        with device_limits(shared_per_block=99 << 10):
            got = value_and_grads(wanted(attention), inputs, ALL[:3])
        assert max(relative_errors(got, expected)) < (1e-6 if dtype == torch.float32 else 1e-13)


def test_lengths_out_of_range_are_clamped() -> None:
    case = TOGETHER._replace(batch=3)
    inputs = make_inputs(case, torch.float64, seed=11)
    beyond, within = torch.tensor([-5, 1 << 40, 7]), torch.tensor([0, 70, 7])
    got, expected = (value_and_grads(wanted(attention, key_lengths=x), inputs, ALL[:3]) for x in (beyond, within))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_what_it_refuses() -> None:
    query, key, value = make_inputs(TOGETHER, torch.float32, seed=12)
    options = {"scale": 1.0, "is_causal": False, "want_weights": False}
    attend = emulated().attention
    for bad, words in [
        ({"activation": "gelu", "want_lse": False}, "softmax, linear or relu"),
        ({"activation": "relu", "want_lse": True}, "only the softmax"),
    ]:
        with pytest.raises(ValueError, match=words):
            attend(query, key, value, None, None, **options, **bad)
    with pytest.raises(ValueError, match="multiple of key's"):
        attend(query[:, :5], key, value, None, None, **options, activation="relu", want_lse=False)


def test_under_the_sanitizers() -> None:
    run_sanitized(__file__, "-k", "every_choice_of_gradients or (in_float64 and causal and (130 or 64) and not 256)")
