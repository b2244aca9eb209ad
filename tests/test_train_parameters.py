"""Parameterisations, their gradients, and the starting weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mhicl_fast import spectral
from mhicl_fast.presets import PRESETS
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Combined, Factored, initial_parameters
from mhicl_fast.train.parameters import pull_back
from mhicl_fast.train.starts import balanced_decomposable

BLOCKS = torch.block_diag(*(torch.ones(1, 3) for _ in range(2))).bool()
TASK = MultiTaskRegression(6, 2, 50, support=BLOCKS)


def factored(seed: int, scale: float | None = None) -> Factored:
    """E = 5, D = 4, two outputs, three heads."""
    g = torch.Generator().manual_seed(seed)
    w_q, w_k, w_v = torch.randn(3, 3, 5, 4, generator=g, dtype=torch.float64)
    return Factored(w_q, w_k, w_v, torch.randn(3, 2, 5, generator=g, dtype=torch.float64), scale)


@pytest.mark.parametrize(("scale", "factor"), [(None, 5**-0.5), (1.0, 1.0), (0.3, 0.3)])
def test_factored_weights_multiply_out(scale: float | None, factor: float) -> None:
    weights = factored(1, scale)
    kq, ov = weights.to_combined()
    for h in range(3):
        torch.testing.assert_close(kq[h], factor * weights.w_k[h].T @ weights.w_q[h])
        torch.testing.assert_close(ov[h], weights.w_o[h] @ weights.w_v[h])


def test_pulled_back_gradients_are_those_of_the_whole() -> None:
    weights = factored(2)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.tensors().items()}
    kq, ov = weights.with_tensors(leaves).to_combined()
    value = (kq.sin().sum() + (ov**3).sum()) * (1 + ov[0, 0, 0])
    gradients = torch.autograd.grad(value, (kq, ov), retain_graph=True)
    expected = torch.autograd.grad(value, tuple(leaves.values()))
    got = pull_back(weights, *gradients)
    assert list(got) == ["w_q", "w_k", "w_v", "w_o"]
    for one, other in zip(got.values(), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert pull_back(Combined(kq.detach(), ov.detach()), *gradients)["kq"].equal(gradients[0])


def test_mismatched_parameters_are_named() -> None:
    w = factored(3)
    with pytest.raises(ValueError, match=r"w_v must have w_q's shape \[3, 5, 4\], got \[3, 4, 4\]"):
        Factored(w.w_q, w.w_k, w.w_v[:, 1:], w.w_o)
    with pytest.raises(ValueError, match=r"w_o must be \(3, outputs, 5\), got shape \[3, 2, 4\]"):
        Factored(w.w_q, w.w_k, w.w_v, w.w_o[:, :, 1:])
    with pytest.raises(ValueError, match=r"ov must be \(2, outputs, 4\), got shape \[3, 2, 4\]"):
        Combined(torch.zeros(2, 4, 4), torch.zeros(3, 2, 4))
    with pytest.raises(TypeError, match=r"kq torch.float32, ov torch.float64"):
        Combined(torch.zeros(2, 4, 4), torch.zeros(2, 1, 4, dtype=torch.float64))


def test_decomposable_start() -> None:
    """W_Q = W_K = L^-¾ Id; W_V and W_O L^-¾, twice that at task h mod I."""
    weights = initial_parameters(TASK, 3, start="decomposable", seed=0)
    unit = 50**-0.75
    assert isinstance(weights, Factored)
    torch.testing.assert_close(weights.w_q, unit * torch.eye(8, dtype=torch.float64).expand(3, 8, 8))
    assert weights.w_q.equal(weights.w_k)
    own = torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(weights.w_v[:, 6:, 6:], torch.diag_embed(unit * own))
    assert not weights.w_v[:, :6].any()
    assert not weights.w_v[:, :, :6].any()
    torch.testing.assert_close(weights.w_o, weights.w_v[:, :, 6:].transpose(1, 2))
    values = spectral.diagonal(*weights.to_combined(), TASK)
    assert values.residual < 1e-7
    np.testing.assert_allclose(values.omega, unit**2 / math.sqrt(8))
    np.testing.assert_allclose(values.mu, (unit * own.numpy()) ** 2)


def test_spread_of_the_decomposable_start_stays_in_bounds() -> None:
    plain = initial_parameters(TASK, 64, start="decomposable", seed=3).tensors()
    spread = initial_parameters(TASK, 64, start="decomposable", seed=3, spread=0.5).tensors()
    for name, at in (("w_q", (0, 0)), ("w_v", (7, 7))):
        factors = spread[name][:, at[0], at[1]] / plain[name][:, at[0], at[1]]
        assert 1 / 1.5 < factors.min() < 0.75
        assert 1.33 < factors.max() < 1.5
    assert spread["w_q"].equal(spread["w_k"])
    assert spread["w_o"].equal(spread["w_v"][:, :, 6:].transpose(1, 2))


@pytest.mark.parametrize("n_heads", [1, 2, 5])
def test_small_start_is_balanced_and_favours_one_head_per_task(n_heads: int) -> None:
    winners = set()  # (head of task 0, head of task 1)
    for seed in range(20):
        weights = initial_parameters(TASK, n_heads, start="small", seed=seed, scale=1.0, size=0.02)
        assert isinstance(weights, Factored)
        assert weights.w_q.equal(weights.w_k)
        assert weights.w_o.equal(weights.w_v[:, :, 6:].transpose(1, 2))
        values = spectral.diagonal(*weights.to_combined(), TASK)
        assert values.residual < 1e-7
        assert (values.mu > 0).all()
        assert (values.mu < 0.02 * 1.5 * 1.5).all()
        by_task = values.omega.reshape(n_heads, 2, 3)
        np.testing.assert_allclose(by_task, by_task[:, :, :1].repeat(3, 2), rtol=1e-12)
        strength = np.sort(values.mu * by_task[:, :, 0], axis=0)
        if n_heads > 1:
            assert (strength[-1] > 2 * strength[-2]).all()
            heads = tuple((values.mu * by_task[:, :, 0]).argmax(0))
            assert heads[0] != heads[1]
            winners.add(heads)
    assert n_heads == 1 or len(winners) >= min(n_heads * (n_heads - 1), 8)


def test_small_start_reads_only_what_tasks_read() -> None:
    support = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    task = MultiTaskRegression(4, 2, 50, support=support)
    omega = spectral.diagonal(*initial_parameters(task, 2, start="small", seed=1).to_combined(), task).omega
    np.testing.assert_allclose(omega[:, 1], (omega[:, 0] + omega[:, 2]) / 2)
    assert not omega[:, 3].any()


def test_random_start_has_the_bounds_of_a_linear_layer() -> None:
    weights = initial_parameters(TASK, 16, start="random", seed=5)
    assert isinstance(weights, Factored)
    for tensor, fan_in in ((weights.w_q, 8), (weights.w_k, 8), (weights.w_v, 8), (weights.w_o, 16 * 8)):
        bound = fan_in**-0.5
        assert 0.98 * bound < tensor.abs().max() < bound
        assert abs(float(tensor.mean())) < 4 * bound / math.sqrt(3 * tensor.numel())
    assert not weights.w_q.equal(weights.w_k)


@pytest.mark.parametrize("start", ["decomposable", "small", "random"])
def test_a_start_is_a_function_of_its_seed(start: str) -> None:
    def tensors(seed: int, **options: object) -> dict[str, torch.Tensor]:
        return initial_parameters(TASK, 2, start=start, seed=seed, spread=0.3, **options).tensors()

    one, again, other = tensors(1), tensors(1), tensors(2)
    assert all(one[name].equal(again[name]) for name in one)
    assert not one["w_q"].equal(other["w_q"])
    single = tensors(1, dtype=torch.float32)
    assert all(single[name].equal(one[name].float()) for name in one)
    combined = tensors(1, parameters="combined")
    kq, ov = initial_parameters(TASK, 2, start=start, seed=1, spread=0.3).to_combined()
    assert combined["kq"].equal(kq)
    assert combined["ov"].equal(ov)


def test_balanced_weights_have_the_values_asked_for() -> None:
    mu, omega = torch.rand(2, 3, 2, dtype=torch.float64)
    weights = balanced_decomposable(TASK, mu, omega.repeat_interleave(3, 1), scale=0.4)
    values = spectral.diagonal(*weights.to_combined(), TASK)
    np.testing.assert_allclose(values.mu, mu)
    np.testing.assert_allclose(values.omega, omega.repeat_interleave(3, 1))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="start must be one of decomposable, small, random, got 'zero'"):
        initial_parameters(TASK, 2, start="zero", seed=0)
    with pytest.raises(ValueError, match="parameters must be factored or combined, got 'split'"):
        initial_parameters(TASK, 2, start="random", parameters="split", seed=0)


def test_presets_start_with_the_shapes_they_promise() -> None:
    for config in PRESETS.values():
        kq, ov = config.start_parameters().to_combined()
        dim = config.dim_x + config.n_tasks
        assert kq.shape == (config.n_heads, dim, dim)
        assert ov.shape == (config.n_heads, config.n_tasks, dim)
