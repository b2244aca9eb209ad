"""What the benchmark measures: right and wrong results, times of the passes, peak memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mhicl_fast
from mhicl_fast import bench
from mhicl_fast.bench import BenchInputError
from mhicl_fast.bench.gpus import H100, PUBLISHED
from mhicl_fast.bench.measuring import BOUNDS, Plan, without_compiled
from mhicl_fast.bench.memory import in_fresh_process, peak_memory
from mhicl_fast.bench.problem import DTYPES, NAMES, Problem, relative_errors
from mhicl_fast.bench.roofs import device_roofs
from mhicl_fast.bench.timing import DeviceClock, HostClock, Timing, calls_in_turns

SHAPES = ["3,4,5,6,7", "3,4/2,1,6,7,3", "2,4/1,6,6,5,causal", "2,3,6,4,5,causal", "5,2,1,1,3,causal"]
PROMPTS = ["7,5,3,2,2", "4,1,2,1,1"]
FEW = {"rounds": 2, "memory": False}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", SHAPES)
def test_every_competitor_of_attention_is_right(text: str, dtype: str) -> None:
    shape = bench.AttentionShape.parse(text)
    problem = Problem.make(shape, DTYPES[dtype])
    exact, models = problem.exact(), problem.models(set(without_compiled("attention")) - {"sdpa-flash"})
    assert ("eager-rows" in models) == ("/" in text)
    for name, model in models.items():
        found = problem.step(model)
        assert max(relative_errors(found, exact, problem.grad_out)) <= BOUNDS[dtype], name
        assert torch.equal(found[0], problem.forward(model))


@pytest.mark.parametrize("text", PROMPTS)
def test_every_competitor_of_prompt_attention_is_right(text: str) -> None:
    problem = Problem.make(bench.PromptShape.parse(text), torch.float64)
    for name in without_compiled("prompt_attention"):
        found = problem.step(problem.models([name])[name])
        assert max(relative_errors(found, problem.exact(), problem.grad_out)) <= 1e-12, name


def test_the_exact_result_of_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, shape in [("5,2,3,4,6", bench.AttentionShape), ("5,4,3,2,2", bench.PromptShape)]:
        problem = Problem.make(shape.parse(text), torch.float64)
        whole = problem.exact()
        monkeypatch.setattr("mhicl_fast.bench.problem._EXACT_LOGITS", 2 * problem.shape.logits)
        for part, all_at_once in zip(problem.exact(), whole, strict=True):
            torch.testing.assert_close(part, all_at_once, rtol=1e-13, atol=1e-13)
        monkeypatch.undo()


def test_relative_errors() -> None:
    exact, grad_out = [torch.tensor([3.0, 4.0]), torch.zeros(2)], torch.tensor([6.0, 8.0])
    assert relative_errors((torch.tensor([3.0, 4.5]), torch.tensor([0.0, 1.0])), exact, grad_out) == [0.1, 0.1]
    assert relative_errors((torch.zeros(3), torch.zeros(2)), exact, grad_out) == [float("inf"), 0]


def _scaled(query: Tensor, key: Tensor, value: Tensor, **_: bool) -> Tensor:
    return (query @ key.mT).softmax(-1) @ value  # forgets the scale


def _wrong_gradient(query: Tensor, key: Tensor, value: Tensor, **_: bool) -> Tensor:
    key = 2 * key - key.detach()
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def _failing(query: Tensor, key: Tensor, value: Tensor, **_: bool) -> Tensor:
    raise NotImplementedError("not on a Sunday\nmore of that")


def test_wrong_and_failing_competitors_are_not_timed() -> None:
    extra = {"scaled": _scaled, "half": _wrong_gradient, "failing": _failing}
    entries = bench.run(["3,2,5,6,7"], only=["eager", *extra], extra=extra, **FEW).results[0].entries
    assert list(entries) == ["mhicl_fast", "eager", *extra]
    assert set(entries["eager"].times) == {"forward", "backward", "both"}
    assert not {"forward", "both"} & set(entries["eager"].reasons)
    assert not entries["scaled"].times
    assert entries["scaled"].errors["output"] > 0.1
    assert entries["scaled"].reasons["both"].startswith("wrong result: relative error")
    assert set(entries["half"].times) == {"forward"}
    assert entries["half"].errors["output"] < 1e-6 < 0.1 < entries["half"].errors["gradient"]
    assert entries["failing"].reasons["forward"] == "NotImplementedError: not on a Sunday"
    assert not entries["failing"].errors


@pytest.mark.parametrize("text", SHAPES)
def test_functions_of_ones_own_are_called_as_sdpa(text: str) -> None:
    report = bench.run([text], only=["own"], extra={"own": torch.nn.functional.scaled_dot_product_attention}, **FEW)
    assert set(report.results[0].entries["own"].times) == {"forward", "backward", "both"}


def test_functions_of_ones_own_are_called_as_prompt_attention() -> None:
    extra = {"own": lambda context, query, kq, ov: mhicl_fast.prompt_attention(context, query, kq, ov)}
    report = bench.run(PROMPTS[:1], operator="prompt_attention", only=["own"], extra=extra, **FEW)
    assert set(report.results[0].entries["own"].times) == {"forward", "backward", "both"}


def test_unknown_options_are_told() -> None:
    with pytest.raises(TypeError, match=r"bench.run has no option 'second'; it has shapes, tell, operator, dtypes,"):
        bench.run(["2,2,3,4,5"], second=0.1)


def test_a_slow_forward_pass_is_not_the_backward_pass() -> None:
    def slow(query: Tensor, key: Tensor, value: Tensor, **_: bool) -> Tensor:
        time.sleep(0.05)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    times = bench.run(["2,2,3,4,5"], only=["slow"], extra={"slow": slow}, **FEW).results[0].entries["slow"].times
    assert times["backward"].low < 0.05 <= min(times["forward"].low, times["both"].low)


def test_a_wrong_result_of_ours_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = mhicl_fast.attention
    monkeypatch.setattr(mhicl_fast, "attention", lambda *tensors, **options: 1.001 * right(*tensors, **options))
    report = bench.run(["3,2,5,6,7"], only=["eager"], **FEW)
    assert not report.results[0].entries["mhicl_fast"].times
    assert report.summary() == {}


def test_why_a_competitor_does_not_run_is_told() -> None:
    entry = bench.run(["2,2,3,4,5,3"], only=["sdpa-flash"], **FEW).results[0].entries["sdpa-flash"]
    assert "same last dimension" in entry.reasons["forward"]


def test_a_nan_is_a_wrong_result() -> None:
    extra = {"nan": lambda query, key, value, **_: torch.nan * ((query @ key.mT) @ value)}
    entry = bench.run(["2,2,3,4,5"], only=["nan"], extra=extra, **FEW).results[0].entries["nan"]
    assert "wrong result: relative error nan" in entry.reasons["both"]


def test_quartiles() -> None:
    assert Timing.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Timing(3, 2, 4)


def test_calls_are_taken_in_turns_and_the_first_of_a_block_is_not_counted() -> None:
    log: list[str] = []

    def function(name: str) -> float:
        log.append(name)
        return time.perf_counter()

    calls = calls_in_turns({name: lambda name=name: function(name) for name in "ab"}, rounds=2, block=2)
    assert "".join(log) == "aaabbb" + "aaabbb" * 2
    assert all(len(made) == 4 for made in calls.values())
    assert all(call.start <= call.middle <= call.end for made in calls.values() for call in made)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operator": "attenton"}, "operator must be one of attention, prompt_attention; got 'attenton'"),
        ({"dtypes": ("float8",)}, "dtype must be one of float32"),
        ({"only": ["flash"]}, "competitor must be one of mhicl_fast, eager"),
        ({"extra": {"sdpa": _scaled}}, "extra must have names of its own, got 'sdpa', which is a built-in competitor"),
        ({"seconds": 0.0}, "seconds must be positive, got 0"),
        ({"rounds": 0}, "rounds must be positive, got 0"),
    ],
)
def test_bad_plans(settings: dict[str, object], message: str) -> None:
    with pytest.raises(bench.BenchInputError, match=message):
        Plan(**settings)


ALLOCATIONS = """
import ctypes, torch
from mhicl_fast.bench.memory import peak_beyond_resident as peak
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def scratch():
    block = ctypes.c_void_p(libc.malloc(5_000_000))
    ctypes.memset(block, 1, 5_000_000)
    libc.free(block)
def in_turn():
    for _ in range(4):
        torch.ones(2_000_000, dtype=torch.uint8)
print(peak(lambda: torch.ones(10_000_000, dtype=torch.uint8)), peak(scratch), peak(in_turn), peak(lambda: None))
"""


def test_the_peak_sees_tensors_and_scratch_of_c_and_not_what_was_freed() -> None:
    tensor, scratch, in_turn, nothing = map(int, in_fresh_process(ALLOCATIONS).split())
    near = 600_000
    assert abs(tensor - 10_000_000) < near
    assert abs(scratch - 5_000_000) < near
    assert abs(in_turn - 2_000_000) < near
    assert nothing < near


def test_the_peak_of_a_competitor_is_that_of_its_tensors() -> None:
    shape = bench.AttentionShape(40, 8, 8, 64, 64, 8, 8)
    logits, output = 40 * 8 * 64 * 64 * 4, 40 * 8 * 64 * 8 * 4
    peaks = peak_memory(shape, "float32", {"eager": ["forward", "both"], "sdpa-flash": ["forward"]})
    assert 2 * logits < peaks["eager"]["forward"] < 2 * logits + 2 * output + 1e6
    assert peaks["eager"]["both"] > peaks["eager"]["forward"]
    assert output - 6e5 < peaks["sdpa-flash"]["forward"] < output + 1e6


def test_a_process_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match="status 1: ValueError: no"):
        in_fresh_process("raise ValueError('no')")


def test_names_are_told_in_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "bench.md").read_text()
    assert all(f"`{name}`" in page for names in NAMES.values() for name in names)


class TestOnGpus:
    """The parts that need no GPU."""

    def test_a_gpu_that_is_not_there_is_told(self) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(BenchInputError, match=r"device=cuda: .*; or choose cpu"):
            Plan(device="cuda")

    def test_roofs_are_measured_and_published(self) -> None:
        measured = device_roofs(torch.float64, torch.device("cpu"), size=64, repeats=2)
        assert measured.peak > 0
        assert measured.bandwidth > 0
        assert H100.roofs("bfloat16") == H100.roofs("float32") == (66.9e12, 3.35e12)
        assert H100.roofs("float64").peak == 33.5e12
        for gpu in {*PUBLISHED.values()}:  # lanes times 2 operations times the clock are the peak of the data sheet
            assert gpu.multiprocessors * gpu.float_lanes * 2 * gpu.clock == pytest.approx(gpu.float32, rel=0.15)

    def test_a_clock_prepares_each_counted_call_and_tells_when_it_is_over(self) -> None:
        class Counting(HostClock):
            prepared, seen = 0, 0

            def prepare(self) -> None:
                self.prepared += 1

            def seconds(self, moments: list) -> list:
                self.seen += len(moments)
                return super().seconds(moments)

        clock = Counting()
        calls = calls_in_turns({"f": clock.now}, rounds=2, block=3, clock=clock)
        assert len(calls["f"]) == clock.prepared == 6
        assert clock.seen == 7  # and one of the warm-up's

    def test_a_device_s_clock_asks_that_device_whichever_is_current(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, stream: str) -> None:
                asked.append(stream)

            def elapsed_time(self, later: object) -> float:
                return 2.0

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: asked.append(f"wait for {device}"))
        clock = DeviceClock(torch.device("cuda", 1))
        start, end = clock.now(), clock.now()
        assert clock.seconds([(start, end, end)]) == [(0.0, 2e-3, 2e-3)]
        assert asked == ["stream of cuda:1", "stream of cuda:1", "wait for cuda:1"]
