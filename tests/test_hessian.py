"""Hessians of the population loss and their products with vectors: against twice differentiated definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from test_train_objective import conditional_definition, make_task, make_weights
from torch import Tensor

from mhicl_fast import reference
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import HessianOperator, hessian, hessian_vector_product, population_loss, second_order

ESTIMATORS = ["sampled", "conditional", "asymptotic"]
TASKS = {
    "everything": {},
    "white": {"covariance": None, "signal": 0.5, "noisy_target": False},
    "no noise": {"noise_std": 0.0},
    "one task": {"support": torch.ones(1, 4), "signal": 1.3},
    "no context": {},
}


def named_task(name: str) -> MultiTaskRegression:
    if name == "one task":
        return MultiTaskRegression(4, 1, 9, noise_std=0.3)
    return make_task(**TASKS[name]).replace(**({"context_length": 0} if name == "no context" else {}))


def weights_for(task: MultiTaskRegression, estimator: str, seed: int, n_heads: int = 3) -> tuple[Tensor, Tensor]:
    """Random weights, or a direction, in the estimate's domain; small enough for the closed form to exist."""
    kq, ov = make_weights(task, n_heads, seed, torch.float64)
    if estimator == "asymptotic":
        kq = 0.3 * kq
        ov[:, :, : task.dim_x] = 0
    if estimator == "sampled":  # here logits may read labels
        kq[:, task.dim_x :, : task.dim_x] = 0.2 * kq[:, : task.n_tasks, : task.dim_x]
    return kq, ov


def definition(
    task: MultiTaskRegression, kq: Tensor, ov: Tensor, estimator: str, n_prompts: int, **draw: int
) -> Tensor:
    if estimator == "asymptotic":
        return population_loss(task, kq, ov, estimator="asymptotic", order="leading")
    if estimator == "conditional":
        return conditional_definition(task, kq, ov, n_prompts, **draw)
    prompts = task.sample(n_prompts, dtype=torch.float64, **draw)
    error = reference.prompt_attention(prompts.context, prompts.query, kq, ov) - prompts.target
    return error.square().sum(1).mean()


def twice_differentiated(
    task: MultiTaskRegression,
    kq: Tensor,
    ov: Tensor,
    along: tuple[Tensor, Tensor],
    estimator: str,
    n_prompts: int,
    **draw: int,
) -> list[Tensor]:
    """Loss, gradient and product by automatic differentiation of the definition."""
    leaves = kq.clone().requires_grad_(), ov.clone().requires_grad_()
    loss = definition(task, *leaves, estimator, n_prompts, **draw)
    gradient = torch.autograd.grad(loss, leaves, create_graph=True)
    products = torch.autograd.grad(gradient, leaves, along)
    return [loss.detach(), *(g.detach() for g in gradient), *products]


@pytest.mark.parametrize("n_prompts", [1, 150])
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
def test_product_is_that_of_the_definition(estimator: str, name: str, n_prompts: int) -> None:
    task = named_task(name)
    kq, ov = weights_for(task, estimator, seed=1)
    along = weights_for(task, estimator, seed=2)
    got = hessian_vector_product(task, kq, ov, *along, estimator=estimator, n_prompts=n_prompts, seed=6, step=3)
    expected = twice_differentiated(task, kq, ov, along, estimator, n_prompts, seed=6, step=3)
    assert name == "no context" or expected[3].abs().max() > 0.01
    for one, other in zip((torch.tensor(got.loss, dtype=torch.float64), *got[1:]), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_several_directions_are_each_alone(estimator: str) -> None:
    task = make_task().replace(context_length=500)
    kq, ov = weights_for(task, estimator, seed=3)
    directions = [weights_for(task, estimator, seed) for seed in (4, 5, 6)]
    arguments = {"estimator": estimator, "n_prompts": 20, "seed": 2}
    together = hessian_vector_product(task, kq, ov, *(torch.stack(x) for x in zip(*directions)), **arguments)
    assert together.product_kq.shape == (3, *kq.shape)
    for number, along in enumerate(directions):
        alone = hessian_vector_product(task, kq, ov, *along, **arguments)
        assert alone.loss == pytest.approx(together.loss, rel=1e-13)
        torch.testing.assert_close(alone.grad_kq, together.grad_kq)
        torch.testing.assert_close(alone.product_kq, together.product_kq[number], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(alone.product_ov, together.product_ov[number], rtol=1e-11, atol=1e-13)
    nothing = hessian_vector_product(task, kq, ov, kq[None][:0], ov[None][:0], **arguments)
    assert nothing.product_ov.shape == (0, *ov.shape)
    torch.testing.assert_close(nothing.grad_ov, together.grad_ov)


@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
def test_chunks_of_any_size_agree(monkeypatch: pytest.MonkeyPatch, estimator: str) -> None:
    task = make_task()
    kq, ov = weights_for(task, estimator, seed=7)
    along = weights_for(task, estimator, seed=8)
    results = []
    for budget in (1, 50_000, 1 << 30):
        monkeypatch.setattr(second_order, "CHUNK_BYTES", budget)
        results.append(hessian_vector_product(task, kq, ov, *along, estimator=estimator, n_prompts=200, seed=1))
    assert second_order.prompts_at_a_time(task, 6, 8) >= 200  # the last was one piece
    for other in results[:2]:
        assert other.loss == pytest.approx(results[2].loss, rel=1e-13)
        for one, whole in zip(other[1:], results[2][1:], strict=True):
            torch.testing.assert_close(one, whole, rtol=1e-11, atol=1e-13)


def test_chunks_hold_few_prompts_of_long_contexts() -> None:
    task = MultiTaskRegression(50, 1, 100)
    assert 20 < second_order.prompts_at_a_time(task, 16, 4) < 200
    assert second_order.prompts_at_a_time(task.replace(context_length=10**6), 16, 4) == 1


@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
def test_float32_follows_float64(estimator: str) -> None:
    task = make_task()
    kq, ov = weights_for(task, estimator, seed=9)
    along = weights_for(task, estimator, seed=10)
    exact = hessian_vector_product(task, kq, ov, *along, estimator=estimator, n_prompts=500)
    single = hessian_vector_product(
        task, kq.float(), ov.float(), *(x.float() for x in along), estimator=estimator, n_prompts=500
    )
    assert single.loss == pytest.approx(exact.loss, rel=1e-5)
    for got, expected in zip(single[1:], exact[1:], strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_dense_hessian_is_the_gradients_slope(estimator: str) -> None:
    """Central differences of the gradient, whose step h leaves an error of order h² and of rounding / h."""
    task = make_task().replace(context_length=500)
    kq, ov = weights_for(task, estimator, seed=11, n_heads=2)
    arguments = {"estimator": estimator, "n_prompts": 40, "seed": 4, "order": "first"}
    matrix = hessian(task, kq, ov, **arguments)
    operator = HessianOperator(task, kq, ov, **arguments)
    size, h = operator.shape[0], 1e-5
    assert matrix.shape == (size, size)

    def gradient(vector: np.ndarray) -> np.ndarray:
        leaves = [x.requires_grad_() for x in (w + d for w, d in zip((kq, ov), operator.weights(vector), strict=True))]
        return operator.flatten(*torch.autograd.grad(population_loss(task, *leaves, **arguments), leaves))

    slopes = np.stack([(gradient(h * unit) - gradient(-h * unit)) / (2 * h) for unit in np.eye(size)])
    scale = float(matrix.abs().max())
    assert np.abs(matrix.numpy() - slopes).max() < 1e-7 * scale
    assert float((matrix - matrix.T).abs().max()) < 1e-13 * scale
    # every entry counted is one that the estimate depends on
    assert (matrix.abs().max(0).values > 0).all()


def test_asymptotic_product_is_exact() -> None:
    task = make_task().replace(context_length=500)
    kq, ov = weights_for(task, "asymptotic", seed=12)
    along = weights_for(task, "asymptotic", seed=13)
    got = hessian_vector_product(task, kq, ov, *along, estimator="asymptotic", order="leading")
    expected = twice_differentiated(task, kq, ov, along, "asymptotic", 0)
    for one, other in zip((torch.tensor(got.loss, dtype=torch.float64), *got[1:]), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    first_order = hessian_vector_product(task, kq, ov, *along, estimator="asymptotic")
    assert not torch.allclose(first_order.product_kq, got.product_kq, rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_operator_goes_into_eigsh(estimator: str) -> None:
    task = make_task().replace(context_length=500)
    kq, ov = weights_for(task, estimator, seed=14, n_heads=2)
    arguments = {"estimator": estimator, "n_prompts": 30, "seed": 5}
    operator = HessianOperator(task, kq, ov, **arguments)
    matrix = hessian(task, kq, ov, **arguments).numpy()
    eigenvalues = np.linalg.eigvalsh(matrix)
    leading, vectors = eigsh(operator, k=3, which="LA", v0=np.ones(len(matrix)))
    np.testing.assert_allclose(leading, eigenvalues[-3:], rtol=1e-9)
    np.testing.assert_allclose(matrix @ vectors, vectors * leading, atol=1e-9 * leading[-1])
    columns = np.random.default_rng(0).standard_normal((len(matrix), 19))  # more than a block
    np.testing.assert_allclose(operator @ columns, matrix @ columns, atol=1e-11 * leading[-1])
    np.testing.assert_allclose(operator.T @ columns[:, 0], matrix @ columns[:, 0], atol=1e-11 * leading[-1])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_flat_vectors_and_weights(estimator: str) -> None:
    task = make_task().replace(context_length=500)
    kq, ov = weights_for(task, estimator, seed=15)
    operator = HessianOperator(task, kq, ov, estimator=estimator, n_prompts=2)
    d, heads, labels = task.dim_x, 3, task.n_tasks
    sizes = {"sampled": task.dim * d, "conditional": d * d, "asymptotic": d * d}
    of_ov = labels * (labels if estimator == "asymptotic" else task.dim)
    assert operator.shape == ((sizes[estimator] + of_ov) * heads,) * 2
    vectors = np.random.default_rng(1).standard_normal((2, operator.shape[0]))
    np.testing.assert_array_equal(operator.flatten(*operator.weights(vectors)), vectors)
    masked_kq = kq.clone()
    masked_kq[:, :, d:] = 0  # meets the query token's zeros
    back_kq, back_ov = operator.weights(operator.flatten(kq, ov))
    assert torch.equal(back_kq, masked_kq)
    assert torch.equal(back_ov, ov)


def test_weights_are_those_given_at_first() -> None:
    task = make_task()
    kq, ov = weights_for(task, "conditional", seed=16)
    operator = HessianOperator(task, kq, ov, n_prompts=10)
    vector = np.ones(operator.shape[0])
    before = operator @ vector
    kq.mul_(2)
    np.testing.assert_array_equal(operator @ vector, before)


def test_bad_input_is_named() -> None:
    task = make_task().replace(context_length=500)
    kq, ov = weights_for(task, "conditional", seed=17)
    along = weights_for(task, "conditional", seed=18)
    off = along[0].clone()
    off[1, 5, 2] = 1e-3
    with pytest.raises(ValueError, match=r"conditional estimator does not hold along direction_kq\[\.\.\., 4:, :4\]"):
        hessian_vector_product(task, kq, ov, off, along[1])
    ov[:, :, :4] = 0
    with pytest.raises(ValueError, match=r"asymptotic estimator does not hold along direction_ov\[\.\.\., :4\]"):
        hessian_vector_product(task, 0.1 * kq, ov, *along, estimator="asymptotic")
    for function in (hessian, HessianOperator):
        with pytest.raises(ValueError, match="subspace estimator can be differentiated once; use estimator='cond"):
            function(task, kq, ov, estimator="subspace")
        with pytest.raises(ValueError, match=r"kq must be \(heads, 6, 6\)"):
            function(task, kq[0], ov)
    with pytest.raises(ValueError, match="subspace"):
        hessian_vector_product(task, kq, ov, *along, estimator="subspace")
    with pytest.raises(
        ValueError, match=r"directions must be \[3, 6, 6\] and \[3, 2, 6\].*\[2, 6, 6\] and \[3, 2, 6\]"
    ):
        hessian_vector_product(task, kq, ov, along[0][:2], along[1])
    with pytest.raises(ValueError, match=r"directions must be .*\[4, 3, 6, 6\] and \[2, 3, 2, 6\]"):
        hessian_vector_product(task, kq, ov, along[0].expand(4, -1, -1, -1), along[1].expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match=r"directions must be"):
        hessian_vector_product(task, kq, ov, along[0][0], along[1])
    with pytest.raises(TypeError, match=r"direction_ov must be torch.float64 .*, got torch.float32"):
        hessian_vector_product(task, kq, ov, along[0], along[1].float())
    with pytest.raises(TypeError, match="direction_kq must be a tensor, got ndarray"):
        hessian_vector_product(task, kq, ov, along[0].numpy(), along[1])
    with pytest.raises(
        ValueError,
        match=r"Hessian in 84 weights takes 0.0538 MiB, more than max_bytes = 0.000954 MiB; use HessianOperator",
    ):
        hessian(task, kq, ov, max_bytes=1000)
