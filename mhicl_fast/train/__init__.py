"""Training: estimates of the loss, parameters, update rules, and runs in folders that survive being killed."""

from .config import RunConfig
from .hessian import HessianOperator, HessianProduct, hessian, hessian_vector_product
from .lengths import LengthCurve, measure_lengths
from .loaded import LoadedRun, load_run
from .loop import follow, resume, run
from .matrix.flow import FlowProgress, MatrixFlowError, matrix_flow
from .matrix.stability import GrowthRates, MatrixStability, matrix_stability
from .matrix.trajectory import MatrixTrajectory, SpectralPath
from .objective import Evaluation, LossAndGradients, Objective, evaluate, population_loss
from .optimisers import Adam, AdamW, GradientFlow, MomentumSGD
from .parameters import Combined, Factored, pull_back
from .precision import ChosenPrompts, GradientNoise, Noise, gradient_noise, prompts_for_error
from .settings import ConfigError
from .starts import balanced_decomposable, initial_parameters

__all__ = [
    "Adam",
    "AdamW",
    "ChosenPrompts",
    "Combined",
    "ConfigError",
    "Evaluation",
    "Factored",
    "FlowProgress",
    "GradientFlow",
    "GradientNoise",
    "GrowthRates",
    "HessianOperator",
    "HessianProduct",
    "LengthCurve",
    "LoadedRun",
    "LossAndGradients",
    "MatrixFlowError",
    "MatrixStability",
    "MatrixTrajectory",
    "MomentumSGD",
    "Noise",
    "Objective",
    "RunConfig",
    "SpectralPath",
    "balanced_decomposable",
    "evaluate",
    "follow",
    "gradient_noise",
    "hessian",
    "hessian_vector_product",
    "initial_parameters",
    "load_run",
    "matrix_flow",
    "matrix_stability",
    "measure_lengths",
    "population_loss",
    "prompts_for_error",
    "pull_back",
    "resume",
    "run",
]
