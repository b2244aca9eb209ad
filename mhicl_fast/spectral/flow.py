"""Gradient flow of the semi-singular values for each parameterisation, as a vector field on flat states.

Every ω_m is n_m equal parameters, each with gradient g_m = (∂Loss/∂ω_m) / n_m; every μ_i is one. So

    combined:     μ' = −∂Loss/∂μ                ω' = −g
    factored:     v_O' = −v_V ∂Loss/∂μ          κ_Q' = −scale κ_K g          with μ = v_O v_V, ω = scale κ_Q κ_K
                  v_V' = −v_O ∂Loss/∂μ          κ_K' = −scale κ_Q g          (κ_Q² − κ_K², v_V² − v_O² are conserved)
    balanced:     μ' = −2|μ| ∂Loss/∂μ           ω' = −2 scale |ω| g          where κ_Q² = κ_K², v_O² = v_V²

The balanced flow never changes a sign, and runs in ln|μ|, ln|ω|: values that fall to e^−1000 keep their relative
accuracy, and no rounding error carries them across zero. Values that start at zero stay there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._inputs import Floats
from .loss import SpectralProblem


class Factors(NamedTuple):
    """Semi-singular values of factored weights: v_o, v_v (..., H, I) of W_O, W_V; kappa_q, kappa_k of W_Q, W_K."""

    v_o: Floats
    v_v: Floats
    kappa_q: Floats
    kappa_k: Floats


class Flow(ABC):
    """A vector field on states that concatenate arrays of fixed shapes; a batch of states is (B, size)."""

    def __init__(self, problem: SpectralProblem, start: Sequence[Floats]) -> None:
        self.problem = problem
        self.shapes = [array.shape for array in start]
        self.start = np.concatenate([array.reshape(-1) for array in start])
        ends = np.cumsum([array.size for array in start]).tolist()
        self._slices = [slice(first, end) for first, end in zip([0, *ends[:-1]], ends)]

    def unpack(self, states: Floats) -> list[Floats]:
        """(..., size) -> the arrays, each (..., its shape)."""
        leading = states.shape[:-1]
        return [states[..., part].reshape(leading + shape) for part, shape in zip(self._slices, self.shapes)]

    def pack(self, arrays: Sequence[Floats]) -> Floats:
        """The inverse of `unpack` for a batch: (B, ...) arrays -> (B, size)."""
        return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=-1)

    def descent(self, mu: Floats, omega: Floats) -> tuple[Floats, Floats]:
        """(−∂Loss/∂μ, −∂Loss/∂ω per covariate); not finite where the loss does not exist or overflows."""
        with np.errstate(all="ignore"):
            by_mu, by_omega = self.problem.gradient(mu, omega)
        return -by_mu, -by_omega / self.problem.count

    @abstractmethod
    def values(self, states: Floats) -> tuple[Floats, Floats]:
        """(μ (..., H, I), ω (..., H, M)) of the states (..., size)."""

    def factors(self, states: Floats) -> Factors | None:
        """The four factors, where the flow follows them one by one."""
        return None

    @abstractmethod
    def velocity(self, states: Floats) -> Floats:
        """Time derivative of a batch of states, (B, size) -> (B, size)."""

    def jacobian(self, state: Floats) -> Floats:
        """∂velocity/∂state at one state, (size, size), to rounding: the derivative along a tiny imaginary step.

        Near the best multi-head models rates differ by ten orders of magnitude; differences of velocities, good to
        eight, would leave a stiff solver's Newton iteration unable to converge at the steps the slow rates allow.
        """
        step = 1e-30
        steps = 1j * step * np.eye(state.size)
        return (self.velocity(state + steps).imag / step).T


class CombinedFlow(Flow):
    """States hold μ and ω themselves."""

    def __init__(self, problem: SpectralProblem, mu: Floats, omega: Floats) -> None:
        super().__init__(problem, [mu, omega])

    def values(self, states: Floats) -> tuple[Floats, Floats]:
        mu, omega = self.unpack(states)
        return mu, omega

    def velocity(self, states: Floats) -> Floats:
        return self.pack(self.descent(*self.values(states)))


class BalancedFlow(Flow):
    """States hold ln|μ| and ln|ω|, and 0 for values that are zero, whose sign 0 freezes them."""

    def __init__(self, problem: SpectralProblem, mu: Floats, omega: Floats, scale: float) -> None:
        logarithms = [np.log(np.where(array == 0, 1.0, np.abs(array))) for array in (mu, omega)]
        super().__init__(problem, logarithms)
        self.sign_mu, self.sign_omega, self.scale = np.sign(mu), np.sign(omega), scale

    def values(self, states: Floats) -> tuple[Floats, Floats]:
        log_mu, log_omega = self.unpack(states)
        with np.errstate(over="ignore", under="ignore"):
            return self.sign_mu * np.exp(log_mu), self.sign_omega * np.exp(log_omega)

    def velocity(self, states: Floats) -> Floats:
        by_mu, by_omega = self.descent(*self.values(states))
        return self.pack([2 * self.sign_mu * by_mu, 2 * self.scale * self.sign_omega * by_omega])


class UnbalancedFlow(Flow):
    """States hold v_O, v_V, κ_Q, κ_K."""

    def __init__(self, problem: SpectralProblem, start: Factors, scale: float) -> None:
        super().__init__(problem, start)
        self.scale = scale

    def factors(self, states: Floats) -> Factors:
        return Factors(*self.unpack(states))

    def values(self, states: Floats) -> tuple[Floats, Floats]:
        v_o, v_v, kappa_q, kappa_k = self.unpack(states)
        return v_o * v_v, self.scale * kappa_q * kappa_k

    def velocity(self, states: Floats) -> Floats:
        v_o, v_v, kappa_q, kappa_k = self.unpack(states)
        by_mu, by_omega = self.descent(v_o * v_v, self.scale * kappa_q * kappa_k)
        by_omega = self.scale * by_omega
        return self.pack([by_mu * v_v, by_mu * v_o, by_omega * kappa_k, by_omega * kappa_q])
