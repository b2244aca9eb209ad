"""Measures shape after shape: the results are checked first, then times are taken in turns, then memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch

from .._version import __version__
from ..devices import NAMED, DeviceError, named_device
from ..train.machine import machine
from .competitors import ON_GPUS
from .errors import BenchInputError
from .gpus import PUBLISHED, gpu_facts
from .memory import peak_memory, peak_on_gpu
from .problem import COMPILED, DTYPES, NAMES, Model, Problem, relative_errors
from .results import NOT_ASKED, OURS, Entry, Report, ShapeResult
from .roofs import Roofs, device_roofs, fma_peak, read_bandwidth
from .shapes import Shape, default_shapes, read_shapes
from .timing import HOST, DeviceClock, HostClock, Timing, calls_in_turns

# The largest relative errors that a right result may have.
BOUNDS = {"float64": 1e-11, "float32": 2e-5, "float16": 1e-2, "bfloat16": 5e-2}


def _silent(_: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Plan:
    """What is measured of every shape, checked when made: BenchInputError says what is wrong.

    operator: "attention" or "prompt_attention".
    dtypes: names out of "float32", "float64", "bfloat16", "float16".
    only: names of competitors, built-in or extra; None for all. mhicl_fast is always measured.
    seconds: of timing per competitor and pass.
    rounds: of turns, whatever time they take, in place of `seconds`.
    memory: whether peak memory is measured; on the CPU in another process (Linux), where `extra` functions are not.
    device: "cpu", or a GPU as "cuda" or "cuda:1". There times are by events, inputs are warm in the level-2 cache as
        far as they fit, and times with a cold one are taken beside them.
    extra: functions of one's own by name. For attention they are called as f(query, key, value, is_causal=...,
        enable_gqa=...) with (B, Hq, Lq, E), (B, Hk, L, E) and (B, Hk, L, Ev), and return (B, Hq, Lq, Ev), so that
        `torch.nn.functional.scaled_dot_product_attention` is one; enable_gqa says whether Hk differs from Hq. For
        prompt_attention they are called as f(context, query, kq, ov), as `mhicl_fast.prompt_attention`.
    """

    operator: str = "attention"
    dtypes: tuple[str, ...] = ("float32",)
    only: Collection[str] | None = None
    seconds: float = 1.0
    rounds: int | None = None
    memory: bool = True
    extra: Mapping[str, Model] | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        _one_of("operator", self.operator, NAMES)
        if not NAMED.fullmatch(self.device):
            raise BenchInputError(f"device must be cpu, cuda, or cuda with a number as cuda:1; got {self.device!r}")
        try:
            self.place()
        except DeviceError as error:
            raise BenchInputError(f"{error}; or choose cpu") from error
        for dtype in self.dtypes:
            _one_of("dtype", dtype, DTYPES)
        for name in self.extra or ():
            if name in NAMES[self.operator]:
                raise BenchInputError(f"extra must have names of its own, got {name!r}, which is a built-in competitor")
        for name in self.only or ():
            _one_of("competitor", name, [*NAMES[self.operator], *(self.extra or ())])
            if name in ON_GPUS and self.device == "cpu":
                raise BenchInputError(f"{name} runs on GPUs alone; got device='cpu'")
        if not self.seconds > 0:
            raise BenchInputError(f"seconds must be positive, got {self.seconds}")
        if self.rounds is not None and self.rounds < 1:
            raise BenchInputError(f"rounds must be positive, got {self.rounds}")

    def place(self) -> torch.device:
        """The device."""
        return named_device(self.device, self.operator)

    def settings(self) -> dict[str, Any]:
        """What a report says about it."""
        return {
            "operator": self.operator,
            "device": self.device,
            "seconds": self.seconds,
            "rounds": self.rounds,
            "only": None if self.only is None else sorted(self.only),
        }

    def models(self, problem: Problem) -> dict[str, Model]:
        """The chosen functions by name, ours first."""
        wanted = NAMES[self.operator] if self.only is None else {OURS, *self.only}
        extra = {name: model for name, model in (self.extra or {}).items() if self.only is None or name in wanted}
        return problem.models(wanted) | {name: problem.fitted(model) for name, model in extra.items()}


def without_compiled(operator: str, device: str = "cpu") -> list[str]:
    """The competitors on a device that need no compiler."""
    absent = {*COMPILED[operator], *(ON_GPUS if device == "cpu" else ())}
    return [name for name in NAMES[operator] if name not in absent]


def run(shapes: Iterable[str | Shape] | None = None, *, tell: Callable[[str], None] = _silent, **plan: Any) -> Report:
    """Measure mhicl_fast and its competitors, at each shape and dtype.

    Takes seconds per shape and competitor, and compiles some of them. A competitor that fails or gives a wrong result,
    ours too, is in the report with the reason and without times.

    Args:
        shapes: texts as `mhicl bench --shapes` takes, or shapes; None for the default ones.
        tell: hears what is being done.
        plan: options, which are the fields of `Plan`: operator="attention", dtypes=("float32",), only=None,
            seconds=1.0, rounds=None, memory=True, extra=None, device="cpu". Functions of `extra` are called as
            f(query, key, value, is_causal=..., enable_gqa=...), or f(context, query, kq, ov) for prompt_attention.

    Raises:
        BenchInputError: (a ValueError) a shape or setting that cannot be, before anything runs.
        TypeError: an option that `Plan` does not have.
    """
    known = [field.name for field in fields(Plan)]
    for name in plan:
        if name not in known:
            raise TypeError(f"bench.run has no option {name!r}; it has shapes, tell, {', '.join(known)}")
    chosen = Plan(**plan)
    listed = as_shapes(chosen.operator, shapes)
    report = begin(chosen, tell)
    report.results.extend(measure(chosen, listed, tell))
    return report


def as_shapes(operator: str, shapes: Iterable[str | Shape] | None) -> list[Shape]:
    """Shapes of the operator from texts and shapes; the default ones for None."""
    if shapes is None:
        return default_shapes(operator)
    found: list[Shape] = []
    for shape in shapes:
        found += [shape] if isinstance(shape, Shape) else read_shapes(operator, [shape])
    for shape in found:
        if shape.operator != operator:
            raise BenchInputError(f"shapes must be of {operator}, got {shape!r}")
    return found


def begin(plan: Plan, tell: Callable[[str], None] = _silent) -> Report:
    """A report without results: the machine and its roofs, measured now."""
    tell("measuring the roofs")
    device = plan.place()
    if device.type == "cpu":
        bandwidth = read_bandwidth()
        roofs = {dtype: Roofs(fma_peak(DTYPES[dtype]), bandwidth) for dtype in plan.dtypes}
        return Report(_facts(device), plan.settings(), roofs, [])
    roofs = {dtype: device_roofs(DTYPES[dtype], device) for dtype in plan.dtypes}
    known = PUBLISHED.get(torch.cuda.get_device_name(device))
    published = {dtype: known.roofs(dtype) for dtype in plan.dtypes} if known else {}
    return Report(_facts(device), plan.settings(), roofs, [], published)


def _facts(device: torch.device) -> dict[str, str]:
    """Machine, versions and date, in words."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    facts = machine() | {"mhicl_fast": __version__, "torch": torch.__version__, "date": now}
    return facts if device.type == "cpu" else facts | gpu_facts(device)


def measure(plan: Plan, shapes: Iterable[Shape], tell: Callable[[str], None] = _silent) -> Iterator[ShapeResult]:
    """The results, one after another."""
    for shape in shapes:
        for dtype in plan.dtypes:
            yield _measure_one(plan, shape, dtype, lambda what, at=f"{shape} {dtype}": tell(f"{at}: {what}"))  # type: ignore[misc]


def _measure_one(plan: Plan, shape: Shape, dtype: str, tell: Callable[[str], None]) -> ShapeResult:
    problem = Problem.make(shape, DTYPES[dtype], device=plan.place())
    models = plan.models(problem)
    if set(COMPILED[plan.operator]) & set(models):
        torch._dynamo.reset()  # or it would give up after a few shapes
    tell("the exact result")
    exact = problem.exact()
    entries = {}
    for name, model in models.items():
        tell(f"checking {name}")
        entries[name] = _check(problem, model, exact, BOUNDS[dtype])
    tell("timing")
    warm, cold = clocks(plan.place())
    times = _times(plan, problem, models, entries, warm)
    times_cold = _times(plan, problem, models, entries, cold) if cold else {}
    memory, why = _memory(plan, problem, dtype, models, entries, tell)
    return ShapeResult(
        shape,
        dtype,
        {
            name: Entry(
                times[name],
                entry.errors,
                memory.get(name, {}),
                entry.reasons if name in memory else {**entry.reasons, "memory": why},
                times_cold.get(name, {}),
            )
            for name, entry in entries.items()
        },
    )


def _check(problem: Problem, model: Model, exact: list[torch.Tensor], bound: float) -> Entry:
    """An entry with the errors, and the reasons why passes are not to be timed."""
    reasons: dict[str, str] = {}
    errors: dict[str, float] = {}
    attempts: dict[str, Callable[[], tuple[torch.Tensor, ...]]] = {
        "forward": lambda: (problem.forward(model),),
        "both": lambda: problem.step(model),
    }
    for part, attempt in attempts.items():
        found, reason = _attempt(attempt)
        if found is None:
            reasons[part] = reason
            continue
        relative = relative_errors(found, exact[: len(found)], problem.grad_out)
        errors |= {"output": relative[0]} | ({"gradient": max(relative[1:])} if relative[1:] else {})
        if not max(relative) <= bound:
            reasons[part] = f"wrong result: relative error {max(relative):.1e}, at most {bound:.0e} is due"
    return Entry({}, errors, {}, reasons)


def _attempt(call: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[tuple[torch.Tensor, ...] | None, str]:
    """What a call gives, or None and why it fails: any library's error is a finding here, with what it warned of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            return call(), ""
        except Exception as error:
            lines = [str(error).strip().partition("\n")[0] or "no message"]
            lines += [str(warning.message).partition(" (Triggered")[0] for warning in warned[-1:]]
            return None, f"{type(error).__name__}: " + " ".join(lines)


def clocks(device: torch.device) -> tuple[HostClock, HostClock | None]:
    """The clock of a device, and the one whose calls find a cold cache where there is such a thing."""
    if device.type == "cpu":
        return HOST, None
    return DeviceClock(device), DeviceClock(device, cold=True)


def _times(
    plan: Plan, problem: Problem, models: Mapping[str, Model], entries: Mapping[str, Entry], clock: HostClock
) -> dict[str, dict[str, Timing]]:
    """By competitor and pass, all of them in turns."""
    leaves = problem.leaves()
    functions: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, model in models.items():
        if "forward" not in entries[name].reasons:
            functions[name, "forward"] = partial(problem.timed_forward, model, clock)
        if "both" not in entries[name].reasons:
            functions[name, "both"] = partial(problem.timed_step, model, leaves, clock)
    times: dict[str, dict[str, Timing]] = {name: {} for name in models}
    made = calls_in_turns(functions, rounds=plan.rounds, seconds=plan.seconds, clock=clock)
    for (name, part), calls in made.items():
        times[name][part] = Timing.of([call.end - call.start for call in calls])
        if part == "both":
            times[name]["backward"] = Timing.of([call.end - call.middle for call in calls])
    return times


def _memory(
    plan: Plan,
    problem: Problem,
    dtype: str,
    models: Mapping[str, Model],
    entries: Mapping[str, Entry],
    tell: Callable[[str], None],
) -> tuple[dict[str, dict[str, int]], str]:
    """Peak bytes by competitor and pass, and why the others have none."""
    if not plan.memory:
        return {}, NOT_ASKED
    tell("peak memory")
    wanted = {
        name: [part for part in ("forward", "both") if part not in entry.reasons] for name, entry in entries.items()
    }
    device = plan.place()
    if device.type != "cpu":
        calls = {"forward": problem.forward, "both": problem.step}
        return {
            name: {part: peak_on_gpu(partial(calls[part], models[name]), device) for part in parts}
            for name, parts in wanted.items()
        }, ""
    here = {name: parts for name, parts in wanted.items() if name not in (plan.extra or {})}
    try:
        return peak_memory(problem.shape, dtype, here), "a function of the caller's process"
    except (OSError, RuntimeError) as error:
        return {}, str(error)


def _one_of(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise BenchInputError(f"{what} must be one of {', '.join(known)}; got {name!r}")
