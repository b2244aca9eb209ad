"""The three estimates of the population loss: against their definitions, against each other, and against theory."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mhicl_fast import reference, spectral
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Objective, evaluate, objective, population_loss
from mhicl_fast.train.objective import prompt_losses


def make_task(**changes: object) -> MultiTaskRegression:
    """Overlapping supports, unequal signals, noise in examples and target, correlated covariates."""
    support = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    covariance = torch.tensor(
        [[1.3, 0.4, 0.0, 0.2], [0.4, 0.8, 0.1, 0.0], [0.0, 0.1, 1.0, -0.3], [0.2, 0.0, -0.3, 1.1]], dtype=torch.float64
    )
    options = {
        "support": support,
        "signal": torch.tensor([0.7, 1.6]),
        "noise_std": 0.6,
        "noisy_target": True,
        "covariance": covariance,
    } | changes
    return MultiTaskRegression(4, 2, 12, **options)


def make_weights(task: MultiTaskRegression, n_heads: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Full matrices of moderate size whose logits do not read labels; OV has a covariate block."""
    generator = torch.Generator().manual_seed(seed)
    kq = 0.4 * torch.randn(n_heads, task.dim, task.dim, generator=generator, dtype=torch.float64)
    kq[:, task.dim_x :, : task.dim_x] = 0
    ov = 0.5 * torch.randn(n_heads, task.n_tasks, task.dim, generator=generator, dtype=torch.float64)
    return kq.to(dtype), ov.to(dtype)


def diagonal_weights(sizes: list[int], own: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """One head per task on blocks of these sizes: own-task ω√d and μ/√d as given, off-task ω = 0.05 and μ = 0.1."""
    tasks, d = len(sizes), sum(sizes)
    omega = torch.full((tasks, tasks), 0.05, dtype=torch.float64)
    mu = torch.full((tasks, tasks), 0.1, dtype=torch.float64)
    for i, size in enumerate(sizes):
        omega[i, i], mu[i, i] = own[0] / math.sqrt(size), own[1] * math.sqrt(size)
    kq = torch.zeros(tasks, d + tasks, d + tasks, dtype=torch.float64)
    kq[:, :d, :d] = torch.diag_embed(omega.repeat_interleave(torch.tensor(sizes), dim=1))
    ov = torch.zeros(tasks, tasks, d + tasks, dtype=torch.float64)
    ov[:, :, d:] = torch.diag_embed(mu)
    return kq, ov


def block_task(sizes: list[int], length: int, noise_std: float, *, noisy_target: bool = True) -> MultiTaskRegression:
    support = torch.block_diag(*(torch.ones(1, size) for size in sizes)).bool()
    return MultiTaskRegression(
        sum(sizes), len(sizes), length, support=support, noise_std=noise_std, noisy_target=noisy_target
    )


def conditional_definition(task: MultiTaskRegression, kq: Tensor, ov: Tensor, n_prompts: int, **draw: int) -> Tensor:
    """The conditional loss written term by term in the covariates themselves, without folding anything."""
    d, tasks = task.dim_x, task.n_tasks
    x, x_query = task.sample_covariates(n_prompts, dtype=torch.float64, **draw)
    if task.covariance_factor is not None:
        x, x_query = x @ task.covariance_factor.T, x_query @ task.covariance_factor.T
    a, overlaps = reference.prompt_moments(x, x_query, kq[:, :d, :d])
    u, v = ov[:, :, d:], ov[:, :, :d]
    total = torch.einsum("hic,nhc->ni", v, a).square().sum()
    for i, j in itertools.product(range(tasks), repeat=2):
        error = (i == j) * x_query - torch.einsum("h,nhc->nc", u[:, i, j], a)
        total = total + task.signal[j] * (task.support[j] * error).square().sum()
        total = total + task.noise_std**2 * torch.einsum("h,g,nhg->", u[:, i, j], u[:, i, j], overlaps)
    return total / n_prompts + task.noise_std**2 * tasks * task.noisy_target


def with_gradients(loss: Tensor, *weights: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, weights)]


@pytest.mark.parametrize("changes", [{}, {"covariance": None}, {"support": None}, {"noisy_target": False}])
@pytest.mark.parametrize("n_prompts", [1, 7, 300])
def test_conditional_is_its_definition(changes: dict[str, object], n_prompts: int) -> None:
    task = make_task(**changes)
    kq, ov = (w.requires_grad_() for w in make_weights(task, 3, 1, torch.float64))
    got = with_gradients(population_loss(task, kq, ov, n_prompts=n_prompts, seed=5, step=2), kq, ov)
    expected = with_gradients(conditional_definition(task, kq, ov, n_prompts, seed=5, step=2), kq, ov)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert not got[1][:, task.dim_x :].any()
    assert not got[1][:, :, task.dim_x :].any()


def test_sampled_is_its_definition() -> None:
    task = make_task()
    kq, ov = (w.requires_grad_() for w in make_weights(task, 3, 2, torch.float64))
    kq.data[:, task.dim_x :, : task.dim_x] = 0.1  # logits may read labels here
    prompts = task.sample(33, seed=4, step=9, dtype=torch.float64)
    error = reference.prompt_attention(prompts.context, prompts.query, kq, ov) - prompts.target
    got = with_gradients(population_loss(task, kq, ov, estimator="sampled", n_prompts=33, seed=4, step=9), kq, ov)
    for one, other in zip(got, with_gradients(error.square().sum(1).mean(), kq, ov), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "changes", [{}, {"covariance": None, "noise_std": 0.0}, {"support": None, "signal": 0.5, "noisy_target": False}]
)
def test_sampled_and_conditional_agree(changes: dict[str, object]) -> None:
    """Values and every gradient entry, over independent batches, within their own standard errors."""
    task = make_task(**changes)
    kq, ov = make_weights(task, 2, 3, torch.float64)

    def batches(estimator: str, seed: int) -> np.ndarray:
        wanted = Objective(task, estimator, 2048, seed)
        results = (wanted(kq, ov, step) for step in range(16))
        # the gradient of KQ's label rows belongs to the sampled loss alone, V being nonzero here
        return np.array(
            [[r.loss, *r.grad_kq[:, : task.dim_x].flatten().tolist(), *r.grad_ov.flatten().tolist()] for r in results]
        )

    sampled, conditional = batches("sampled", 10), batches("conditional", 11)
    difference = sampled.mean(0) - conditional.mean(0)
    error = np.sqrt((sampled.var(0, ddof=1) + conditional.var(0, ddof=1)) / 16)
    matters = error > 0  # columns of KQ that meet the query's zeros are exactly 0 in both
    z = difference[matters] / error[matters]
    # 61 or so correlated t-distributed entries with 15 to 30 degrees of freedom
    assert np.abs(z).max() < 4.5
    assert np.mean(z**2) < 2
    assert not difference[~matters].any()


@pytest.mark.parametrize(("scaled", "least"), [((0.05, 0.05), 6.0), ((1.0, 1.0), 4.0)], ids=["early", "limit"])
def test_conditional_gradient_varies_less(scaled: tuple[float, float], least: float) -> None:
    """d_i = 10, I = H = 2, L = 100: the variance of the gradients per prompt, early and near the limit."""
    task = block_task([10, 10], 100, 0.0, noisy_target=False)
    kq, ov = (w.float() for w in diagonal_weights([10, 10], scaled))

    def variances(estimator: str) -> np.ndarray:
        wanted = Objective(task, estimator, 64, 1)
        results = [wanted(kq, ov, step) for step in range(200)]
        return np.array(
            [
                float(torch.stack([r.grad_kq[:, :20, :20] for r in results]).var(0).sum()),
                float(torch.stack([r.grad_ov[:, :, 20:] for r in results]).var(0).sum()),
            ]
        )

    assert (variances("sampled") / variances("conditional") > least).all()


@pytest.mark.parametrize(
    ("sizes", "length", "own_omega", "loss", "two_errors"),
    [
        ([10, 10], 100, 1.0, 5.609, 0.046),
        ([10, 10], 400, 1.0, 3.163, 0.024),
        ([5, 5, 5], 200, 1.0, 2.908, 0.022),
        ([30, 30], 1000, 0.3, 38.54, 0.14),
    ],
)
def test_loss_of_known_diagonal_weights(
    sizes: list[int], length: int, own_omega: float, loss: float, two_errors: float
) -> None:
    """Published Monte Carlo losses (± 2 s.e.), λ = 1, σ = ½, noisy target."""
    task = block_task(sizes, length, 0.5)
    kq, ov = (w.float() for w in diagonal_weights(sizes, (own_omega, 0.7)))
    sampled = evaluate(task, kq, ov, 2_000_000 // length, seed=1)
    assert abs(sampled.mean - loss) < 3 * math.hypot(sampled.standard_error, two_errors / 2)
    steps = [Objective(task, "conditional", 200_000 // length, 2)(kq, ov, step).loss for step in range(10)]
    error = np.std(steps, ddof=1) / math.sqrt(10)
    assert abs(np.mean(steps) - loss) < 4 * math.hypot(error, two_errors / 2)


def test_asymptotic_is_the_closed_form() -> None:
    task = block_task([5, 5], 1000, 0.5)
    kq, ov = (w.requires_grad_() for w in diagonal_weights([5, 5], (0.8, 0.9)))
    for order in ("leading", "first"):
        got = population_loss(task, kq, ov, estimator="asymptotic", order=order)
        torch.testing.assert_close(got, spectral.asymptotic_loss(task, kq, ov, order=order))
        through_objective = Objective(task, "asymptotic", 1, 0, order)(kq, ov, 0)
        torch.testing.assert_close(through_objective.grad_kq, torch.autograd.grad(got, kq)[0])
        assert through_objective.loss == pytest.approx(got.item())


@pytest.mark.parametrize(
    "changes", [{}, {"covariance": None, "noise_std": 0.0}, {"support": None, "noisy_target": False}]
)
@pytest.mark.parametrize("seed", [0, 2**63 + 5])
@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
def test_objective_is_the_loss_with_its_derivatives(estimator: str, seed: int, changes: dict[str, object]) -> None:
    task = make_task(**changes)
    kq, ov = (w.requires_grad_() for w in make_weights(task, 3, 9, torch.float64))
    loss = population_loss(task, kq, ov, estimator=estimator, n_prompts=21, seed=seed, step=2**32 - 1)
    got = Objective(task, estimator, 21, seed)(kq.mT.contiguous().mT, ov, 2**32 - 1)  # of any strides
    for one, other in zip(
        (torch.tensor(got.loss, dtype=torch.float64), *got[1:]), with_gradients(loss, kq, ov), strict=True
    ):
        assert not one.requires_grad
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
def test_chunks_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch, estimator: str) -> None:
    task = make_task()
    kq, ov = (w.requires_grad_() for w in make_weights(task, 2, 4, torch.float64))

    def everything() -> list[Tensor]:
        loss = population_loss(task, kq, ov, estimator=estimator, n_prompts=1000, seed=3)
        stepwise = Objective(task, estimator, 1000, 3)(kq, ov, 0)
        return [
            *with_gradients(loss, kq, ov),
            torch.tensor(stepwise.loss, dtype=torch.float64),
            stepwise.grad_kq,
            stepwise.grad_ov,
        ]

    whole = everything()
    for one, other in zip(whole[:3], whole[3:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    monkeypatch.setattr(objective, "CHUNK_BYTES", 8 * task.context_length * task.dim * 300)
    for one, other in zip(whole, everything(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_memory_holds_a_chunk_of_prompts_at_a_time() -> None:
    task = MultiTaskRegression(50, 2, 500)
    chunks = list(objective.prompt_chunks(task, 10_000, torch.zeros(1), "sampled"))
    assert sum(count for _, count in chunks) == 10_000
    assert [first for first, _ in chunks] == list(itertools.accumulate([0] + [count for _, count in chunks[:-1]]))
    assert max(count for _, count in chunks) * task.context_length * task.dim * 4 <= 2 * objective.CHUNK_BYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype, estimator: str) -> None:
    # enough prompts for a plain sum to be split between the threads
    task, prompts = MultiTaskRegression(3, 2, 4, noise_std=0.3, noisy_target=True), 100_000
    kq, ov = make_weights(task, 4, 6, dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append((Objective(task, estimator, prompts, 1)(kq, ov, 0), evaluate(task, kq, ov, prompts, seed=2)))
    finally:
        torch.set_num_threads(before)
    (one, evaluated), (other, evaluated_again) = results
    assert one.loss == other.loss
    assert torch.equal(one.grad_kq, other.grad_kq)
    assert torch.equal(one.grad_ov, other.grad_ov)
    assert evaluated == evaluated_again


@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
def test_float32_follows_float64(estimator: str) -> None:
    task = make_task()
    kq, ov = make_weights(task, 2, 5, torch.float64)
    exact = Objective(task, estimator, 500, 1)(kq, ov, 0)
    single = Objective(task, estimator, 500, 1)(kq.float(), ov.float(), 0)
    assert single.grad_kq.dtype == torch.float32
    assert single.loss == pytest.approx(exact.loss, rel=1e-5)
    for got, expected in zip(single[1:], exact[1:], strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_second_derivatives_of_the_conditional_loss() -> None:
    task = make_task()
    kq, ov = (w.requires_grad_() for w in make_weights(task, 1, 7, torch.float64))
    label_rows = torch.zeros_like(kq)
    label_rows[:, : task.dim_x, : task.dim_x] = 1  # keep the finite differences inside the estimator's domain

    def loss(kq: Tensor, ov: Tensor) -> Tensor:
        return population_loss(task, kq * label_rows, ov, n_prompts=3)

    assert torch.autograd.gradcheck(loss, (kq, ov))
    assert torch.autograd.gradgradcheck(loss, (kq, ov))


def test_evaluation_has_an_honest_error() -> None:
    task = make_task()
    kq, ov = make_weights(task, 2, 8, torch.float64)
    losses = prompt_losses(task, kq, ov, 400, seed=3)
    got = evaluate(task, kq, ov, 400, seed=3)
    assert got.mean == pytest.approx(float(losses.mean()))
    assert got.standard_error == pytest.approx(float(losses.std() / 20))


def test_bad_input_is_named() -> None:
    task = make_task()
    kq, ov = make_weights(task, 2, 1, torch.float32)
    reads_labels = kq.clone()
    reads_labels[1, 5, 2] = -0.25
    with pytest.raises(ValueError, match=r"KQ\[:, 4:, :4\] = 0, got an entry of size 0\.25; use estimator='sampled'"):
        population_loss(task, reads_labels, ov)
    population_loss(task, reads_labels, ov, estimator="sampled", n_prompts=2)
    reads_labels[1, 5, 2] = math.nan
    with pytest.raises(ValueError, match="size nan"):
        population_loss(task, reads_labels, ov)
    with pytest.raises(ValueError, match=r"kq must be \(heads, 6, 6\), got shape \[2, 5, 6\]"):
        population_loss(task, kq[:, :5], ov)
    with pytest.raises(ValueError, match=r"ov must be \(2, 2, 6\), got shape \[1, 2, 6\]"):
        population_loss(task, kq, ov[:1])
    with pytest.raises(TypeError, match=r"got torch.float32 and torch.float64"):
        population_loss(task, kq, ov.double())
    with pytest.raises(
        ValueError, match="estimator must be one of sampled, conditional, subspace, asymptotic, got 'exact'"
    ):
        population_loss(task, kq, ov, estimator="exact")
    with pytest.raises(ValueError, match="n_prompts must be at least 1, got 0"):
        population_loss(task, kq, ov, n_prompts=0)


@pytest.mark.parametrize("estimator", ["sampled", "conditional"])
@pytest.mark.parametrize("n_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("n_prompts", [100, 600])
def test_the_number_of_threads_changes_no_bit(estimator: str, n_heads: int, n_prompts: int) -> None:
    task = MultiTaskRegression(30, 3, 40, noise_std=0.1)
    generator = torch.Generator().manual_seed(n_heads)
    kq = 0.1 * torch.randn(n_heads, 33, 33, generator=generator)
    kq[:, 30:, :30] = 0
    ov = torch.randn(n_heads, 3, 33, generator=generator)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(Objective(task, estimator, n_prompts)(kq, ov, 0))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert other.loss == results[0].loss
        assert torch.equal(other.grad_kq, results[0].grad_kq)
        assert torch.equal(other.grad_ov, results[0].grad_ov)


def test_subspace_differentiates_and_names_bad_weights() -> None:
    task = make_task()
    kq, ov = make_weights(task, 2, 1, torch.float64)
    with pytest.raises(
        ValueError, match=r"subspace .* outputs that do not read covariates, OV\[:, :, :4\] = 0, got an"
    ):
        population_loss(task, kq, ov, estimator="subspace")
    ov[:, :, : task.dim_x] = 0
    result = Objective(task, "subspace", 100, 3)(kq, ov, 5)
    kq, ov = kq.requires_grad_(), ov.requires_grad_()
    loss = population_loss(task, kq, ov, estimator="subspace", n_prompts=100, seed=3, step=5)
    grad_kq, grad_ov = torch.autograd.grad(2 * loss, (kq, ov), retain_graph=True)
    assert float(loss.detach()) == result.loss
    assert torch.equal(grad_kq, 2 * result.grad_kq)
    assert torch.equal(grad_ov, 2 * result.grad_ov)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad(loss, (kq, ov), create_graph=True)
