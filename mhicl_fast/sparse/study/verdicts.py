"""How the study's claims are judged, by one rule for all.

A claim is a list of tests for each seed: that a measured number is above, or below, a bound. A test holds where it does
by more than MARGIN standard errors, fails where the number is as far on the other side, and is undecided between. For a
seed a claim is true where all of its tests hold, and false where one fails; over the seeds it is true or false where
all seeds say so, and undecided where they disagree or one of them is undecided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

MARGIN = 2.0  # standard errors, of the prompts
TRUE, FALSE, UNDECIDED = "true", "false", "undecided"


@dataclass(frozen=True)
class Check:
    """That a number, with its standard error, is above or below a bound. Tests that are not judged are only shown."""

    what: str
    value: float
    se: float
    bound: float
    above: bool = True
    judged: bool = True

    @property
    def holds(self) -> str:
        """TRUE, FALSE or UNDECIDED, the last for NaN too."""
        distance = (self.value - self.bound) * (1 if self.above else -1)
        if abs(distance) > MARGIN * self.se:
            return TRUE if distance > 0 else FALSE
        return UNDECIDED

    def to_dict(self) -> dict[str, Any]:
        """The test with its outcome, as JSON can hold it: what is not a number is null."""
        plain = {key: None if value != value else value for key, value in asdict(self).items()}
        return {**plain, "holds": self.holds}


class Claim(NamedTuple):
    """What is claimed, how it is judged in words, and the tests of a seed, none where it was not measured."""

    claim: str
    rule: str
    checks: Callable[[Any, int], Sequence[Check]]


def judge(claim: Claim, study: Any, seeds: Sequence[int]) -> dict[str, Any]:
    """The record of a claim: what it says, whether it `holds`, the evidence for each seed, and the rule."""
    evidence = {seed: list(claim.checks(study, seed)) for seed in seeds}
    return {
        "claim": claim.claim,
        "holds": over_seeds(evidence),
        "rule": claim.rule,
        "evidence": [{"seed": seed, **test.to_dict()} for seed, tests in evidence.items() for test in tests],
    }


def over_seeds(evidence: Mapping[int, Sequence[Check]]) -> str:
    """What the seeds say together."""
    found = {_of_seed(tests) for tests in evidence.values()}
    return found.pop() if len(found) == 1 else UNDECIDED


def _of_seed(tests: Sequence[Check]) -> str:
    outcomes = [test.holds for test in tests if test.judged]
    if FALSE in outcomes:
        return FALSE
    return TRUE if outcomes and all(outcome == TRUE for outcome in outcomes) else UNDECIDED


def difference(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """first − second with a standard error as of independent prompts: too large where they are the same."""
    return first[0] - second[0], math.hypot(first[1], second[1])
