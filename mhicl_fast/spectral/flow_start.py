"""From a state in the form that callers give to the flow that moves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from ._inputs import (
    Floats,
    check_choice,
    check_heads,
    check_mu,
    check_order,
    check_positive,
    require_identity_covariance,
)
from .atoms import Partition, coarsest_partition, resolve_omega
from .flow import BalancedFlow, CombinedFlow, Factors, Flow, UnbalancedFlow
from .loss import SpectralProblem

if TYPE_CHECKING:
    from ..tasks import MultiTaskRegression

Parameters = Literal["factored", "combined", "unbalanced"]


def starting_flow(
    task: MultiTaskRegression,
    mu: Any,
    omega: Any,
    *,
    parameters: str,
    scale: float,
    order: str,
    merge: bool,
    names: tuple[str, str],
) -> tuple[Flow, Partition]:
    """The flow that starts at a state, and the partition of the covariates that its ω stand for.

    mu (H, I); omega (H, I) or (H, d); for "unbalanced" the pairs (v_O, v_V) and (κ_Q, κ_K) of such arrays. With `merge`
    covariates that stay equal share a value, else every column of omega is one. `names` of mu and omega are for the
    messages. Raises ValueError for anything else, and where the loss does not exist.
    """
    check_choice("parameters", parameters, get_args(Parameters))
    check_order(order, task.context_length, stacklevel=4)
    require_identity_covariance(task, "the spectral ODE")
    scale = check_positive("scale", scale)
    mus = [_two_dimensional(names[0], check_mu(task, part, names[0])) for part in _parts(names[0], mu, parameters)]
    omegas = [
        _two_dimensional(names[1], resolve_omega(task, part, names[1])[0])
        for part in _parts(names[1], omega, parameters)
    ]
    for part in (*mus[1:], *omegas):
        check_heads(mus[0], part)
    if len({part.shape for part in omegas}) > 1:
        raise ValueError(f"the parts of {names[1]} must have one shape, got {[list(part.shape) for part in omegas]}")

    partition = coarsest_partition(task, *omegas) if merge else resolve_omega(task, omegas[0])[1]
    problem = SpectralProblem.of(task, partition, order)
    flow = _flow(problem, mus, [partition.compress(part) for part in omegas], parameters, scale)
    problem.require_domain(flow.values(flow.start)[1])
    return flow, partition


def _parts(name: str, start: Any, parameters: str) -> list[Any]:
    if parameters != "unbalanced":
        return [start]
    if len(start) != 2:
        pair = "(v_O, v_V)" if name.startswith("mu") else "(kappa_Q, kappa_K)"
        raise ValueError(f'with parameters="unbalanced" {name} is the pair {pair}, got {len(start)} parts')
    return list(start)


def _two_dimensional(name: str, array: Floats) -> Floats:
    if array.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, (heads, values), got shape {list(array.shape)}")
    return array


def _flow(problem: SpectralProblem, mu: list[Floats], omega: list[Floats], parameters: str, scale: float) -> Flow:
    if parameters == "factored":
        return BalancedFlow(problem, mu[0], omega[0], scale)
    if parameters == "combined":
        return CombinedFlow(problem, mu[0], omega[0])
    return UnbalancedFlow(problem, Factors(*mu, *omega), scale)
