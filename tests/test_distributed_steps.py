"""Steps that several processes share: the weights of one process, on all of them, and how such a span ends."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import distributed_steps
import pytest
import torch
from launched import ROOT, torchrun

from mhicl_fast.processes import Processes
from mhicl_fast.train import Objective
from mhicl_fast.train.parameters import Combined
from mhicl_fast.train.stepping import NativeStepper, PythonStepper, Span, make_stepper

SCRIPT = ROOT / "tests" / "distributed_steps.py"
CASES = distributed_steps.all_cases()


class Found(NamedTuple):
    """What each of the processes says of the cases."""

    processes: int
    by_rank: list[dict[str, Any]]

    def everyone(self, name: str) -> list[Any]:
        return [found[name] for found in self.by_rank]


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("steps")
    done = torchrun(request.param, SCRIPT, "trained", folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return Found(request.param, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)])


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_one_process(found: Found, name: str) -> None:
    """By tree to the bit; by all-reduce up to the order of sums.

    Sums of N numbers in two orders differ by at most 2 N ε Σ|terms|, and each update rounds once more. Σ|terms| of the
    gradient's largest entries stays within a few times their sum here, where weights move: 4 covers it for both.
    """
    config = CASES[name]
    results = found.everyone(name)
    epsilon = torch.finfo(config.torch_dtype()).eps
    tolerance = 4 * (config.n_prompts + distributed_steps.STEPS) * epsilon
    assert {result["tree"]["digest"] for result in results} == {results[0]["alone"]}
    for kind in results[0].keys() & {"all-reduce", "python"}:
        assert len({result[kind]["digest"] for result in results}) == 1
        assert results[0][kind]["difference"] <= tolerance * results[0]["moved"]
        assert results[0][kind]["loss"] == pytest.approx(results[0]["loss"], rel=tolerance)


def test_all_ways_were_compared(found: Found) -> None:
    """And the bits by all-reduce are not those of one process everywhere, or there would be no need for the tree."""
    results = [found.by_rank[0][name] for name in CASES]
    assert all(result["moved"] > 1e-4 for result in results)
    assert sum("python" in result for result in results) == sum(config.optimizer == "adam" for config in CASES.values())
    assert any(result["all-reduce"]["digest"] != result["alone"] for result in results)


@pytest.mark.parametrize("kind", ["all-reduce", "tree", "python"])
def test_no_steps_only_evaluate(found: Found, kind: str) -> None:
    results = found.everyone(f"evaluated {kind}")
    assert len({json.dumps(result["together"]) for result in results}) == 1
    together, alone = Span(*results[0]["together"]), Span(*results[0]["alone"])
    assert together[2:7] == pytest.approx(alone[2:7], rel=0 if kind == "tree" else 1e-12)
    assert (together.steps, together.finite, together.step_size) == (0, True, 0.0)
    assert (together.stopped, together.lost) == (False, "")


@pytest.mark.parametrize("kind", ["all-reduce", "tree", "python"])
@pytest.mark.parametrize("who", ["stopped", "stopped by one without prompts"])
def test_all_stop_after_the_same_step(found: Found, who: str, kind: str) -> None:
    results = found.everyone(f"{who} {kind}")
    assert [(result["steps"], result["stopped"]) for result in results] == [(6, True)] * found.processes
    assert len({result["digest"] for result in results}) == 1


def test_bad_groups_are_refused(found: Found) -> None:
    size = found.processes
    for said in found.everyone("bad arguments"):
        assert said[0] == f"rank must lie in [0, world), got rank={size}, world={size}"
        assert "need the name of their group" in said[1]
        assert "need the name of their group" in said[2]


def test_a_lost_process_ends_a_span(tmp_path: Path) -> None:
    done = torchrun(4, SCRIPT, "lost", tmp_path)
    assert done.returncode == 0, done.stderr
    for rank, reason in ((0, "onnection"), (2, "imed out")):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        span, again, in_python = (Span(*result[name]) for name in ("span", "again", "in_python"))
        assert (span.steps, span.finite, span.stopped) == (5, True, False)
        assert reason in span.lost
        assert math.isfinite(span.last_loss)
        assert span.flow_time == pytest.approx(5 * distributed_steps.NOISY.learning_rate)
        assert result["difference"] <= 1e-6  # the weights are those after five steps
        assert result["seconds"] < (1.5 if rank == 0 else 4)
        for failed in (again, in_python):
            assert failed.steps == 0
            assert failed.lost
            assert math.isnan(failed.last_loss)


def test_one_process_ends_when_asked_to() -> None:
    for kind in ("all-reduce", "tree"):
        alone = distributed_steps.Training(distributed_steps.NOISY, kind=kind)
        assert alone.advance(10, stop=True)[:1] + alone.spans[0][7:] == (1, True, "")
    python = distributed_steps.Training(distributed_steps.NOISY, kind="python")
    assert python.advance(10, stop=True)[:1] + python.spans[0][7:] == (1, True, "")


@pytest.mark.parametrize("n_prompts", [1, 16, 17, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_shares_make_up_the_objective(size: int, n_prompts: int) -> None:
    config = dataclasses.replace(distributed_steps.NOISY, n_prompts=n_prompts, dtype="float64")
    objective, (kq, ov) = config.objective(), config.start_parameters().to_combined()
    parts = [objective.share(rank, size)(kq, ov, 3) for rank in range(size)]
    whole = objective(kq, ov, 3)
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss, rel=1e-13)
    for mine, theirs in ((sum(part[i] for part in parts), whole[i]) for i in (1, 2)):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)
    assert sum(bool(part.grad_kq.any()) for part in parts) == min(size, -(-n_prompts // 16))


def test_which_stepper_is_made() -> None:
    config, several = distributed_steps.PLAIN, Processes(1, 2, group="0")
    start, optimizer = config.start_parameters(), config.make_optimizer()
    assert isinstance(make_stepper(config.objective(), start, optimizer, several, "tree"), NativeStepper)
    elsewhere = Combined(*(tensor.to("meta") for tensor in start.to_combined()))
    assert isinstance(make_stepper(config.objective(), elsewhere, optimizer, several), PythonStepper)
    with pytest.raises(ValueError, match="reduction=tree adds up on the CPU alone"):
        make_stepper(config.objective(), elsewhere, optimizer, several, "tree")
    with pytest.raises(ValueError, match="reduction must be one of all-reduce, tree, got 'ring'"):
        make_stepper(config.objective(), start, optimizer, several, "ring")
    asymptotic = Objective(config.task(), "asymptotic")
    assert isinstance(make_stepper(asymptotic, start, optimizer, several), PythonStepper)
    with pytest.raises(ValueError, match="no prompts to share"):
        asymptotic.share(0, 2)
