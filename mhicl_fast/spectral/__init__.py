"""The spectral picture of gradient flow: losses, ODEs, phases, predictions and theory in semi-singular values."""

from __future__ import annotations

from ._inputs import ShortContextWarning
from .allocation import Allocation, predict_allocation
from .asymptotic import DomainError, asymptotic_loss, exponential_loss
from .atoms import Partition, atoms, supports_overlap
from .attention import AttentionSpread, effective_examples, effective_examples_of_weights
from .basis.decompose import Bases, Decomposition, decompose, departures, recompose
from .basis.diagonal import SemiSingularValues, diagonal
from .basis.factored import Conserved, FactoredDecomposition, conserved, decompose_factored
from .basis.joint_diagonalisation import NotConvergedError
from .compare import OdeDistance, ode_distance
from .flow import Factors
from .lengths import LengthPrediction, length_generalisation, length_generalisation_of_weights
from .loss import spectral_gradient, spectral_loss
from .ode import State, Trajectory, solve
from .optima.bayes import BayesRisk, bayes_risk
from .optima.states import HeadValues, PredictedState, shared_heads_state
from .optima.theory import Theory, theory
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
from .roles import HeadRoles, head_roles
from .stability import Stability, stability

__all__ = [
    "Allocation",
    "AttentionSpread",
    "Bases",
    "BayesRisk",
    "Conserved",
    "Decomposition",
    "DomainError",
    "Escape",
    "FactoredDecomposition",
    "Factors",
    "HeadRoles",
    "HeadValues",
    "LengthPrediction",
    "NotConvergedError",
    "OdeDistance",
    "Partition",
    "Phases",
    "Plateau",
    "PredictedState",
    "SemiSingularValues",
    "ShortContextWarning",
    "Stability",
    "State",
    "Theory",
    "Trajectory",
    "asymptotic_loss",
    "atoms",
    "bayes_risk",
    "conserved",
    "decompose",
    "decompose_factored",
    "departures",
    "diagonal",
    "effective_examples",
    "effective_examples_of_weights",
    "exponential_loss",
    "half_learnt",
    "head_roles",
    "head_shares",
    "length_generalisation",
    "length_generalisation_of_weights",
    "observed_allocation",
    "ode_distance",
    "phases",
    "plateau_and_escape",
    "predict_allocation",
    "recompose",
    "shared_heads_state",
    "shares",
    "solve",
    "spectral_gradient",
    "spectral_loss",
    "stability",
    "supports_overlap",
    "theory",
]
