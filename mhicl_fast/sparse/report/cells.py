"""Numbers of several seeds as a cell of a table has them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ...train.wording import number, uncertain
from ..analysis.statistics import Estimate

CAPTION = "± is one standard error, over prompts or over seeds, whichever is greater."
_NOTHING = 5e-5  # a number below is written as 0
_UNSEEN = 1e-6  # an error below this share of its number is left out


def over_seeds(estimates: Iterable[Estimate]) -> str:
    """The mean of scalars over seeds, with its standard error over prompts, or over the seeds where that is greater:
    of two seeds it is half their difference, which may be small by chance."""
    each = list(estimates)
    values = np.array([float(estimate.value) for estimate in each])
    errors = [math.hypot(*(float(estimate.se) for estimate in each)) / len(each)]
    if len(values) > 1:
        errors.append(float(values.std(ddof=1)) / math.sqrt(len(values)))
    return measured(float(values.mean()), max(errors))


def measured(value: float, error: float) -> str:
    """A number with its standard error where that can be seen."""
    if math.isnan(value):
        return "–"
    if max(abs(value), error) < _NOTHING:
        return "0"
    return number(value) if error < _UNSEEN * abs(value) else uncertain(value, error)
