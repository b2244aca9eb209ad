"""Gradient descent, raw and preprocessed, against its definition step by step."""

import pytest
import torch

from mhicl_fast.sparse.estimators import algorithm
from mhicl_fast.sparse.estimators.eigenbasis import geometric_sum

SHAPES = [(7, 3), (3, 7), (5, 5), (1, 4), (6, 1), (1, 1), (0, 3)]


def _examples(n, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, n, dim, generator=generator, dtype=torch.float64)
    y = torch.randn(5, n, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def _descended(z, y, steps, eta):
    """The definition, for one prompt."""
    beta = z.new_zeros(z.shape[1])
    for _ in range(steps):
        beta = beta - eta / max(len(z), 1) * z.T @ (z @ beta - y)
    return beta


def _largest(z):
    return torch.linalg.matrix_norm(z, 2) ** 2 / len(z) if len(z) else torch.tensor(torch.inf)


@pytest.mark.parametrize(("n", "dim"), SHAPES)
@pytest.mark.parametrize("c", [0.3, 1.0, 1.9])
def test_both_descents_are_their_definition(n, dim, c):
    x, y = _examples(n, dim, seed=n * 10 + dim)
    raw = algorithm.gradient_descent(x, y, (0, 1, 13), c=c)
    preprocessed = algorithm.preprocessed_descent(x, y, (0, 1, 13), c=c)
    assert raw.shape == preprocessed.shape == (3, 5, dim)
    for i in range(5):
        r = sum((y[i, k] * x[i, k] for k in range(n)), torch.zeros(dim, dtype=torch.float64)) / max(n, 1)
        torch.testing.assert_close(algorithm.preprocess(x, y)[i], r)
        for k, steps in enumerate((0, 1, 13)):
            torch.testing.assert_close(raw[k, i], _descended(x[i], y[i], steps, c / _largest(x[i])))
            scaled = x[i] * r
            expected = r * _descended(scaled, y[i], steps, c / _largest(scaled))
            torch.testing.assert_close(preprocessed[k, i], expected)


def test_constant_step_size():
    x, y = _examples(9, 4, seed=0)
    found = algorithm.gradient_descent(x, y, 6, step_size=0.07)
    torch.testing.assert_close(found, torch.stack([_descended(a, b, 6, 0.07) for a, b in zip(x, y)]))
    r = algorithm.preprocess(x, y)
    found = algorithm.preprocessed_descent(x, y, 6, step_size=0.07)
    scaled = [_descended(a * f, b, 6, 0.07) * f for a, b, f in zip(x, y, r)]
    torch.testing.assert_close(found, torch.stack(scaled))


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_one_decomposition_and_step_by_step_agree(n, dim):
    x, y = _examples(n, dim, seed=4)
    for descend in (algorithm.gradient_descent, algorithm.preprocessed_descent):
        at_once = descend(x, y, (1, 50))
        one_by_one = descend(x.clone().requires_grad_(), y, (1, 50))
        assert not at_once.requires_grad
        torch.testing.assert_close(at_once, one_by_one.detach())


def test_gradients_through_the_step_size_are_those_of_differences():
    x, y = _examples(4, 3, seed=2)
    x, y = x[:2].clone().requires_grad_(), y[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: algorithm.preprocessed_descent(x, y, 3), (x, y))


@pytest.mark.parametrize("heads", [1, 2, 3, 5])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_features_of_fewer_heads(heads, gamma):
    x, y = _examples(8, 5, seed=6)
    found = algorithm.preprocessed_descent(x, y, 4, step_size=0.1, heads=heads, gamma=gamma)
    r = algorithm.preprocess(x, y)
    for i in range(5):
        blocks = torch.arange(5).tensor_split(heads)
        features = torch.stack([x[i, :, block] @ r[i, block] for block in blocks], 1)
        if gamma:
            features = torch.cat([features, gamma * x[i]], 1)
        beta = _descended(features, y[i], 4, 0.1)
        expected = torch.cat([beta[h] * r[i, block] for h, block in enumerate(blocks)])
        torch.testing.assert_close(found[i], expected + (gamma * beta[heads:] if gamma else 0))


def test_all_heads_are_the_default():
    x, y = _examples(8, 5, seed=7)
    everything = algorithm.preprocessed_descent(x, y, 4)
    torch.testing.assert_close(algorithm.preprocessed_descent(x, y, 4, heads=5), everything)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12])
def test_labels_of_any_size_and_none(dtype, scale):
    x, y = _examples(6, 4, seed=8, dtype=dtype)
    for descend in (algorithm.gradient_descent, algorithm.preprocessed_descent):
        found = descend(x, scale * y, (3, 20))
        assert found.isfinite().all()
        if scale in (0.0, 1e-12, 1e12):
            expected = scale * descend(x.double(), y.double(), (3, 20))
            torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4 * scale)


def test_float32_is_close_to_float64():
    x, y = _examples(40, 16, seed=9)
    for descend in (algorithm.gradient_descent, algorithm.preprocessed_descent):
        torch.testing.assert_close(descend(x.float(), y.float(), 20), descend(x, y, 20).float(), rtol=1e-4, atol=1e-4)


def test_geometric_sum():
    ratio = torch.tensor([-0.9, 0.0, 0.5, 1 - 1e-12, 1.0], dtype=torch.float64)
    for terms in (0, 1, 2, 3, 7, 20, 50):
        torch.testing.assert_close(geometric_sum(ratio, terms), sum((ratio**k for k in range(terms)), 0 * ratio))


def test_arguments_are_checked():
    x, y = _examples(6, 4, seed=0)
    with pytest.raises(ValueError, match=r"y must be \(prompts, examples\) = \[5, 6\]"):
        algorithm.preprocess(x, y[:, :3])
    with pytest.raises(ValueError, match="x must be"):
        algorithm.preprocess(x[0], y)
    with pytest.raises(TypeError, match="one dtype"):
        algorithm.gradient_descent(x, y.float(), 3)
    with pytest.raises(TypeError, match=r"float32 or float64, got torch\.int64"):
        algorithm.gradient_descent(x.long(), y, 3)
    with pytest.raises(ValueError, match="at least 0"):
        algorithm.gradient_descent(x, y, (3, -1))
    with pytest.raises(ValueError, match=r"heads must be in \[1, dim_x\] = \[1, 4\], got 5"):
        algorithm.preprocessed_descent(x, y, 3, heads=5)
