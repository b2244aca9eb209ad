"""The emulation of CUDA finds what is wrong with a kernel, passes what is right, and computes as the hardware does."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from emulated import (
    VARIANT,
    device_limits,
    emulated,
    record,
    run_sanitized,
    runtime_calls,
    sanitized_child,
    seed_schedule,
)

SEEDS = range(8)

# What is wrong, and what the message says of it.
NAMED = {
    "barrier_after_return": "barrier not reached by all: 63 threads wait at faults.cu:.*, 1 have exited",
    "barrier_in_two_places": "barrier not reached by all: others wait at the barrier at faults.cu",
    "barrier_count": "barrier not reached by all: 32 threads wait at faults.cu:.*, 32 have exited",
    "misaligned_load": r"misaligned load of four \(4 bytes past a multiple of 16\) at faults.cu",
    "misaligned_store": r"misaligned store of four \(4 bytes past a multiple of 16\) at faults.cu",
    "misaligned_copy": "misaligned asynchronous copy of 16 bytes .*4 past a multiple.* at faults.cu",
    "copy_outside": "asynchronous copy to outside of shared memory at faults.cu",
    "shuffle_unnamed": "__shfl_sync reads lane 20, which its mask does not name, at faults.cu",
    "shuffle_exited": "waits at __shfl_xor_sync at faults.cu:.* for lane 7, which has exited",
    "shuffle_masks": "waits at __shfl_xor_sync .* with mask 0x.* for lane .*, which (has exited|is at __shfl_xor_sync)",
    "shuffle_not_in_mask": "calls __shfl_sync .* with mask 0x0000ffff, which does not name it",
    "shuffle_and_barrier": "waits at __shfl_sync .* for lane 9, which waits at the block's barrier at faults.cu",
    "shuffle_in_two_places": "waits at __shfl_xor_sync at faults.cu:.* for lane .*, which is at __shfl_xor_sync at ",
    "units_without_lanes": "waits at multiply_add_tf32 .* for lane .*, which has exited",
}
# What shows in the result, with some order of the threads or any.
WRONG = [
    *("missing_barrier", "missing_warp_barrier", "uninitialised_shared", "copy_without_wait", "copy_of_later_group"),
    *("copy_without_commit", "copy_without_barrier", "unwritten_global"),
]
# What the bytes around memory show, and the sanitizer, at the line.
OVERRUNS = {
    "shared_overrun": "wrote 0 bytes past the end of its 256 bytes of shared memory",
    "shared_underrun": "wrote . bytes before its shared memory",
    "global_overrun": "wrote past the end of an allocation of 256 bytes",
    "global_underrun": "wrote before an allocation of 256 bytes",
}
SANITIZED = [*OVERRUNS, "shared_read_overrun"]


@pytest.fixture(scope="module")
def faults():
    emulated()
    return torch.ops.mhicl_faults


@pytest.fixture
def x():
    return torch.arange(1.0, 65.0)


def expected(name: str, x: torch.Tensor) -> torch.Tensor:
    """What the kernel gives when nothing is planted."""
    lanes = torch.arange(64)
    if name in ("missing_barrier", "copy_without_barrier"):
        return x.roll(-32)
    if name in ("missing_warp_barrier", "shuffle_exited", "shuffle_masks"):
        return x[lanes ^ 1]
    if name == "misaligned_load":
        return x[lanes // 4 * 4 % 60]
    if name == "shuffle_unnamed":
        return torch.where(lanes < 16, x[3], x)
    if name in ("shuffle_not_in_mask", "shuffle_and_barrier"):
        return x[lanes // 32 * 32]
    if name == "shuffle_in_two_places":
        return x + x[lanes ^ 2]
    if name == "units_without_lanes":
        return torch.zeros(64)
    return x


class TestFaults:
    @pytest.mark.parametrize("name", sorted({*NAMED, *WRONG, *OVERRUNS, *SANITIZED}))
    def test_a_healthy_kernel_gives_its_result_in_every_order(self, faults, x, name):
        for seed in SEEDS:
            seed_schedule(seed)
            assert torch.equal(faults.run(name, False, x), expected(name, x))

    @pytest.mark.parametrize("name", sorted(NAMED))
    def test_a_mistake_is_named_in_every_order(self, faults, x, name):
        for seed in SEEDS:
            seed_schedule(seed)
            with pytest.raises(RuntimeError, match=NAMED[name]) as error:
                faults.run(name, True, x)
            assert f"faults::{name}(" in str(error.value)
            assert "block (0, 0, 0), thread (" in str(error.value)

    @pytest.mark.parametrize("name", WRONG)
    def test_a_race_shows_in_the_result(self, faults, x, name):
        wrong = 0
        for seed in SEEDS:
            seed_schedule(seed)
            wrong += not torch.equal(faults.run(name, True, x), expected(name, x))
        assert wrong >= len(SEEDS) // 2

    @pytest.mark.skipif(VARIANT in os.environ, reason="the sanitizer ends the process")
    @pytest.mark.parametrize("name", sorted(OVERRUNS))
    def test_damage_around_memory_is_named(self, faults, x, name):
        with pytest.raises(RuntimeError, match=OVERRUNS[name]):
            faults.run(name, True, x)

    def test_a_launch_after_a_fault_is_as_any_other(self, faults, x):
        with pytest.raises(RuntimeError):
            faults.run("shuffle_exited", True, x)
        assert torch.equal(faults.run("shuffle_exited", False, x), expected("shuffle_exited", x))


@pytest.mark.skipif(VARIANT in os.environ, reason="runs in a child of its own")
class TestSanitized:
    @pytest.mark.parametrize("name", SANITIZED)
    def test_access_out_of_bounds_is_found(self, faults, name):
        script = (
            "import torch; from emulated import emulated; emulated();"
            f"x = torch.arange(64.0); torch.ops.mhicl_faults.run('{name}', PLANTED, x); print('came through')"
        )
        output = sanitized_child("-c", script.replace("PLANTED", "True"), fails=True)
        assert "heap-buffer-overflow" in output
        assert "faults.cu:" in output

    def test_the_other_tests_pass_under_the_sanitizers(self, faults):
        assert "passed" in run_sanitized(__file__)


class TestLaunchLimits:
    @pytest.mark.parametrize(
        ("grid", "block"),
        [
            ((0, 1, 1), (32, 1, 1)),
            ((1, 1, 1), (0, 1, 1)),
            ((1, 1, 1), (1025, 1, 1)),
            ((1, 1, 1), (64, 17, 1)),
            ((1, 1, 1), (1, 1, 65)),
            ((1, 65536, 1), (1, 1, 1)),
            ((1, 1, 65536), (1, 1, 1)),
            ((2**31, 1, 1), (1, 1, 1)),
        ],
    )
    def test_impossible_shapes_are_refused(self, faults, grid, block):
        with pytest.raises(RuntimeError, match="cudaErrorInvalidConfiguration"):
            faults.launch(grid, block, 0, 0)

    @pytest.mark.parametrize(
        ("grid", "block"), [((1, 1, 1), (1024, 1, 1)), ((3, 2, 4), (2, 3, 64)), ((1, 65535, 1), (1, 1, 1))]
    )
    def test_possible_shapes_run(self, faults, grid, block):
        faults.launch(grid, block, 0, 0)

    @pytest.mark.parametrize(("shared", "granted"), [(48 << 10, 0), (100 << 10, 100 << 10), (227 << 10, 227 << 10)])
    def test_shared_memory_that_was_granted(self, faults, shared, granted):
        faults.launch((1, 1, 1), (32, 1, 1), shared, granted)

    @pytest.mark.parametrize(
        ("shared", "granted"), [((48 << 10) + 1, 0), (101 << 10, 100 << 10), (1 << 10, (227 << 10) + 1)]
    )
    def test_shared_memory_that_was_not(self, faults, shared, granted):
        with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
            faults.launch((1, 1, 1), (32, 1, 1), shared, granted)

    def test_a_device_with_less(self, faults):
        with device_limits(multiprocessors=2, shared_per_block=64 << 10):
            faults.launch((1, 1, 1), (32, 1, 1), 64 << 10, 64 << 10)
            with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
                faults.launch((1, 1, 1), (32, 1, 1), 65 << 10, 65 << 10)
        faults.launch((1, 1, 1), (32, 1, 1), 65 << 10, 65 << 10)


class TestSchedule:
    def test_a_seed_gives_one_order(self, faults):
        orders = []
        for seed in (1, 1, 2):
            seed_schedule(seed)
            orders.append(faults.order(5))
        assert torch.equal(orders[0], orders[1])
        assert not torch.equal(orders[0], orders[2])

    def test_every_thread_of_every_block_runs_once(self, faults):
        order = faults.order(7)
        assert torch.equal(order.sort().values, torch.arange(7.0 * 64))

    def test_blocks_warps_and_lanes_come_in_many_orders(self, faults):
        first_blocks, first_warps, first_lanes = set(), set(), set()
        for seed in range(64):
            seed_schedule(seed)
            first = int(faults.order(4)[0])
            first_blocks.add(first // 64)
            first_warps.add(first // 32 % 2)
            first_lanes.add(first % 32)
        assert first_blocks == {0, 1, 2, 3}
        assert first_warps == {0, 1}
        assert len(first_lanes) > 20


class TestGraphs:
    def test_a_captured_launch_runs_when_the_graph_is_launched(self, faults, x):
        runtime_calls()
        assert torch.equal(faults.graph(x, 3, False), 3 * x)
        assert torch.equal(faults.graph(x, 0, False), 0 * x)
        calls = runtime_calls()
        assert calls.count("cudaGraphLaunch") == 3
        assert calls.count("cudaLaunchKernelEx") == 2
        assert not any("Synchronize" in call for call in calls)

    def test_to_synchronise_spoils_the_capture(self, faults, x):
        with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureUnsupported"):
            faults.graph(x, 1, True)
        assert "cudaStreamSynchronize" in runtime_calls()
        assert torch.equal(faults.graph(x, 2, False), 2 * x)


class TestNumbers:
    def test_every_half_widens_as_in_torch(self, faults):
        halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.half)
        torch.testing.assert_close(faults.widen(halves), halves.float(), rtol=0, atol=0, equal_nan=True)

    def test_narrowing_rounds_as_in_torch(self, faults):
        halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.half).float()
        between = torch.cat([halves.nextafter(torch.tensor(s)) for s in (-torch.inf, torch.inf)])
        middle = (halves + halves.roll(1)) / 2  # ties between neighbours
        around = torch.cat([middle.nextafter(torch.tensor(s)) for s in (-torch.inf, torch.inf)])
        rough = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 6, 100_000)
        edge = torch.tensor([65504.0, 65519.99, 65520.0, 1e10, 2**-24, 2**-25, 2**-25 * 1.0001, 0.0, -0.0])
        x = torch.cat([halves, between, middle, around, rough, edge, -edge])
        torch.testing.assert_close(faults.narrow(x), x.half(), rtol=0, atol=0, equal_nan=True)
        numbers = ~x.isnan()
        assert torch.equal(faults.narrow(x)[numbers].view(torch.int16), x.half()[numbers].view(torch.int16))
        assert faults.narrow(torch.tensor([torch.nan])).view(torch.int16).item() == 0x7FFF

    def test_tf32_rounds_to_nearest_and_ties_away(self, faults):
        unit = 2.0**-10
        x = torch.tensor([1 + unit / 2, 1 + unit * 0.49, -1 - unit / 2, torch.inf, -torch.inf, torch.nan, 3.4e38])
        rounded = torch.tensor([1 + unit, 1, -1 - unit, torch.inf, -torch.inf, torch.nan, torch.nan])
        rounded[6] = faults.tf32(x)[6]  # the largest numbers round to infinity or stay, by what they are
        torch.testing.assert_close(faults.tf32(x), rounded, rtol=0, atol=0, equal_nan=True)
        rough = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        assert ((faults.tf32(rough) - rough).abs() <= rough.abs() * 2.0**-11).all()
        assert (faults.tf32(rough).view(torch.int32) & 0x1FFF == 0).all()

    def test_matrix_units_multiply_as_a_plain_product(self, faults):
        generator = torch.Generator().manual_seed(0)
        a, b, d = (torch.randn(rows, 8, generator=generator) for rows in (16, 8, 16))
        narrow_a, narrow_b = (faults.tf32(matrix.flatten()).view(-1, 8).double() for matrix in (a, b))
        for seed in SEEDS:
            seed_schedule(seed)
            assert torch.equal(faults.multiply_add(a, b, d), (d.double() + narrow_a @ narrow_b).float())

    def test_shuffles_and_votes(self, faults):
        x = torch.randn(32, generator=torch.Generator().manual_seed(0))
        lane = torch.arange(32)
        down = torch.where(lane % 8 + 3 < 8, lane + 3, lane)
        up = torch.where(lane % 16 >= 3, lane - 3, lane)
        positive = x > 0
        votes = positive.sum() + positive * 100 + 1000
        sources = [(lane * 7 + 3) % 32, lane ^ 5, down, up, lane // 8 * 8 + 1]
        assert torch.equal(faults.exchange(x), torch.stack([*(x[source] for source in sources), votes.float()]))


def test_an_operator_runs_from_binding_to_kernel():
    operators = emulated()
    x = torch.randn(1000)
    assert torch.equal(operators.cuda_self_check(x), x + 1)
    assert operators.cuda_self_check(torch.empty(0)).shape == (0,)


def test_launches_are_recorded_with_memory_before_and_after():
    operators = emulated()
    x = torch.randn(1000)
    out, (launch,) = record(operators.cuda_self_check, x)
    assert torch.equal(out, x + 1)
    assert "add_one_kernel" in launch.kernel
    assert (launch.grid, launch.block, launch.shared_bytes) == ((4, 1, 1), (256, 1, 1), 0)
    source, target, size = (int.from_bytes(launch.arguments[i : i + 8], sys.byteorder) for i in (0, 8, 16))
    assert size == 1000
    at = slice(source - launch.base, source - launch.base + 4000)
    to = slice(target - launch.base, target - launch.base + 4000)
    assert launch.valid[at].all()
    assert launch.valid[to].all()
    assert launch.valid.sum() == 8000
    assert launch.before[at].tobytes() == x.numpy().tobytes()
    assert (launch.before[to] == 0xFF).all()
    assert launch.after[to].tobytes() == (x + 1).numpy().tobytes()
    assert (launch.after[~launch.valid] == 0xFF).all()
    torch.randn(10).numpy()  # memory is the usual again
