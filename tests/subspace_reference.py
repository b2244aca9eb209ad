"""The `subspace` estimate of one prompt and one context in NumPy, float64, loops as in the formulas.

Everything lives in whitened coordinates ξ (x = A ξ, A = Id without a covariance): with S̃_j = Aᵀ S_j A,
r_h = Aᵀ KQ_h A ξ_q the logits of ξ_l are s_lh = ξ_l·r_h.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEGLIGIBLE = 1e-14


def basis(r: Floats) -> Floats:
    """Q (d, M), M = min(H, d): orthonormal columns whose span holds every r_h (H, d), then zeros.

    Gram–Schmidt, each vector orthogonalised twice; a vector is measured by its own norm before, never by the largest.
    """
    heads, d = r.shape
    columns: list[Floats] = []
    for h in range(heads):
        norm = np.sqrt((r[h] ** 2).sum())
        if norm == 0 or len(columns) == d:
            continue
        v = r[h] / norm  # unit, so that neither tiny nor huge heads under- or overflow
        for q in columns:
            v = v - (q @ v) * q
        left = np.sqrt((v**2).sum())
        if left <= NEGLIGIBLE:
            continue
        v = v / left
        for q in columns:  # once more: after division by `left` the rounding of the first pass is no longer small
            v = v - (q @ v) * q
        columns.append(v / np.sqrt((v**2).sum()))
    q = np.zeros((d, min(heads, d)))
    q[:, : len(columns)] = np.stack(columns, 1) if columns else 0
    return q


def subspace(
    u: Floats,
    query: Floats,
    q: Floats,
    kq: Floats,
    label_block: Floats,
    support: Floats,
    signal: Floats,
    noise_std: float,
    noisy_target: bool,
    factor: Floats | None,
) -> tuple[float, Floats, Floats]:
    """Loss, ∂KQ's x-block (H, d, d) and ∂U (H, I, I) of one prompt.

    u (L, m): the context in the basis; query (d,): ξ_q; q (d, m): the basis; kq (H, d, d): KQ's x-block;
    label_block (H, I, I): U_h, from label j to output i; support (I, d) of 0 and 1; signal (I,).
    """
    heads, d = kq.shape[:2]
    tasks, length = len(signal), len(u)
    a_factor = np.eye(d) if factor is None else factor
    reads = [a_factor.T @ np.diag(support[j].astype(float)) @ a_factor for j in range(tasks)]  # S̃_j
    outside = np.eye(d) - q @ q.T  # P
    r = np.stack([a_factor.T @ kq[h] @ a_factor @ query for h in range(heads)])
    cu = np.einsum("hij,gij->jhg", label_block, label_block)  # Σ_i U_h[i,j] U_g[i,j]
    c = 2 * signal[:, None, None] * cu  # c_{j,hg}
    w = noise_std**2 * cu.sum(0)  # W_hg

    p = np.zeros((length, heads))
    for h in range(heads):
        s = u @ (q.T @ r[h])
        e = np.exp(s - s.max())
        p[:, h] = e / e.sum()
    overlap = p.T @ p  # K
    m = p.T @ u  # (H, m)
    mean = m @ q.T  # Q m_h, (H, d)

    # Gram numbers, index 0 the query, h + 1 head h: E over x⊥ of v_m·S̃_j v_n.
    gram = np.zeros((tasks, heads + 1, heads + 1))
    vectors = np.vstack([query, mean])
    for j in range(tasks):
        gram[j] = vectors @ reads[j] @ vectors.T
        gram[j, 1:, 1:] += overlap * np.trace(reads[j] @ outside)

    loss = noise_std**2 * tasks if noisy_target else 0.0
    grad_u = np.zeros_like(label_block)
    for i in range(tasks):
        for j in range(tasks):
            coefficients = np.concatenate([[float(i == j)], -label_block[:, i, j]])
            loss += signal[j] * coefficients @ gram[j] @ coefficients
            grad_u[:, i, j] = -2 * signal[j] * (gram[j] @ coefficients)[1:]
    loss += (w * overlap).sum()
    grad_u += 2 * noise_std**2 * np.einsum("hg,gij->hij", overlap, label_block)

    grad_kq = np.zeros_like(kq)
    for h in range(heads):
        big_m = [sum(c[j, h, g] * reads[j] for j in range(tasks)) for g in range(heads)]  # M_hg
        g_h = -2 * sum(signal[j] * label_block[h, j, j] * reads[j] for j in range(tasks)) @ query
        g_h = g_h + sum(big_m[g] @ mean[g] for g in range(heads))
        weight = 2 * w[h] + np.array([np.trace(outside @ big_m[g]) for g in range(heads)])
        t = u @ (q.T @ g_h) + p @ weight  # (L,)
        centred = u - m[h]
        in_plane = q @ (centred.T @ (p[:, h] * t))
        n = np.einsum("l,lg,lm->gm", p[:, h], p, centred)  # n_hg
        out_of_plane = (1 - overlap[h, h]) * outside @ g_h + outside @ sum(big_m[g] @ q @ n[g] for g in range(heads))
        grad_r = in_plane + out_of_plane
        grad_kq[h] = a_factor @ np.outer(grad_r, query) @ a_factor.T
    return float(loss), grad_kq, grad_u
