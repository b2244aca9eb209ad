"""The estimate that draws only the projections that logits read: against its formulas prompt by prompt, and against the
conditional estimate on average."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from subspace_reference import Floats, basis, subspace
from test_flow_step import CASES, NOISY, Case, make_weights, native, relative_error
from torch import Tensor

from mhicl_fast import sampling
from mhicl_fast.tasks import MultiTaskRegression


def subspace_weights(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    kq, ov = make_weights(case, "subspace", seed)
    ov[:, :, : case.dim_x] = 0
    return kq, ov


def drawn(task: MultiTaskRegression, rank: int, prompt: int) -> tuple[Floats, Floats]:
    """The query's ξ and the context's u (L, rank), by the streams' definition."""
    length = task.context_length
    query = sampling.normals(11, 5, prompt, sampling.PROMPT, task.dim_x)
    tiles = -(-length // sampling.LANES)
    numbers = sampling.normals(11, 5, prompt, sampling.CONTEXT, tiles * rank * sampling.LANES)
    u = numbers.reshape(tiles, rank, sampling.LANES).swapaxes(1, 2).reshape(-1, rank)
    return query, u[:length]


def by_formula(task: MultiTaskRegression, kq: Tensor, ov: Tensor, n_prompts: int) -> tuple[float, Tensor, Tensor]:
    """The mean over prompts and over both signs of their contexts."""
    d, heads = task.dim_x, kq.shape[0]
    factor = None if task.covariance_factor is None else task.covariance_factor.numpy()
    a_factor = np.eye(d) if factor is None else factor
    blocks, labels = kq[:, :d, :d].numpy(), ov[:, :, d:].numpy()
    loss, grad_kq, grad_u = 0.0, np.zeros_like(blocks), np.zeros_like(labels)
    for prompt in range(n_prompts):
        query, u = drawn(task, min(heads, d), prompt)
        q = basis(np.stack([a_factor.T @ block @ a_factor @ query for block in blocks]))
        for sign in (1, -1):
            part = subspace(
                sign * u,
                query,
                q,
                blocks,
                labels,
                task.support.numpy().astype(float),
                task.signal.numpy(),
                task.noise_std,
                task.noisy_target,
                factor,
            )
            loss += part[0] / (2 * n_prompts)
            grad_kq += part[1] / (2 * n_prompts)
            grad_u += part[2] / (2 * n_prompts)
    all_kq, all_ov = torch.zeros_like(kq), torch.zeros_like(ov)
    all_kq[:, :d, :d] = torch.from_numpy(grad_kq)
    all_ov[:, :, d:] = torch.from_numpy(grad_u)
    return loss, all_kq, all_ov


def check(case: Case, kq: Tensor, ov: Tensor, dtype: torch.dtype) -> None:
    kq, ov = kq.to(dtype), ov.to(dtype)
    loss, grad_kq, grad_ov = native(case.task(), kq, ov, "subspace", case.prompts)
    expected, expected_kq, expected_ov = by_formula(case.task(), kq.double(), ov.double(), case.prompts)
    bound = 1e-11 if dtype == torch.float64 else 3e-5
    assert loss == pytest.approx(expected, rel=bound)
    assert relative_error(grad_kq, expected_kq) < bound
    assert relative_error(grad_ov, expected_ov) < bound


SMALL = [name for name in CASES if name not in ("plain", "study", "long", "wide", "no token")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SMALL)
def test_agrees_with_its_formulas(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    check(case, *subspace_weights(case, seed=3), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_heads_that_coincide_or_are_empty(dtype: torch.dtype) -> None:
    case = Case(6, 2, 30, 4, 16, NOISY)
    kq, ov = subspace_weights(case, seed=3)
    kq[1] = kq[0]
    kq[2] = 0
    kq[3] = -(2.0**-20) * kq[0]
    check(case, kq, ov, dtype)


def test_small_heads_keep_their_direction() -> None:
    """Beside a head a million times larger: its gradient is not smaller."""
    case = Case(6, 2, 30, 3, 16, NOISY)
    kq, ov = subspace_weights(case, seed=5)
    kq[1] *= 1e-6
    check(case, kq, ov, torch.float32)


@pytest.mark.parametrize("options", [NOISY, {}, {"covariance": CASES["covariance"].options["covariance"]}])
def test_means_agree_with_the_conditional_estimate(options: dict[str, object]) -> None:
    """Over independent batches of prompts: differences within 4.5 standard errors, about 1 in mean square."""
    case = Case(7, 1, 12, 3, 512, options)
    kq, ov = subspace_weights(case, seed=7)
    batches = {
        name: [native(case.task(), kq, ov, name, 512, seed=seed) for seed in range(60)]
        for name in ("conditional", "subspace")
    }
    scores = []
    for part in range(3):
        values = {
            name: torch.stack([torch.as_tensor(batch[part]).double().flatten() for batch in of_name])
            for name, of_name in batches.items()
        }
        variance = sum(value.var(0) / len(value) for value in values.values())
        difference = values["subspace"].mean(0) - values["conditional"].mean(0)
        scores.append((difference / variance.sqrt())[variance > 0])
    z = torch.cat(scores)
    assert len(z) > 100
    assert float(z.abs().max()) < 4.5
    assert 0.6 < float(z.square().mean()) < 1.5


def test_no_token_means_no_gradient() -> None:
    case = Case(5, 2, 0, 2, 16)
    loss, grad_kq, grad_ov = native(case.task(), *subspace_weights(case, seed=3), "subspace", case.prompts)
    assert loss > 0
    assert not grad_kq.any()
    assert not grad_ov.any()


def test_heads_below_the_normal_numbers_count_as_empty() -> None:
    case = Case(6, 2, 30, 2, 16, NOISY)
    kq, ov = (weight.float() for weight in subspace_weights(case, seed=3))
    tiny, none = (native(case.task(), factor * kq, ov, "subspace", case.prompts) for factor in (1e-40, 0))
    for a, b in zip(tiny, none, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b))


def test_threads_do_not_change_a_bit() -> None:
    case = Case(6, 2, 48, 3, 203, NOISY)
    kq, ov = (weight.float() for weight in subspace_weights(case, seed=4))
    one, several = (native(case.task(), kq, ov, "subspace", case.prompts, threads=threads) for threads in (1, 3))
    assert one[0] == several[0]
    assert torch.equal(one[1], several[1])
    assert torch.equal(one[2], several[2])


def test_covariate_outputs_are_refused() -> None:
    case = Case(3, 2, 20, 2, 16)
    kq, ov = subspace_weights(case, seed=0)
    ov[0, 0, 0] = 1
    with pytest.raises(ValueError, match=r"outputs that do not read covariates, OV\[:, :, :3\] = 0"):
        native(case.task(), kq, ov, "subspace", 16)


def test_not_a_number_is_not_hidden() -> None:
    case = Case(3, 2, 20, 2, 16, NOISY)
    kq, ov = subspace_weights(case, seed=0)
    kq[1, 0, 0] = float("nan")
    loss, _, _ = native(case.task(), kq, ov, "subspace", 16)
    assert loss != loss
