"""Estimators of sparse coefficients: the preprocess-then-optimise algorithm, as a transformer too, and others.

All take N prompts at once and return coefficients (N, d), whose `excess_risk` is exact.
"""

from .algorithm import gradient_descent, preprocess, preprocessed_descent, step_sizes
from .baselines import bayes_penalty, excess_risk, minimum_norm, ridge, support_least_squares, usual_lasso_penalty
from .construction import build_transformer, step_gains
from .lasso import lasso
from .spectrum import PreprocessedSpectrum, RawSpectrum

__all__ = [
    "PreprocessedSpectrum",
    "RawSpectrum",
    "bayes_penalty",
    "build_transformer",
    "excess_risk",
    "gradient_descent",
    "lasso",
    "minimum_norm",
    "preprocess",
    "preprocessed_descent",
    "ridge",
    "step_gains",
    "step_sizes",
    "support_least_squares",
    "usual_lasso_penalty",
]
