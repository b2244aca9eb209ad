"""What the page says about a solution: a headline, cautions, key numbers, winners, the call that reproduces it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..train.wording import STATES, count, number
from .scenario import Scenario
from .solution import RTOL, Solution

_LONG_STAY = 2.0  # end of a plateau relative to its start beyond which the loss does not just pass by
_SAME = 0.02  # relative difference of losses that are called the same
_LARGE_START = 0.05  # share learnt at the start beyond which predictions for small starts are doubtful
LEADING = " *"  # after the names of theory's losses that are of the leading order where the flow is of the first


class Number(NamedTuple):
    """A key number with its name, and a remark in small print."""

    name: str
    value: str
    remark: str = ""


class Winner(NamedTuple):
    """A task's predicted and observed head and time; heads are indices, -1 where there is none to name."""

    task: int
    predicted_head: int
    predicted_time: str
    head: int
    time: str
    final_heads: tuple[int, ...]


def headline(solution: Solution) -> str:
    """Who serves what, and where the loss ends."""
    return f"{_who(solution)} {_how_it_ends(solution)}"


def _who(solution: Solution) -> str:
    learnt = solution.phases.learnt
    if not learnt.any():
        return f"No task is learnt by t = {number(solution.trajectory.t[-1], 3)}."
    if not learnt.all():
        return f"{_tasks(np.flatnonzero(~learnt).tolist())} never learnt."
    roles = solution.roles
    several = [i for i, heads in enumerate(roles.serving) if len(heads) > 1]
    if several:
        pairs = ", ".join(f"{h} and {g}" for h, g in roles.pairs)
        pairs = f", in ± pairs: {pairs}" if pairs else ""
        everyone = len(several) == len(roles.serving) > 1
        subject = "Every task" if everyone else _list("task", several).capitalize()
        return f"{subject} {'end' if len(several) > 1 and not everyone else 'ends'} with several heads{pairs}."
    if roles.shared:
        shared = "; ".join(f"head {head} serves {_list('task', tasks)}" for head, tasks in roles.shared.items())
        return f"Heads are shared: {shared}."
    if len(roles.winner) == 1:
        return f"Head {roles.winner[0]} takes the task."
    return "Each task is taken by a head of its own."


def _how_it_ends(solution: Solution) -> str:
    loss, reference = float(solution.trajectory.loss[-1]), solution.reference.loss
    if solution.escape is not None:
        stay = solution.plateau
        verb = "rests" if stay is not None and stay.end > _LONG_STAY * stay.start else "slows down"
        return (
            f"The loss {verb} near {_reference_name(solution)}, {number(reference, 3)}, then escapes "
            f"at t = {number(solution.escape.time, 3)}: heads of opposite sign cancel each other's bias, and it comes "
            f"down to {number(loss, 3)}."
        )
    verb = "settles at" if solution.settled else "comes to"
    if abs(loss / reference - 1) < _SAME:
        return f"The loss {verb} {number(loss, 3)}, {_reference_name(solution)}."
    side = "above" if loss > reference else "below"
    return f"The loss {verb} {number(loss, 3)}, {side} the {number(reference, 3)} of {_reference_name(solution)}."


def _reference_name(solution: Solution) -> str:
    scenario = solution.scenario
    if scenario.n_heads >= scenario.n_tasks:
        return "the limit with one head per task" if scenario.n_tasks > 1 else "the limit with one head"
    return "the best single head" if scenario.n_heads == 1 else "the best state with shared heads"


def cautions(solution: Solution) -> list[str]:
    """What a reader must know before believing the picture."""
    scenario, trajectory, found = solution.scenario, solution.trajectory, []
    found += [f"{note.rstrip('.')}." for note in solution.notes]
    if scenario.n_heads < scenario.n_tasks:
        heads, tasks = count(scenario.n_heads, "head"), count(scenario.n_tasks, "task")
        found.append(f"There are fewer heads than tasks ({heads}, {tasks}): heads must be shared, at a cost.")
    elif solution.roles.shared and solution.escape is None:
        cost = number(solution.roles.cost, 2)
        found.append(f"Several tasks favour one head although there are heads enough; sharing costs {cost} in loss.")
    if trajectory.shares()[0].max() > _LARGE_START:
        found.append("The start is not small: the predictions, which are for small starts, may be far off.")
    elif wrong := _wrong_winners(solution):
        found.append(f"{_tasks(wrong)} taken by another head than predicted.")
    if (solution.predicted.head < 0).any() and scenario.flow != "combined":
        found.append("Heads that start equal tie for a task: no winner is predicted.")
    if solution.parted is not None:
        found.append(
            f"Heads that start equal stay so in exact arithmetic; from t ≈ {number(solution.parted, 2)} on rounding "
            "alone tells them apart. That they part then rather than later is chance."
        )
    if trajectory.loss.min() <= 0:
        found.append("The loss falls below zero, which no loss can: the expansion in 1/L has broken down.")
    if not solution.settled:
        found.append(f"The loss still moves at t = {number(trajectory.t[-1], 2)}, where the integration ends.")
    return found


def _wrong_winners(solution: Solution) -> list[int]:
    predicted, observed = solution.predicted.head, solution.observed.head
    return [i for i, (p, o) in enumerate(zip(predicted, observed)) if p >= 0 and o >= 0 and p != o]


def key_numbers(solution: Solution) -> list[Number]:
    """The loss at the end and relative to what could be reached, phases, plateau and escape."""
    trajectory, theory, phases = solution.trajectory, solution.theory, solution.phases
    noise = solution.scenario.noise_std**2 * solution.scenario.n_tasks
    excess = float(trajectory.loss[-1]) - noise
    shown = [Number("final loss", number(trajectory.loss[-1], 4), f"{number(excess, 3)} above σ²I" if noise else "")]
    for label, state in (("best multi-head", theory.best_multi_head), ("Bayes", theory.bayes)):
        if state is not None and state.excess > 0:
            shown.append(Number(f"over {label}", f"{number(excess / state.excess, 3)} ×", "ratio of excess losses"))
    shown.append(Number("warm-up ends", _time(phases.warmup_end), "first task at 5 % of its share"))
    shown.append(Number("emergence ends", _time(phases.emergence_end), "last task at 95 %"))
    if solution.plateau is not None and solution.escape is not None:
        stay = f"{_time(solution.plateau.start)} – {_time(solution.plateau.end)}"
        shown.append(Number("plateau", stay, f"at {number(solution.plateau.loss, 3)}"))
        shown.append(Number("escape", _time(solution.escape.time), "20 % below the plateau"))
    return shown


def winners(solution: Solution) -> list[Winner]:
    """Predicted against observed, for each task."""
    predicted, observed = solution.predicted, solution.observed
    return [
        Winner(
            i,
            int(predicted.head[i]),
            _time(predicted.time[i]),
            int(observed.head[i]),
            _time(observed.time[i]),
            tuple(solution.roles.serving[i]),
        )
        for i in range(solution.scenario.n_tasks)
    ]


def theory_lines(solution: Solution) -> dict[str, tuple[str, float]]:
    """Label and loss of theory's states to compare with, by name; at the flow's order where it is known at that."""
    theory, first_order = solution.theory, solution.scenario.order == "first"
    lines = {}
    for name in ("one_head_per_task", "best_shared_heads", "single_head", "best_multi_head", "bayes"):
        state, label = getattr(theory, name), STATES[name].partition(",")[0]
        if name == "single_head" and solution.scenario.n_tasks == 1:
            continue
        if first_order and (at_first := getattr(theory, f"{name}_first_order", None)) is not None:
            state = at_first
        elif first_order and name != "bayes":
            label += LEADING
        if state is not None:
            lines[name] = (label, state.loss)
    return lines


def starred(solution: Solution) -> bool:
    """Whether some of theory's losses are of another order than the flow."""
    return any(label.endswith(LEADING) for label, _ in theory_lines(solution).values())


def code(solution: Solution) -> str:
    """Python that solves the same flow again."""
    scenario = solution.scenario
    if scenario.flow != "unbalanced":
        scenario = replace(scenario, imbalance=Scenario.imbalance)
    return f"""\
from mhicl_fast.explore import Scenario
from mhicl_fast.spectral import solve

scenario = {scenario!r}
trajectory = solve(
    scenario.task(), *scenario.start_arguments(),
    parameters={scenario.parameters!r}, order={scenario.order!r},
    t_end={float(solution.trajectory.t[-1])!r}, rtol={RTOL!r},
)
print(trajectory.loss[-1], trajectory.phases())
"""


def _time(time: float) -> str:
    return "never" if not np.isfinite(time) else number(float(time), 3)


def _tasks(tasks: Sequence[int]) -> str:
    return f"{_list('task', tasks).capitalize()} {'is' if len(tasks) == 1 else 'are'}"


def _list(thing: str, entries: Sequence[int]) -> str:
    """As in task 0, tasks 0 and 2, tasks 0, 1 and 2."""
    names = [str(int(entry)) for entry in entries]
    if len(names) == 1:
        return f"{thing} {names[0]}"
    return f"{thing}s {', '.join(names[:-1])} and {names[-1]}"
