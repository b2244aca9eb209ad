"""The built transformer against the algorithm that it carries out, and its gradients."""

import pytest
import torch

from mhicl_fast.sparse.estimators import algorithm
from mhicl_fast.sparse.estimators.construction import build_transformer, step_gains
from mhicl_fast.sparse.evaluate import predict
from mhicl_fast.tasks.sparse import SparseRegression

CASES = [(16, 40, 10), (5, 3, 4), (1, 6, 3), (4, 1, 2), (3, 0, 2), (7, 11, 0), (2, 2, 25)]


def _prompts(dim, n, seed=0, n_prompts=6):
    task = SparseRegression(dim, min(dim, 2), n, noise_variance=(0.0, 0.4))
    return task.sample(n_prompts, n_queries=3, seed=seed, dtype=torch.float64)


def _predictions(prompts, coefficients):
    return (prompts.x_query @ coefficients[..., None])[..., 0]


@pytest.mark.parametrize(("dim", "n", "steps"), CASES)
@pytest.mark.parametrize("c", [0.6, 1.0])
def test_per_prompt_step_sizes(dim, n, steps, c):
    prompts = _prompts(dim, n)
    model = build_transformer(dim, steps, dtype=torch.float64)
    gains = step_gains(prompts.x, prompts.y, steps, c=c)
    expected = _predictions(prompts, algorithm.preprocessed_descent(prompts.x, prompts.y, steps, c=c))
    torch.testing.assert_close(model(prompts.tokens(), 3, gains), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dim", "n", "steps"), CASES)
def test_a_constant_step_size_makes_a_plain_transformer(dim, n, steps):
    prompts = _prompts(dim, n)
    model = build_transformer(dim, steps, step_size=0.05, dtype=torch.float64)
    expected = _predictions(prompts, algorithm.preprocessed_descent(prompts.x, prompts.y, steps, step_size=0.05))
    torch.testing.assert_close(model(prompts.tokens(), 3), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dim", "heads"), [(16, 1), (16, 4), (7, 3), (5, 5), (1, 1)])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_fewer_heads(dim, heads, gamma):
    prompts = _prompts(dim, 12)
    model = build_transformer(dim, 6, heads=heads, gamma=gamma, dtype=torch.float64)
    assert model.width == dim + 1 + heads
    assert model.shapes[0].heads == heads
    assert all(shape.heads == 1 for shape in model.shapes[1:])
    gains = step_gains(prompts.x, prompts.y, 6, heads=heads, gamma=gamma)
    coefficients = algorithm.preprocessed_descent(prompts.x, prompts.y, 6, heads=heads, gamma=gamma)
    expected = _predictions(prompts, coefficients)
    torch.testing.assert_close(model(prompts.tokens(), 3, gains), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dim", "n", "steps"), [(4, 9, 5), (5, 3, 4), (1, 6, 3)])
@pytest.mark.parametrize("through_the_step_size", [True, False])
def test_gradients_with_respect_to_the_tokens(dim, n, steps, through_the_step_size):
    """Of a random combination of predictions; the step sizes are functions of the tokens, or inputs of their own."""
    prompts = _prompts(dim, n, seed=5)
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [part.clone().requires_grad_() for part in (prompts.x, prompts.y, prompts.x_query)]
    x, y, x_query = leaves
    held = step_gains(prompts.x, prompts.y, steps)
    gains = step_gains(x, y, steps) if through_the_step_size else held

    by_model = build_transformer(dim, steps, dtype=torch.float64)
    tokens = prompts._replace(x=x, y=y, x_query=x_query).tokens()
    (by_model(tokens, 3, gains) * weights).sum().backward()
    found = [leaf.grad.clone() for leaf in leaves]

    leaves = [part.detach().clone().requires_grad_() for part in leaves]
    x, y, x_query = leaves
    if through_the_step_size:
        beta = algorithm.preprocessed_descent(x, y, steps)
    else:
        r = algorithm.preprocess(x, y)
        beta = torch.zeros_like(r)
        for _ in range(steps):
            residual = y - (x * r[:, None] @ beta[..., None])[..., 0]
            beta = beta + held[1][:, None] * algorithm.preprocess(x * r[:, None], residual)
        beta = beta * r
    ((x_query @ beta[..., None])[..., 0] * weights).sum().backward()
    for one, leaf in zip(found, leaves):
        torch.testing.assert_close(one, leaf.grad, rtol=1e-10, atol=1e-10)


def test_queries_leave_each_other_alone():
    prompts = _prompts(5, 8)
    model = build_transformer(5, 4, dtype=torch.float64)
    gains = step_gains(prompts.x, prompts.y, 4)
    together = model(prompts.tokens(), 3, gains)
    for q in range(3):
        alone = prompts._replace(x_query=prompts.x_query[:, [q]], target=prompts.target[:, [q]])
        torch.testing.assert_close(model(alone.tokens(), 1, gains), together[:, [q]])


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="steps must be at least 0"):
        build_transformer(4, -1)
    with pytest.raises(ValueError, match="heads must be"):
        build_transformer(4, 2, heads=0)


def test_step_sizes_that_come_with_the_prompts_are_asked_for() -> None:
    model = build_transformer(3, 2)
    prompts = SparseRegression(3, 1, 5).sample(4, seed=0)
    with pytest.raises(ValueError, match="give gains, as step_gains makes them"):
        predict(model, prompts)
    assert predict(build_transformer(3, 0), prompts).shape == (4, 1)  # without steps there are no sizes
    assert predict(build_transformer(3, 2, step_size=0.1), prompts).shape == (4, 1)
