"""The sampler's definition in NumPy: which random number is where, and what a prompt is made of.

Random numbers are a pure function of their address. An address is (seed, step, prompt, stream, element): the seed is
the key of Philox4x32-10, everything else is its counter, and Box-Muller turns its 32-bit words into normals:

=======  =======================================================================================
word c0  block within the stream
word c1  prompt, low 32 bits
word c2  step
word c3  prompt, high 24 bits; the stream in the top 8 bits
=======  =======================================================================================

Elements e = 64 g + 16 k + j (0 ≤ k < 4, 0 ≤ j < 16) take word k of block 16 g + j. So sixteen (or eight) blocks in the
lanes of a vector yield runs of consecutive elements, and any range of a stream can be made without what precedes it.

A prompt has two streams, in which context tokens go in tiles of 16, column by column within a tile: token l's column
j of c is element 16 (⌊l/16⌋ c + j) + l mod 16. So the tokens of a tile come out in the lanes of a vector.

=========  ======================================================================================================
`CONTEXT`  the context's whitened covariates, d columns in tiles
`PROMPT`   the query's d whitened covariates; the d coefficients of each task, task by task; the I noises of the
           query's label; and from the next multiple of 16 on the noises of the context's labels, I columns in tiles
=========  ======================================================================================================

A shorter context is therefore a prefix of a longer one, and the covariates do not depend on the tasks.

The compiled sampler is tested against this module: its integers to the bit, its normals to rounding.

Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONTEXT = 0
PROMPT = 1

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and √3 − 1, as fractions of 2³²

LANES = 16
GROUP = 4 * LANES
TILE = LANES
MAX_SEED = 2**64 - 1
MAX_STEP = 2**32 - 1
MAX_PROMPT = 2**56 - 1
MAX_ELEMENTS = 4 * 2**32  # what 32 bits of block index address

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Philox4x32-10 of each counter: (..., 4) words under keys (..., 2) -> (..., 4) words, all uint32."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, dtype=np.uint64), -1, 0)
    for round_ in range(ROUNDS):
        product0 = np.uint64(MULTIPLIERS[0]) * c0  # 32 × 32 -> 64 bits, exact
        product1 = np.uint64(MULTIPLIERS[1]) * c2
        round_key0 = (k0 + np.uint64(round_ * KEY_INCREMENTS[0])) & _LOW
        round_key1 = (k1 + np.uint64(round_ * KEY_INCREMENTS[1])) & _LOW
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ round_key0,
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ round_key1,
            product0 & _LOW,
        )
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def words(seed: int, step: int, prompt: int, stream: int, count: int, *, first_element: int = 0) -> NDArray[np.uint32]:
    """The stream's 32-bit words in the order of its elements, `count` of them from `first_element` on."""
    check_address(seed, step, prompt, 1)
    if count < 0 or first_element < 0 or first_element + count > MAX_ELEMENTS:
        raise ValueError(f"elements must lie in [0, 2**34), got first_element={first_element}, count={count}")
    first_group, skipped = divmod(first_element, GROUP)
    n_groups = -(-(skipped + count) // GROUP)
    blocks = np.arange(first_group * LANES, (first_group + n_groups) * LANES, dtype=np.uint64)
    counter = np.empty((blocks.size, 4), dtype=np.uint64)
    counter[:, 0] = blocks
    counter[:, 1] = prompt & 0xFFFFFFFF
    counter[:, 2] = step
    counter[:, 3] = (stream << 24) | (prompt >> 32)
    result = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    in_order = result.reshape(n_groups, LANES, 4).swapaxes(1, 2).reshape(-1)
    return in_order[skipped : skipped + count]


def normals(
    seed: int, step: int, prompt: int, stream: int, count: int, *, first_element: int = 0
) -> NDArray[np.float64]:
    """Standard normals of one prompt's stream in float64, `count` of them from `first_element` on.

    Words 0 and 1 of a block, and words 2 and 3, are the pairs (a, b) of Box-Muller: with u = (a + ½)/2³² in (0, 1) and
    θ = 2π b/2³², the normals in their places are √(−2 ln u) cos θ and √(−2 ln u) sin θ.
    """
    first_group, skipped = divmod(first_element, GROUP)
    n_groups = -(-(skipped + count) // GROUP)
    raw = words(seed, step, prompt, stream, n_groups * GROUP, first_element=first_group * GROUP)
    a, b = np.moveaxis(raw.reshape(n_groups, 2, 2, LANES).astype(np.float64), 2, 0)  # (n_groups, pair, lane)
    radius = np.sqrt(-2 * np.log((a + 0.5) * 2.0**-32))
    angle = 2 * np.pi * (b * 2.0**-32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
    return pairs.reshape(-1)[skipped : skipped + count]


def tiled_elements(n_tokens: int, n_columns: int) -> NDArray[np.int64]:
    """Which element holds each token's number of each column, counted from the first tile's: (tokens, columns)."""
    tile, lane = np.divmod(np.arange(n_tokens, dtype=np.int64), TILE)
    return TILE * (tile[:, None] * n_columns + np.arange(n_columns)) + lane[:, None]


def tiled_size(n_tokens: int, n_columns: int) -> int:
    """How many elements the tiles of that many tokens take."""
    return -(-n_tokens // TILE) * TILE * n_columns


class PromptOffsets(NamedTuple):
    """Where each part of the stream `PROMPT` begins after the query's covariates, which begin it."""

    coefficients: int
    query_noise: int
    context_noise: int


def prompt_offsets(dim_x: int, n_tasks: int) -> PromptOffsets:
    """The parts of the stream `PROMPT` for d covariates and I tasks."""
    query_noise = dim_x + n_tasks * dim_x
    return PromptOffsets(dim_x, query_noise, tiled_size(query_noise + n_tasks, 1))


def stream_lengths(context_length: int, dim_x: int, n_tasks: int) -> tuple[int, int]:
    """Elements of a prompt's streams `CONTEXT` and `PROMPT`, each of which can be `MAX_ELEMENTS` long."""
    noise = prompt_offsets(dim_x, n_tasks).context_noise
    return tiled_size(context_length, dim_x), noise + tiled_size(context_length, n_tasks)


def covariates(
    context_length: int, dim_x: int, *, seed: int, step: int, prompt: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One prompt's whitened covariates ξ: of the context (L, d) and of the query (d,)."""
    xi = normals(seed, step, prompt, CONTEXT, tiled_size(context_length, dim_x))
    return xi[tiled_elements(context_length, dim_x)], normals(seed, step, prompt, PROMPT, dim_x)


def multi_task_prompt(
    coefficient_scale: NDArray[np.float64],
    context_length: int,
    *,
    seed: int,
    step: int,
    prompt: int,
    noise_std: float = 0.0,
    noisy_target: bool = False,
    covariance_factor: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """One prompt of multi-task linear regression: context (L, d + I), query (d + I,), target (I,).

    `coefficient_scale` (I, d) is the standard deviation √λ_i S_ij of every coefficient: β_ji = √λ_i S_ij g_ij. With
    A = `covariance_factor` (d, d), x = A ξ; y = βᵀx + σ ε, and the target has its noise only if `noisy_target`.
    """
    n_tasks, dim_x = coefficient_scale.shape
    x, query = covariates(context_length, dim_x, seed=seed, step=step, prompt=prompt)
    if covariance_factor is not None:
        x, query = x @ covariance_factor.T, covariance_factor @ query
    _, length = stream_lengths(context_length, dim_x, n_tasks)
    numbers = normals(seed, step, prompt, PROMPT, length)
    at = prompt_offsets(dim_x, n_tasks)
    beta = coefficient_scale * numbers[at.coefficients : at.query_noise].reshape(n_tasks, dim_x)
    noise = numbers[at.context_noise + tiled_elements(context_length, n_tasks)]
    y = x @ beta.T + noise_std * noise
    target = beta @ query
    if noisy_target:
        target += noise_std * numbers[at.query_noise : at.query_noise + n_tasks]
    return np.concatenate([x, y], axis=1), np.concatenate([query, np.zeros(n_tasks)]), target


def check_address(seed: int, step: int, first_prompt: int, n_prompts: int) -> None:
    """Raise ValueError unless the seed, the step and every prompt's index fit their counter words."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must lie in [0, 2**64), got {seed}")
    if not 0 <= step <= MAX_STEP:
        raise ValueError(f"step must lie in [0, 2**32), got {step}")
    if n_prompts < 0:
        raise ValueError(f"n_prompts must be at least 0, got {n_prompts}")
    if first_prompt < 0 or first_prompt + n_prompts > MAX_PROMPT + 1:
        raise ValueError(f"prompts must lie in [0, 2**56), got first_prompt={first_prompt} with n_prompts={n_prompts}")
