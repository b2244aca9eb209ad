"""What the heads do, told in words; the same for the page and for the printed table."""

from __future__ import annotations

from collections.abc import Iterable

from ..spectral.roles import HeadRoles
from ..train.wording import number


def roles_told(roles: HeadRoles) -> list[tuple[str, str]]:
    """(what, finding) for everything that `HeadRoles` looks for, also where it found none."""
    return [
        ("shared heads", _each(f"head {h} won {told_tasks(tasks)}" for h, tasks in roles.shared.items())),
        ("superposition", _each(f"head {h} serves {told_tasks(tasks)}" for h, tasks in roles.superposed.items())),
        ("± pairs", _each(f"heads {one} and {other}" for one, other in roles.pairs)),
        ("zero-sum outputs", told_tasks(roles.zero_sum) if roles.zero_sum else "none"),
        ("heads without use", _heads(roles.unused) if roles.unused else "none"),
        ("cost", _cost(roles)),
    ]


MEANINGS = {
    "shared heads": "heads that took several tasks: these divide one head's attention",
    "superposition": "heads with a material part (5 % or more) of several tasks",
    "± pairs": "two heads with opposite μ and opposite ω (within 10 %): their parts are equal, and what they add to "
    "the prediction besides cancels",
    "zero-sum outputs": "tasks served by several heads whose μ sum to nearly nothing (10 % of their sizes or less)",
    "heads without use": "without such a head the leading-order loss rises by at most 1 % of the excess",
    "cost": "leading-order loss of these values above that of one head per task, if there were heads enough",
}


def _each(findings: Iterable[str]) -> str:
    return "; ".join(findings) or "none"


def told_tasks(tasks: list[int]) -> str:
    """As in task 1, tasks 0, 2."""
    return ("task " if len(tasks) == 1 else "tasks ") + ", ".join(map(str, tasks))


def _heads(heads: list[int]) -> str:
    return ("head " if len(heads) == 1 else "heads ") + ", ".join(map(str, heads))


def _cost(roles: HeadRoles) -> str:
    if roles.cost < 0:
        cost = f"{number(-roles.cost)} better: heads together do more than one head per task could"
    else:
        cost = number(roles.cost)
    if roles.expected_cost is not None and roles.shared:
        cost += f" (in theory {number(roles.expected_cost)} for heads shared in this way)"
    return cost
