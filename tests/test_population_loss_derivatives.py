"""Every way to differentiate the population loss, by value, over one chunk of prompts and over several."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_hessian import definition, weights_for
from test_train_objective import make_task
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.func import hessian as transformed_hessian
from transforms import TRANSFORMS, as_function_of

from mhicl_fast.train import hessian, objective, population_loss

N_PROMPTS = 20


def losses(estimator: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The loss and its definition as functions of the weights in the estimate's domain."""
    task = make_task().replace(context_length=7)
    inside = torch.ones(task.dim, task.dim)
    if estimator == "conditional":
        inside[task.dim_x :, : task.dim_x] = 0

    def loss(kq: Tensor, ov: Tensor) -> Tensor:
        return population_loss(task, kq * inside, ov, estimator=estimator, n_prompts=N_PROMPTS, seed=8)

    def expected(kq: Tensor, ov: Tensor) -> Tensor:
        return definition(task, kq * inside, ov, estimator, N_PROMPTS, seed=8)

    return loss, expected


@pytest.mark.parametrize("chunk_bytes", [1 << 24, 3000], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("transform", [name for name in TRANSFORMS if name != "nested jacfwd"])
@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
def test_transforms_have_the_values_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, estimator: str, transform: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(objective, "CHUNK_BYTES", chunk_bytes)
    loss, expected_loss = losses(estimator)
    task = make_task()
    weights = weights_for(task, estimator, seed=30, n_heads=1)
    for which in range(2):
        got = TRANSFORMS[transform](as_function_of(loss, weights, which), weights[which])
        expected = TRANSFORMS[transform](as_function_of(expected_loss, weights, which), weights[which])
        assert expected.abs().max() > 0
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
@pytest.mark.parametrize("chunk_bytes", [1 << 24, 3000], ids=["one chunk", "chunks"])
def test_both_weights_at_once(monkeypatch: pytest.MonkeyPatch, estimator: str, chunk_bytes: int) -> None:
    monkeypatch.setattr(objective, "CHUNK_BYTES", chunk_bytes)
    loss, expected_loss = losses(estimator)
    weights = weights_for(make_task(), estimator, seed=31, n_heads=1)
    expected = torch.autograd.functional.hessian(expected_loss, weights)
    for got in (
        torch.autograd.functional.hessian(loss, weights),
        torch.autograd.functional.hessian(loss, weights, vectorize=True),
        transformed_hessian(loss, argnums=(0, 1))(*weights),
    ):
        for row, expected_row in zip(got, expected, strict=True):
            for block, expected_block in zip(row, expected_row, strict=True):
                torch.testing.assert_close(block, expected_block, rtol=1e-10, atol=1e-12)


def test_many_models_in_one_call_are_checked_each() -> None:
    """The conditional loss refuses weights whose logits read labels, whichever model of a batch has them."""
    task = make_task()
    kq, ov = (torch.stack([w, -w]) for w in weights_for(task, "conditional", seed=32))

    def loss(kq: Tensor, ov: Tensor) -> Tensor:
        return population_loss(task, kq, ov, n_prompts=5)

    for one, alone in zip(vmap(loss)(kq, ov), zip(kq, ov)):
        torch.testing.assert_close(one, loss(*alone))
    kq[1, 0, 4, 1] = 0.125
    for refused in (vmap(loss), vmap(grad(loss))):
        with pytest.raises(ValueError, match=r"got an entry of size 0\.125"):
            refused(kq, ov)


@pytest.mark.parametrize("order", ["leading", "first"])
def test_closed_form_under_transforms(order: str) -> None:
    task = make_task().replace(context_length=500)
    kq, ov = weights_for(task, "asymptotic", seed=33, n_heads=1)
    d = task.dim_x

    def loss(block: Tensor, labels: Tensor) -> Tensor:
        whole_kq = torch.nn.functional.pad(block, (0, task.n_tasks, 0, task.n_tasks))
        whole_ov = torch.nn.functional.pad(labels, (d, 0))
        return population_loss(task, whole_kq, whole_ov, estimator="asymptotic", order=order)

    blocks = kq[:, :d, :d], ov[:, :, d:]
    rows = transformed_hessian(loss, argnums=(0, 1))(*blocks)
    sizes = [block.numel() for block in blocks]
    got = torch.cat([torch.cat([b.reshape(n, -1) for b in row], 1) for row, n in zip(rows, sizes, strict=True)])
    expected = hessian(task, kq, ov, estimator="asymptotic", order=order)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)

    along = torch.randn_like(blocks[0]), torch.randn_like(blocks[1])
    _, slope = jvp(loss, blocks, along)
    gradients = grad(loss, argnums=(0, 1))(*blocks)
    torch.testing.assert_close(slope, sum((g * x).sum() for g, x in zip(gradients, along, strict=True)))


def test_the_subspace_estimate_refuses_what_it_cannot_do() -> None:
    task = make_task()
    kq, ov = weights_for(task, "conditional", seed=34)
    ov[:, :, : task.dim_x] = 0

    def loss(kq: Tensor) -> Tensor:
        return population_loss(task, kq, ov, estimator="subspace", n_prompts=5)

    for transform in (lambda: grad(loss)(kq), lambda: jvp(loss, (kq,), (kq,)), lambda: vmap(loss)(kq[None])):
        with pytest.raises((RuntimeError, NotImplementedError)):
            transform()
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.functional.hessian(loss, kq)
