"""Training: estimates of the loss, parameters, update rules, and runs in folders that survive being killed."""

from .config import ConfigError, RunConfig
from .loaded import LoadedRun, load_run
from .loop import resume, run
from .objective import Evaluation, LossAndGradients, Objective, evaluate, population_loss
from .optimisers import Adam, GradientFlow, MomentumSGD
from .parameters import Combined, Factored
from .starts import initial_parameters

__all__ = [
    "Adam",
    "Combined",
    "ConfigError",
    "Evaluation",
    "Factored",
    "GradientFlow",
    "LoadedRun",
    "LossAndGradients",
    "MomentumSGD",
    "Objective",
    "RunConfig",
    "evaluate",
    "initial_parameters",
    "load_run",
    "population_loss",
    "resume",
    "run",
]
