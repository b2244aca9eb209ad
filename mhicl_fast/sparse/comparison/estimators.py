"""The estimators that are compared, by name."""

from __future__ import annotations

from typing import NamedTuple


class Estimator(NamedTuple):
    """What was measured: a method, the number of its gradient steps, and how its step size or penalty was chosen."""

    method: str  # "algorithm", "descent", "ridge", "minimum norm", "lasso", "support", "zero"
    choice: str = ""  # "c = 1", "best c", "best constant η", "Bayes", "best", "usual"
    steps: int | None = None
    heads: int | None = None  # of the algorithm's first layer where it has fewer than covariates

    @property
    def label(self) -> str:
        """As tables and legends have it, without the number of steps."""
        return f"{_NAMES[self.method]}, {self.choice}" if self.choice else _NAMES[self.method]


_NAMES = {
    "algorithm": "algorithm",
    "descent": "gradient descent",
    "ridge": "ridge",
    "minimum norm": "least squares",
    "lasso": "Lasso",
    "support": "least squares on the true support",
    "zero": "predicting 0",
}
RIDGE, BEST_RIDGE = Estimator("ridge", "Bayes"), Estimator("ridge", "best")
LASSO, BEST_LASSO = Estimator("lasso", "usual"), Estimator("lasso", "best")
MINIMUM_NORM, SUPPORT, ZERO = Estimator("minimum norm"), Estimator("support"), Estimator("zero")
CONSTANT = "best constant η"


def algorithm(steps: int, choice: str = "c = 1", heads: int | None = None) -> Estimator:
    """The algorithm after so many steps: with c = 1, the best c, or the best constant η; with as many heads as
    covariates, or with `heads` blocks of them."""
    return Estimator("algorithm", choice, steps, heads)


def descent(steps: int, choice: str = "best c") -> Estimator:
    """Gradient descent after so many steps: with c = 1 or the best c."""
    return Estimator("descent", choice, steps)
