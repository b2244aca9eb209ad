"""Estimates over prompts against plain formulas, and their standard errors against repeated experiments."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from mhicl_fast.sparse.analysis.record import Record
from mhicl_fast.sparse.analysis.statistics import Estimate, correlation, mean, ratio

REPEATS, PROMPTS = 2000, 200


def paired(rng: np.random.Generator, *shape: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two skewed, dependent samples of means 3 and 2."""
    common, one, other = rng.exponential(size=(3, *shape))
    return 2 * common + one, common + other


def clustered(rng: np.random.Generator, *shape: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Four measurements of each prompt, whose scale is the prompt's own."""
    scale = rng.exponential(size=(*shape, 1))
    first, noise = rng.normal(size=(2, *shape, 4))
    return scale * first, scale * (0.6 * first + 0.8 * noise)


def test_estimates_are_the_plain_ones(rng: np.random.Generator) -> None:
    a, b = paired(rng, 3, 50)
    assert np.allclose(mean(a).value, a.mean(1))
    assert np.allclose(mean(a).se, a.std(1, ddof=1) / np.sqrt(50))
    assert np.allclose(ratio(a, b).value, a.mean(1) / b.mean(1))
    x, y = clustered(rng, 3, 50)
    expected = [np.corrcoef(u.ravel(), v.ravel())[0, 1] for u, v in zip(x, y)]
    assert np.allclose(correlation(x, y).value, expected)


@pytest.mark.parametrize(
    ("sample", "estimate", "truth"), [(paired, ratio, 1.5), (clustered, correlation, 0.6)], ids=["ratio", "correlation"]
)
def test_standard_errors_are_the_spread_of_repeated_experiments(
    sample: Callable[..., tuple[NDArray[np.float64], NDArray[np.float64]]],
    estimate: Callable[..., Estimate],
    truth: float,
    rng: np.random.Generator,
) -> None:
    repeated = estimate(*sample(rng, REPEATS, PROMPTS))
    spread = repeated.value.std()
    assert abs(repeated.value.mean() - truth) < 0.1 * spread + 4 * spread / np.sqrt(REPEATS)
    assert np.sqrt((repeated.se**2).mean()) == pytest.approx(spread, rel=0.1)


def test_ratio_and_correlation_are_undefined_over_nothing(rng: np.random.Generator) -> None:
    a = rng.normal(size=(5, 2))
    for undefined in (ratio(a, np.zeros_like(a)), correlation(a, np.zeros_like(a))):
        assert np.isnan(undefined.value).all()
        assert np.isnan(undefined.se).all()
    assert np.isnan(mean([1.0]).se)
    with pytest.raises(ValueError, match="at least one sample"):
        mean(np.zeros((2, 0)))


@dataclass(frozen=True, eq=False)
class Nested(Record):
    name: str
    counts: NDArray[np.int64]
    parts: tuple[Estimate, ...]
    by_name: dict[str, Estimate]


def test_records_go_through_json_and_come_back(rng: np.random.Generator) -> None:
    undefined = Estimate(np.array([[np.nan, 0.1]]), np.array([[np.nan, 1 / 3]]))
    record = Nested("a", np.arange(3), (undefined, mean(rng.normal(size=(2, 9)))), {"b": mean(rng.normal(size=9))})
    text = json.dumps(record.to_dict(), allow_nan=False)
    back = Nested.from_dict(json.loads(text))
    assert json.dumps(back.to_dict(), allow_nan=False) == text
    assert back.counts.dtype == np.int64
    np.testing.assert_array_equal(back.parts[0].value, undefined.value)
    with pytest.raises(ValueError, match=r"Estimate has the fields value, se, got value"):
        Estimate.from_dict({"value": 1.0})


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)
