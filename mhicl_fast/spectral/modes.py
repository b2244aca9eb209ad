"""Modes of a linearised gradient flow: eigenvalues and eigenvectors of its Jacobian, block by block, and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.sparse.csgraph import connected_components

from ._inputs import Floats

_NO_COUPLING = 1e-13  # relative to the largest entry of the Jacobian
_PART_OF_MODE = 0.2  # relative to a mode's largest entry: smaller ones are not named
_NAMED = 3  # places that a label names at most
_SYMBOLS = {"mu": "μ", "omega": "ω", "v_o": "v_O", "v_v": "v_V", "kappa_q": "κ_Q", "kappa_k": "κ_K"}


class Modes(NamedTuple):
    """rates (K,), directions (K, n) as changes of the state, velocity (n,) and drift (K,), its part along each mode."""

    rates: Floats
    directions: Floats
    drift: Floats
    velocity: Floats


def modes_of(jacobian: Floats, velocity: Floats, symmetriser: Floats) -> Modes:
    """Modes of δ' = velocity + jacobian δ, (n, n) and (n,), where diag(s) jacobian diag(1/s) is symmetric, s (n,).

    Entries that the Jacobian does not couple never share a mode.
    """
    symmetric = symmetriser[:, None] * jacobian / symmetriser
    symmetric = (symmetric + symmetric.T) / 2
    coupled = np.abs(symmetric) > _NO_COUPLING * np.abs(symmetric).max(initial=0)
    n_blocks, block_of = connected_components(coupled, directed=False)
    rates, vectors = np.empty(len(symmetric)), np.zeros_like(symmetric)
    for block in range(n_blocks):
        members = np.flatnonzero(block_of == block)
        rates[members], vectors[np.ix_(members, members)] = np.linalg.eigh(symmetric[np.ix_(members, members)])
    directions = (vectors / symmetriser[:, None]).T
    return Modes(rates, directions, vectors.T @ (symmetriser * velocity), velocity)


def label(
    rate: float,
    drift: float,
    threshold: float,
    state: Mapping[str, Floats],
    direction: Mapping[str, Floats],
    sizes: Mapping[str, Floats],
    column_names: Mapping[str, str],
    *,
    signed: bool,
) -> str:
    """A mode in words, as "head 1 on task 0: μ < 0 grows at rate 0.42".

    state, direction and sizes, the direction's entries as norms of weights: arrays (heads, columns) by name;
    column_names: what a column of each is, "task" or "covariate".
    threshold: rates up to this are 0. signed: whether the sign of the direction matters even where there is no drift.
    """
    largest = max(float(part.max(initial=0)) for part in sizes.values())
    places: dict[tuple[int, str, int], list[str]] = {}
    for name, part in sizes.items():
        for head, column in np.argwhere(part > _PART_OF_MODE * largest):
            places.setdefault((int(head), column_names[name], int(column)), []).append(name)
    moving = {
        place: _moves(names, place[0], place[2], state, direction, signed or drift > 0)
        for place, names in places.items()
    }
    texts = [
        f"head {head} on {kind} {column}: {', '.join(moving[head, kind, column])}" for head, kind, column in moving
    ]
    if len(texts) > _NAMED:
        texts[_NAMED:] = [f"and {len(texts) - _NAMED} more"]
    verb = "grow" if rate > threshold else "decay" if rate < -threshold else "stay"
    singular = sum(map(len, moving.values())) == 1
    speed = f" at rate {abs(rate):.3g}" if abs(rate) > threshold else ""
    drifts = f", drift{'s' if singular else ''} at speed {drift:.3g}" if drift > 0 else ""
    return f"{'; '.join(texts)} {verb}{'s' if singular else ''}{speed}{drifts}"


def _moves(
    names: list[str],
    head: int,
    column: int,
    state: Mapping[str, Floats],
    direction: Mapping[str, Floats],
    signed: bool,
) -> list[str]:
    """What moves at one place. Products of two factors that are both 0 get the sign that the mode gives them."""
    parts = []
    for first, second, product in (("v_o", "v_v", "μ"), ("kappa_q", "kappa_k", "ω")):
        if first not in names and second not in names:
            continue
        a, b = (float(direction[name][head, column]) for name in (first, second))
        at_a, at_b = (float(state[name][head, column]) for name in (first, second))
        change = at_a * b + at_b * a
        if at_a == at_b == 0:
            parts.append(f"{product} {'<' if a * b < 0 else '>'} 0" if a * b else _SYMBOLS[first if a else second])
        elif abs(change) <= 1e-6 * np.hypot(at_a, at_b) * np.hypot(a, b):
            parts.append(f"{_SYMBOLS[first]}² − {_SYMBOLS[second]}²")
        else:
            parts.append(product)
    for name in names:
        if name in ("mu", "omega"):
            value, change = float(state[name][head, column]), float(direction[name][head, column])
            sign = f" {'<' if change < 0 else '>'} 0" if value == 0 and signed else ""
            parts.append(_SYMBOLS[name] + sign)
    return parts
