"""The estimates that the precision example compares all have the gradient's mean; the example runs and says so."""

from __future__ import annotations

import csv
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mhicl_fast.spectral.asymptotic_gradient import AsymptoticGradient
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Objective

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "precision"
TASK = MultiTaskRegression(
    5, 2, 9, support=[[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]], signal=[0.7, 1.5], noise_std=0.4, noisy_target=True
)


@pytest.fixture(scope="module")
def estimates() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield importlib.import_module("estimates")
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in ("estimates", "gradients"):
            sys.modules.pop(name, None)


def weights(n_heads: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w = 0.12 * torch.randn(n_heads, 5, 5, generator=generator, dtype=torch.float64)
    return w, 0.6 * torch.randn(n_heads, 2, 2, generator=generator, dtype=torch.float64)


def combined(w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    kq, ov = w.new_zeros(len(w), 7, 7), w.new_zeros(len(w), 2, 7)
    kq[:, :5, :5], ov[:, :, 5:] = w, u
    return kq, ov


def test_conditional_gradients_are_those_of_training(estimates: ModuleType) -> None:
    w, u = weights(3, seed=0)
    xi, query = TASK.sample_covariates(300, seed=1, dtype=torch.float64)
    found = estimates.conditional(estimates.Attention(TASK, w, u), query, xi)
    _, grad_kq, grad_ov = Objective(TASK, "conditional", 300, seed=1)(*combined(w, u), 0)
    torch.testing.assert_close(found.by_kq().mean(0), grad_kq[:, :5, :5], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.by_output.mean(0), grad_ov[:, :, 5:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ["general", "equal heads", "more heads than covariates", "a head that is 0"])
def test_subspace_is_the_exact_mean_over_what_the_softmax_does_not_see(estimates: ModuleType, case: str) -> None:
    """Gradients are cubic in x⊥, so that their mean over ±√n e_k in its n coordinates is their Gaussian mean."""
    w, u = weights(6 if case == "more heads than covariates" else 3, seed=1)
    if case == "equal heads":
        w[:] = w[0].clone()
    if case == "a head that is 0":
        w[1] = 0
    model = estimates.Attention(TASK, 5 * w, u)
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(1, 5, generator=generator, dtype=torch.float64)
    columns = estimates.basis(model.logits(query))
    kept = columns[:, :, columns[0].norm(dim=0) > 0]
    coordinates = torch.randn(1, 9, columns.shape[2], generator=generator, dtype=torch.float64)
    found = estimates.subspace(model, query, columns, coordinates)
    rest = torch.linalg.svd(torch.eye(5, dtype=torch.float64) - kept[0] @ kept[0].T)[0][:, : 5 - kept.shape[2]]
    n = 9 * rest.shape[1]
    signs = torch.eye(n, dtype=torch.float64) * n**0.5
    outside = torch.cat([signs, -signs]).view(2 * n, 9, -1) @ rest.T if n else torch.zeros(1, 9, 5).double()
    whole = coordinates @ columns.mT + outside
    expected = estimates.conditional(model, query.expand(len(whole), -1), whole)
    torch.testing.assert_close(found.by_logit[0], expected.by_logit.mean(0), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.by_output[0], expected.by_output.mean(0), rtol=1e-9, atol=1e-11)


def test_all_estimates_have_the_same_mean(estimates: ModuleType) -> None:
    w, u = weights(2, seed=3)
    model = estimates.Attention(TASK, w, u)
    drawn = [Objective(TASK, "conditional", 10_000, seed=1)(*combined(w, u), step)[1:] for step in range(30)]
    reference = [torch.stack([pair[index] for pair in drawn]) for index in (0, 1)]
    control = AsymptoticGradient(TASK, "leading")(w, u)
    generator = torch.Generator().manual_seed(4)
    for estimate in estimates.ESTIMATES:
        draws = [estimate.draw(model, 3200, generator) for _ in range(12)]
        for index, inside in ((0, (..., slice(5), slice(5))), (1, (..., slice(-2, None)))):
            values = torch.cat([blocks[index] for blocks in draws])[inside]
            expected = reference[index][..., 5:] if index else reference[0][:, :, :5, :5]
            mean = values.mean(0) + (control[index] if "leading" in estimate.name else 0)
            error = (values.var(0) / len(values) + expected.var(0) / len(expected)).sqrt()
            scores = (mean - expected.mean(0)) / error
            assert scores.abs().max() < 4.5, estimate.name
            assert scores.square().mean() < 4, estimate.name  # entries are few and go together


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "precision.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "± context, symmetry" in done.stdout
    assert len(rows(tmp_path / "variance.csv")) == 33
    assert 10_000 < (tmp_path / "times.png").stat().st_size < 300_000


def test_what_the_page_says() -> None:
    found = {(row["setting"], row["moment"], row["estimate"]): row for row in rows(EXAMPLE / "variance.csv")}
    assert len(found) == 99

    def ratio(setting: str, moment: str, above: str, below: str, key: str) -> float:
        return float(found[setting, moment, above][key]) / float(found[setting, moment, below][key])

    for setting in ("multi-task", "single-task"):
        assert ratio(setting, "start", "subspace", "subspace, ± context", "ov") > 1000
        for moment in ("start", "half emergence", "limit"):
            assert ratio(setting, moment, "subspace, ± context", "± context, symmetry", "kq") > 20
            assert ratio(setting, moment, "sampled", "± context, symmetry", "milliseconds") > 1000
        assert ratio(setting, "limit", "conditional", "subspace", "kq") > 2.5
