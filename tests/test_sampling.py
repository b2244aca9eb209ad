"""The random numbers: the definition against known answers, the compiled sampler against the definition, statistics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray

from mhicl_fast import _extension, sampling
from mhicl_fast.sampling import CONTEXT, PROMPT
from mhicl_fast.tasks import MultiTaskRegression

# Philox4x32-10 as published with the Random123 library (counter, key, result).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

# (seed, step, prompt, stream, first element, count): every part at its ends, ranges that begin and end inside groups.
ADDRESSES = [
    (0, 0, 0, CONTEXT, 0, 40_000),
    (1, 2, 3, PROMPT, 0, 64),
    (2**64 - 1, 2**32 - 1, 2**56 - 1, PROMPT, 63, 2),
    (2**63, 5, 2**32, CONTEXT, 17, 333),
    (2**63 - 1, 5, 2**32 - 1, CONTEXT, 128, 0),
    (0x299F31D0A4093822, 2**31, 2**55 + 12345, PROMPT, 2**34 - 100, 100),
    (7, 1, 9, 255, 2**33 - 50, 100),
]

TOLERANCE = {"float32": 4e-7, "float64": 1e-14}  # relative to max(1, |z|)
MAX_Z = 4.5  # standard errors: one honest statistic in 150,000 is further out

# Where the words at the edges of Box-Muller stand in the stream of seed 2024, step 0, prompt 0: u next to 0, ½ and 1, θ
# at the quarter turns and beside an odd eighth.
EDGES = [
    (13976536618, 0x00000000),
    (10877014091, 0x7FFFFFFF),
    (7495414702, 0x80000000),
    (4922368079, 0xFFFFFFFF),
    (423179870, 0x00000000),
    (11932956274, 0x1FFFFFFF),
    (6189318686, 0x20000000),
    (8837806266, 0x40000000),
    (5847157848, 0x80000000),
    (17075550972, 0xC0000000),
    (2191182900, 0xFFFFFFFF),
]

ISA_SCRIPT = """
import json, sys
import numpy as np
import torch
from mhicl_fast.tasks import MultiTaskRegression

addresses, path = json.loads(sys.argv[1]), sys.argv[2]
results = {}
for name, dtype in (("words", torch.int32), ("float32", torch.float32), ("float64", torch.float64)):
    operator = torch.ops.mhicl.philox_words if name == "words" else torch.ops.mhicl.philox_normals
    for index, (count, address) in enumerate(addresses):
        out = torch.empty(count, dtype=dtype)
        operator(out, **address)
        results[f"{name}_{index}"] = out.numpy()
task = MultiTaskRegression(19, 2, 300, noise_std=0.5, covariance=np.eye(19) + 0.5)
for part, tensor in task.sample(3, seed=1, dtype=torch.float64)._asdict().items():
    results[part] = tensor.numpy()
np.savez(path, **results)
"""


def operator_address(seed: int, step: int, prompt: int, stream: int, first_element: int) -> dict[str, int]:
    """The operators' keywords; their integers are signed."""
    signed_seed = seed - 2**64 if seed >= 2**63 else seed
    return {
        "seed": signed_seed,
        "step": step,
        "prompt": prompt,
        "stream": stream,
        "first_element": first_element,
    }


def compiled_normals(
    seed: int, step: int, prompt: int, stream: int, first_element: int, count: int, dtype: torch.dtype
) -> NDArray:
    out = torch.empty(count, dtype=dtype)
    torch.ops.mhicl.philox_normals(out, **operator_address(seed, step, prompt, stream, first_element))
    return out.numpy()


def standard_error_bound(samples: NDArray, expected: float, variance: float) -> None:
    """Assert that the samples' mean is within MAX_Z standard errors of what it should be."""
    z = (samples.mean(dtype=np.float64) - expected) / np.sqrt(variance / samples.size)
    assert abs(z) < MAX_Z, f"mean {samples.mean()} against {expected}: {z:.1f} standard errors"


def assert_uncorrelated(x: NDArray, y: NDArray) -> None:
    standard_error_bound(x * y, 0.0, 1.0)
    standard_error_bound((x**2 - 1) * (y**2 - 1), 0.0, 4.0)  # as a shared radius would show


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(sampling.philox4x32(counter, key), np.array(expected, dtype=np.uint32))


def test_philox_known_answers_in_a_batch() -> None:
    counters, keys, expected = (np.array(part) for part in zip(*KNOWN_ANSWERS, strict=True))
    np.testing.assert_array_equal(sampling.philox4x32(counters, keys), expected)


def test_words_follow_the_layout() -> None:
    """Every element's word, found from the documented address one at a time."""
    seed, step, prompt = 0x299F31D0A4093822, 0x13198A2E, 0xABCDEF << 32 | 0x85A308D3
    words = sampling.words(seed, step, prompt, PROMPT, 200)
    for element in (0, 15, 16, 63, 64, 100, 199):
        group, rest = divmod(element, 64)
        k, j = divmod(rest, 16)
        counter = (16 * group + j, 0x85A308D3, step, PROMPT << 24 | 0xABCDEF)
        assert words[element] == sampling.philox4x32(counter, (0xA4093822, 0x299F31D0))[k]


def test_any_range_of_a_stream_is_part_of_the_whole() -> None:
    whole = sampling.normals(3, 1, 4, CONTEXT, 500)
    for first, count in [(0, 0), (0, 1), (63, 2), (64, 64), (100, 333), (499, 1)]:
        part = sampling.normals(3, 1, 4, CONTEXT, count, first_element=first)
        np.testing.assert_array_equal(part, whole[first : first + count])


@pytest.mark.parametrize(
    ("dim_x", "n_tasks", "length", "noises_begin"), [(1, 1, 0, 16), (5, 1, 40, 16), (17, 3, 35, 80), (2, 7, 16, 32)]
)
def test_prompts_follow_the_layout(dim_x: int, n_tasks: int, length: int, noises_begin: int) -> None:
    """Every number of a prompt, found from the documented layout one at a time."""
    seed, step, prompt, noise_std = 3, 4, 5, 0.7
    of_context = sampling.normals(seed, step, prompt, CONTEXT, 2000)
    of_prompt = sampling.normals(seed, step, prompt, PROMPT, 1000)
    rng = np.random.default_rng(0)
    scale, factor = rng.random((n_tasks, dim_x)), np.tril(rng.random((dim_x, dim_x)))

    beta = np.array([[scale[i, j] * of_prompt[dim_x + i * dim_x + j] for j in range(dim_x)] for i in range(n_tasks)])
    context = np.empty((length, dim_x + n_tasks))
    for token in range(length):
        tile, lane = token // 16, token % 16
        xi = [of_context[16 * (tile * dim_x + j) + lane] for j in range(dim_x)]
        noise = [of_prompt[noises_begin + 16 * (tile * n_tasks + i) + lane] for i in range(n_tasks)]
        context[token, :dim_x] = factor @ xi
        context[token, dim_x:] = beta @ context[token, :dim_x] + noise_std * np.array(noise)
    query = factor @ of_prompt[:dim_x]
    first = dim_x + n_tasks * dim_x
    target = beta @ query + noise_std * of_prompt[first : first + n_tasks]

    address = {"seed": seed, "step": step, "prompt": prompt}
    found = sampling.multi_task_prompt(
        scale, length, **address, noise_std=noise_std, noisy_target=True, covariance_factor=factor
    )
    for part, expected in zip(found, (context, np.append(query, np.zeros(n_tasks)), target), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-12, atol=1e-13)
    tiles = -(-length // 16)
    lengths = sampling.stream_lengths(length, dim_x, n_tasks)
    assert lengths == (16 * tiles * dim_x, noises_begin + 16 * tiles * n_tasks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_ranges_are_parts_of_the_whole_and_write_nothing_else(dtype: torch.dtype) -> None:
    whole = compiled_normals(3, 1, 4, PROMPT, 0, 300, dtype)
    for first in (0, 1, 15, 31, 32, 33, 63, 64, 100):
        for count in range(150):
            around = torch.full((count + 64,), torch.nan, dtype=dtype)
            torch.ops.mhicl.philox_normals(around[32 : 32 + count], **operator_address(3, 1, 4, PROMPT, first))
            np.testing.assert_array_equal(around[32 : 32 + count], whole[first : first + count])
            assert around[:32].isnan().all()
            assert around[32 + count :].isnan().all()


@pytest.fixture(scope="module", params=["portable", "avx2", "avx512"])
def isa_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray]:
    """What a process on this instruction set computes."""
    supported = _extension.native.supported_isas()
    if request.param not in supported:
        pytest.skip(f"{request.param} is not among this build's and CPU's instruction sets ({', '.join(supported)})")
    path = tmp_path_factory.mktemp("isa") / "results.npz"
    addresses = [(count, operator_address(*address)) for *address, count in ADDRESSES]
    subprocess.run(
        [sys.executable, "-c", ISA_SCRIPT, json.dumps(addresses), str(path)],
        check=True,
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "MHICL_ISA": request.param, "OMP_NUM_THREADS": "1"},
    )
    with np.load(path) as results:
        return dict(results)


def test_integers_are_the_same_for_every_instruction_set(isa_results: dict[str, NDArray]) -> None:
    for index, (*address, first, count) in enumerate(ADDRESSES):
        expected = sampling.words(*address, count, first_element=first)
        np.testing.assert_array_equal(isa_results[f"words_{index}"].view(np.uint32), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normals_of_every_instruction_set(isa_results: dict[str, NDArray], dtype: str) -> None:
    for index, (*address, first, count) in enumerate(ADDRESSES):
        expected = sampling.normals(*address, count, first_element=first)
        error = np.abs(isa_results[f"{dtype}_{index}"] - expected)
        assert (error <= TOLERANCE[dtype] * np.maximum(1, np.abs(expected))).all()


def test_prompts_of_every_instruction_set(isa_results: dict[str, NDArray]) -> None:
    task = MultiTaskRegression(19, 2, 300, noise_std=0.5, covariance=np.eye(19) + 0.5)
    for part, tensor in task.sample(3, seed=1, dtype=torch.float64)._asdict().items():
        np.testing.assert_allclose(isa_results[part], tensor.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("element", "word"), EDGES)
def test_normals_at_the_edges(element: int, word: int, dtype: torch.dtype) -> None:
    """Relative accuracy of both normals: the radius is exact next to u = 0 and u = 1, the angle at its zeros."""
    address = (2024, 0, 0, PROMPT)
    first = element - 16 * (element // 16 % 2)
    assert sampling.words(*address, 1, first_element=element) == [word]
    expected = sampling.normals(*address, 17, first_element=first)[::16]
    found = compiled_normals(*address, first, 17, dtype)[::16]
    # cos(π/2) is 6e-17 in floating point and 0 by exact reduction of the angle.
    np.testing.assert_allclose(found, expected, rtol=8 * np.finfo(found.dtype).eps, atol=1e-15)


@pytest.fixture(scope="module")
def draws() -> NDArray:
    """2 seeds × 2 steps × 3 prompts × 2¹⁸ numbers in float32, in the order of the stream."""
    count = 2**18
    result = np.empty((2, 2, 3, count))
    for seed in range(2):
        for step in range(2):
            for prompt in range(3):
                result[seed, step, prompt] = compiled_normals(seed, step, prompt, CONTEXT, 0, count, torch.float32)
    return result


def test_moments(draws: NDArray) -> None:
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10395 - 225)]:
        standard_error_bound(draws.ravel() ** power, expected, variance)


def test_moments_in_every_lane(draws: NDArray) -> None:
    for element_in_group in range(sampling.GROUP):
        lane = draws[..., element_in_group :: sampling.GROUP].ravel()
        standard_error_bound(lane, 0, 1)
        standard_error_bound(lane**2, 1, 2)


def test_distribution(draws: NDArray) -> None:
    assert scipy.stats.kstest(draws.ravel(), "norm").pvalue > 1e-4
    bins = scipy.stats.norm.ppf(np.linspace(0, 1, 1001))
    counts, _ = np.histogram(draws, bins)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_tails(draws: NDArray) -> None:
    for threshold in (3.0, 4.0, 4.5):
        probability = 2 * scipy.stats.norm.sf(threshold)
        standard_error_bound(np.abs(draws.ravel()) > threshold, probability, probability * (1 - probability))
    assert np.abs(draws).max() < np.sqrt(-2 * np.log(0.5 * 2.0**-32))


@pytest.mark.parametrize("lag", [1, 2, 8, 15, 16, 17, 32, 48, 64, 128, 1024])
def test_elements_are_uncorrelated(draws: NDArray, lag: int) -> None:
    assert_uncorrelated(draws[..., lag:].ravel(), draws[..., :-lag].ravel())


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["seeds", "steps", "prompts"])
def test_neighbours_are_uncorrelated(draws: NDArray, axis: int) -> None:
    first, second = (np.take(draws, index, axis=axis).ravel() for index in (0, 1))
    assert_uncorrelated(first, second)


def test_streams_are_uncorrelated() -> None:
    count = 2**18
    assert_uncorrelated(sampling.normals(0, 0, 0, CONTEXT, count), sampling.normals(0, 0, 0, PROMPT, count))


def test_bits_of_words_are_fair() -> None:
    words = torch.empty(2**18, dtype=torch.int32)
    torch.ops.mhicl.philox_words(words, **operator_address(5, 6, 7, PROMPT, 0))
    bits = np.unpackbits(words.numpy().view(np.uint8)).reshape(-1, 32)
    for bit in range(32):
        standard_error_bound(bits[:, bit], 0.5, 0.25)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, "seed must lie in"),
        ({"step": -1}, r"step must lie in \[0, 2\*\*32\), got -1"),
        ({"step": 2**32}, "step must lie in"),
        ({"prompt": -1}, r"prompts must lie in \[0, 2\*\*56\), got first_prompt=-1"),
        ({"prompt": 2**56}, "prompts must lie in"),
        ({"count": -1}, r"elements must lie in \[0, 2\*\*34\)"),
        ({"first_element": 2**34}, "elements must lie in"),
    ],
)
def test_addresses_out_of_range(address: dict[str, int], message: str) -> None:
    valid = {"seed": 0, "step": 0, "prompt": 0, "stream": 0, "count": 1, "first_element": 0}
    with pytest.raises(ValueError, match=message):
        sampling.words(**{**valid, **address})


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ({"step": 2**32}, "step must lie in"),
        ({"prompt": 2**56}, "prompts must lie in"),
        ({"prompt": -1}, "prompts must lie in"),
        ({"stream": 256}, "stream must lie in"),
        ({"first_element": -1}, "elements must lie in"),
        ({"first_element": 2**34}, "elements must lie in"),
    ],
)
def test_operator_refuses_addresses_out_of_range(address: dict[str, int], message: str) -> None:
    valid = operator_address(0, 0, 0, CONTEXT, 0)
    for operator, dtype in [
        (torch.ops.mhicl.philox_words, torch.int32),
        (torch.ops.mhicl.philox_normals, torch.float32),
    ]:
        with pytest.raises(ValueError, match=message):
            operator(torch.empty(1, dtype=dtype), **{**valid, **address})


def test_operators_refuse_other_dtypes_and_strides() -> None:
    address = operator_address(0, 0, 0, CONTEXT, 0)
    with pytest.raises(TypeError, match="out must have dtype Int, got Float"):
        torch.ops.mhicl.philox_words(torch.empty(4), **address)
    with pytest.raises(TypeError, match="out must be float32 or float64, got Half"):
        torch.ops.mhicl.philox_normals(torch.empty(4, dtype=torch.float16), **address)
    with pytest.raises(ValueError, match="out must be contiguous"):
        torch.ops.mhicl.philox_normals(torch.empty(8)[::2], **address)
