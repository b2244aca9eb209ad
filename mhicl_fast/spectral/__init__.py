"""The spectral picture of gradient flow: losses, ODEs, phases, predictions and theory in semi-singular values."""

from __future__ import annotations

from ._inputs import ShortContextWarning
from .allocation import Allocation, predict_allocation
from .asymptotic import asymptotic_loss
from .atoms import Partition, atoms, supports_overlap
from .bayes import BayesRisk, bayes_risk
from .compare import OdeDistance, ode_distance
from .diagonal import SemiSingularValues, diagonal
from .flow import Factors
from .loss import spectral_gradient, spectral_loss
from .ode import State, Trajectory, solve
from .phases import (
    Escape,
    Phases,
    Plateau,
    half_learnt,
    head_shares,
    observed_allocation,
    phases,
    plateau_and_escape,
    shares,
)
from .theory import PredictedState, Theory, theory

__all__ = [
    "Allocation",
    "BayesRisk",
    "Escape",
    "Factors",
    "OdeDistance",
    "Partition",
    "Phases",
    "Plateau",
    "PredictedState",
    "SemiSingularValues",
    "ShortContextWarning",
    "State",
    "Theory",
    "Trajectory",
    "asymptotic_loss",
    "atoms",
    "bayes_risk",
    "diagonal",
    "half_learnt",
    "head_shares",
    "observed_allocation",
    "ode_distance",
    "phases",
    "plateau_and_escape",
    "predict_allocation",
    "shares",
    "solve",
    "spectral_gradient",
    "spectral_loss",
    "supports_overlap",
    "theory",
]
