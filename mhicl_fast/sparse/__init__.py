"""How a multi-layer, multi-head transformer solves sparse linear regression in context."""

from .config import SparseConfig
from .estimators.algorithm import gradient_descent, preprocess, preprocessed_descent
from .estimators.construction import build_transformer, step_gains
from .evaluate import Gradients, Risk, excess_risk, loss_and_gradients, measure_risk, predict
from .loaded import SparseRun, load_run
from .model import Transformer, uniform_layers
from .presets import PRESETS, preset
from .training import begin, resume, train

__all__ = [
    "PRESETS",
    "Gradients",
    "Risk",
    "SparseConfig",
    "SparseRun",
    "Transformer",
    "begin",
    "build_transformer",
    "excess_risk",
    "gradient_descent",
    "load_run",
    "loss_and_gradients",
    "measure_risk",
    "predict",
    "preprocess",
    "preprocessed_descent",
    "preset",
    "resume",
    "step_gains",
    "train",
    "uniform_layers",
]
