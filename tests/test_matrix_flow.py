"""Noise-free flows of full weights: against the spectral ODEs, against other integrators, and interrupted."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from spectral_tasks import block_task, demo_task, overlapping_task

from mhicl_fast.spectral import ShortContextWarning, asymptotic_loss, solve, theory
from mhicl_fast.spectral.asymptotic import exponential_loss
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train import Combined, Factored, Objective, initial_parameters, population_loss
from mhicl_fast.train.checkpoints import CheckpointError
from mhicl_fast.train.matrix.flow import MatrixFlowError, matrix_flow
from mhicl_fast.train.matrix.records import FlowRecords
from mhicl_fast.train.parameters import pull_back

ORDERS = ("leading", "first")
SCALE = 0.8
TASK = block_task((3, 2), 500, noise_std=0.3, signal=[1.0, 1.5])


def factored(task, v_o, v_v, kappa_q, kappa_k, scale=SCALE):
    """Factored weights with these values on their diagonals: v (H, I), kappa (H, d)."""
    heads, d, dim = len(v_o), task.dim_x, task.dim
    w_q, w_k, w_v = torch.zeros(3, heads, dim, dim, dtype=torch.float64)
    w_o = torch.zeros(heads, task.n_tasks, dim, dtype=torch.float64)
    w_q[:, :d, :d] = torch.diag_embed(torch.as_tensor(kappa_q))
    w_k[:, :d, :d] = torch.diag_embed(torch.as_tensor(kappa_k))
    w_v[:, d:, d:] = torch.diag_embed(torch.as_tensor(v_v))
    w_o[:, :, d:] = torch.diag_embed(torch.as_tensor(v_o))
    return Factored(w_q, w_k, w_v, w_o, scale)


def combined(weights):
    return Combined(*(tensor.clone() for tensor in weights.to_combined()))


def start(task, kind, heads=2, seed=0):
    """(weights, what `solve` takes for them): small positive values; the unbalanced factors differ by 20 percent."""
    rng = np.random.default_rng(seed)
    v = rng.uniform(0.2, 0.5, (heads, task.n_tasks))
    kappa = rng.uniform(0.2, 0.4, (heads, task.n_tasks)) @ np.asarray(task.support, float)
    if kind == "unbalanced":
        tilt, turn = rng.uniform(0.8, 1.2, v.shape), rng.uniform(0.8, 1.2, kappa.shape)
        parts = v * tilt, v / tilt, kappa * turn, kappa / turn
        return factored(task, *parts), ((parts[0], parts[1]), (parts[2], parts[3]))
    weights = factored(task, v, v, kappa, kappa)
    return (combined(weights) if kind == "combined" else weights), (v**2, SCALE * kappa**2)


@pytest.mark.parametrize("kind", ["factored", "unbalanced", "combined"])
@pytest.mark.parametrize(
    "task", [TASK, overlapping_task(), block_task((3,), 500)], ids=["blocks", "overlap", "one task"]
)
def test_first_order_is_the_spectral_ode(task, kind):
    heads = 1 if task.n_tasks == 1 else 2
    weights, values = start(task, kind, heads)
    flow = matrix_flow(task, weights, t_end=8.0, order="first", rtol=1e-8, atol=1e-11)
    expected = solve(task, *values, parameters=kind, scale=SCALE, order="first", t_end=8.0)
    t = np.linspace(0, 8, 17)
    np.testing.assert_allclose(flow.loss, expected(flow.t).loss, rtol=1e-6)
    np.testing.assert_allclose(flow(t).loss, expected(t).loss, rtol=1e-5)  # interpolated
    path = flow.spectral()
    assert path.residual.max() == 0
    np.testing.assert_allclose(path.mu, expected(flow.t).mu, atol=1e-5)
    np.testing.assert_allclose(path.omega, expected(flow.t).omega, atol=1e-5)
    assert flow.loss[0] - flow.loss[-1] > 1  # it has moved


@pytest.mark.parametrize("kind", ["factored", "combined"])
def test_exponential_loss_flows_as_the_leading_order_ode(kind):
    weights, values = start(TASK, kind)
    flow = matrix_flow(partial(exponential_loss, TASK), weights, t_end=8.0, rtol=1e-8, atol=1e-11)
    expected = solve(TASK, *values, parameters=kind, scale=SCALE, t_end=8.0)
    np.testing.assert_allclose(flow.loss, expected(flow.t).loss, rtol=1e-6)
    np.testing.assert_allclose(flow.spectral(task=TASK).mu[-1], expected.mu[-1], atol=1e-6)
    with pytest.raises(ValueError, match="needs the task"):
        flow.spectral()


def test_one_covariate():
    task = MultiTaskRegression(1, 1, 500, noise_std=0.3)
    weights = factored(task, *np.full((4, 1, 1), 0.3))
    flow = matrix_flow(task, weights, t_end=5.0, order="first", rtol=1e-8, atol=1e-11)
    expected = solve(task, [[0.09]], [[0.09 * SCALE]], scale=SCALE, order="first", t_end=5.0)
    assert flow.loss[-1] == pytest.approx(float(expected.loss[-1]), rel=1e-7)


def generic(task, heads, seed=1):
    """Full random weights in the closed form's domain, (Combined, Factored); the factors have width 3."""
    generator = torch.Generator().manual_seed(seed)
    d, dim, tasks, width = task.dim_x, task.dim, task.n_tasks, 3
    w_q, w_k, w_v = 0.22 * torch.randn(3, heads, width, dim, generator=generator, dtype=torch.float64)
    w_o = 0.3 * torch.randn(heads, tasks, width, generator=generator, dtype=torch.float64)
    w_k[:, :, d:] = 0
    w_v[:, :, :d] = 0
    factors = Factored(w_q, w_k, w_v, w_o)
    return combined(factors), factors


def independent_flow(task, weights, gradient, t_end):
    """The weights at t_end by DOP853 at tight tolerance, with gradients (kq, ov) -> (grad_kq, grad_ov)."""
    shapes = {name: tensor.shape for name, tensor in weights.tensors().items()}
    sizes = [shape.numel() for shape in shapes.values()]

    def unpack(y):
        parts = torch.from_numpy(y).split(sizes)
        return weights.with_tensors({name: part.view(shapes[name]) for name, part in zip(shapes, parts)})

    def velocity(_, y):
        at = unpack(y.copy())
        gradients = pull_back(at, *gradient(*at.to_combined()))
        return -torch.cat([gradients[name].reshape(-1) for name in shapes]).numpy()

    y = torch.cat([tensor.reshape(-1) for tensor in weights.tensors().values()]).numpy()
    return unpack(solve_ivp(velocity, (0, t_end), y, method="DOP853", rtol=1e-9, atol=1e-11).y[:, -1])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [0, 1], ids=["combined", "factored"])
@pytest.mark.parametrize("correlated", [False, True])
def test_full_weights_against_another_integrator(order, kind, correlated):
    root = np.eye(7) + 0.2 * np.random.default_rng(0).normal(size=(7, 7))
    task = overlapping_task(covariance=root @ root.T / 2 if correlated else None)
    weights = generic(task, 2)[kind]

    def gradient(kq, ov):
        kq, ov = kq.detach().requires_grad_(), ov.detach().requires_grad_()
        # rounding may leave entries in the blocks that have to be 0
        mask_kq, mask_ov = torch.zeros_like(kq), torch.zeros_like(ov)
        mask_kq[:, :7, :7] = mask_ov[:, :, 7:] = 1
        return torch.autograd.grad(asymptotic_loss(task, kq * mask_kq, ov * mask_ov, order=order), (kq, ov))

    flow = matrix_flow(task, weights, t_end=2.0, order=order, rtol=1e-8, atol=1e-11)
    expected = independent_flow(task, weights, gradient, 2.0)
    for name, tensor in flow.parameters().tensors().items():
        torch.testing.assert_close(tensor, expected.tensors()[name], rtol=0, atol=3e-7)
    assert (np.diff(flow.loss) < 0).all()


def test_frozen_prompts():
    """A function as the objective: the gradient flow of the loss on prompts that stay the same."""
    task = MultiTaskRegression(3, 2, 30, noise_std=0.2)
    weights, frozen = generic(task, 2)[1], {"n_prompts": 64, "seed": 7, "step": 3}
    flow = matrix_flow(partial(population_loss, task, **frozen), weights, t_end=3.0, rtol=1e-9, atol=1e-12)
    objective = Objective(task, "conditional", 64, 7)
    expected = independent_flow(task, weights, lambda kq, ov: objective(kq, ov, 3)[1:], 3.0)
    for name, tensor in flow.parameters().tensors().items():
        torch.testing.assert_close(tensor, expected.tensors()[name], rtol=0, atol=1e-7)
    assert flow.loss[-1] == pytest.approx(objective(*expected.to_combined(), 3).loss, rel=1e-8)


def test_another_basis_gives_the_same_values():
    rng = np.random.default_rng(3)
    turn = torch.zeros(7, 7, dtype=torch.float64)
    for block in (slice(0, 3), slice(3, 5)):
        size = block.stop - block.start
        turn[block, block] = torch.as_tensor(np.linalg.qr(rng.normal(size=(size, size)))[0])
    turn[5:, 5:] = torch.eye(2)
    weights, _ = start(TASK, "unbalanced")
    turned = Factored(turn @ weights.w_q @ turn.T, turn @ weights.w_k @ turn.T, weights.w_v, weights.w_o, SCALE)
    plain = matrix_flow(TASK, weights, t_end=6.0, order="first")
    other = matrix_flow(TASK, turned, t_end=6.0, order="first")
    np.testing.assert_allclose(other.loss[-1], plain.loss[-1], rtol=1e-9)
    path = other.spectral(bases=(turn[:5, :5], np.eye(2)))
    assert path.residual.max() < 1e-8 < other.spectral().residual.max()
    np.testing.assert_allclose(path.omega[-1], plain.spectral().omega[-1], atol=1e-8)
    with pytest.raises(ValueError, match=r"basis of covariates must be an orthogonal \(5, 5\)"):
        other.spectral(bases=(2 * turn[:5, :5], np.eye(2)))


def test_conserved_quantities():
    weights = generic(TASK, 2)[1]
    end = matrix_flow(TASK, weights, t_end=5.0, order="first", rtol=1e-9, atol=1e-12).parameters()

    def conserved(w):
        return w.w_q @ w.w_q.mT - w.w_k @ w.w_k.mT, w.w_v @ w.w_v.mT - w.w_o.mT @ w.w_o

    for after, before in zip(conserved(end), conserved(weights), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-7)
    assert float((end.w_q - weights.w_q).norm()) > 0.1


def test_tolerance():
    weights, values = start(TASK, "factored")
    exact = solve(TASK, *values, scale=SCALE, order="first", t_end=8.0, rtol=1e-11, atol=1e-13)
    gaps, interpolated = [], []
    for rtol in (1e-4, 1e-6, 1e-8):
        flow = matrix_flow(TASK, weights, t_end=8.0, order="first", rtol=rtol, atol=rtol / 1000)
        gaps.append(np.abs(flow.loss - exact(flow.t).loss).max())
        between = (flow.t[1:] + flow.t[:-1]) / 2
        interpolated.append(np.abs(flow(between).loss - exact(between).loss).max())
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2]
    assert gaps[2] < 1e-6
    assert interpolated[0] > 5 * interpolated[1] > 25 * interpolated[2]
    assert interpolated[2] < 3e-5


def test_trajectory():
    weights, _ = start(TASK, "factored")
    flow = matrix_flow(TASK, weights, t_end=3.0)
    every_third = matrix_flow(TASK, weights, t_end=3.0, record_every=3)
    assert set(every_third.t[:-1]) == set(flow.t[:-1][::3])
    records = len(flow.t)
    assert {name: tuple(tensor.shape) for name, tensor in flow.weights.items()} == {
        "w_q": (records, 2, 7, 7), "w_k": (records, 2, 7, 7), "w_v": (records, 2, 7, 7), "w_o": (records, 2, 2, 7),
    }  # fmt: skip
    assert (flow.t[0], flow.t[-1]) == (0, 3)
    torch.testing.assert_close(flow.weights["w_q"][0], weights.w_q, rtol=0, atol=0)
    state = flow(flow.t[[0, 2, -1]].reshape(3, 1))
    assert state.weights["w_o"].shape == (3, 1, 2, 2, 7)
    np.testing.assert_array_equal(state.loss[:, 0], flow.loss[[0, 2, -1]])
    torch.testing.assert_close(flow.parameters(flow.t[2]).w_q, flow.weights["w_q"][2], rtol=0, atol=0)
    assert flow.parameters().scale == SCALE
    assert flow([]).loss.shape == (0,)
    for outside in (-0.1, 3.1):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 3\]"):
            flow(outside)


def stopping_at(step):
    def observe(progress):
        if progress.steps == step:
            raise KeyboardInterrupt

    return observe


def require_same(one, other):
    np.testing.assert_array_equal(one.t, other.t)
    np.testing.assert_array_equal(one.loss, other.loss)
    for name, tensor in one.weights.items():
        assert torch.equal(tensor, other.weights[name])
    assert one.evaluations == other.evaluations


def test_records_keep_what_moves():
    thetas = np.zeros((4, 5))
    thetas[1, 2], thetas[2, 4], thetas[3, 0] = 1, 2, 3  # entries come, and go back to where they were
    records = [FlowRecords.beginning(thetas[0], 9.0)]
    for t in (1, 2, 3):
        records.append(records[-1].with_record(float(t), thetas[t], 9.0 - t))
    for count, kept in enumerate(records, start=1):
        assert kept.t == list(range(count))
        assert kept.loss == [9.0 - t for t in kept.t]
        np.testing.assert_array_equal([kept.theta(record) for record in range(count)], thetas[:count])
    assert [kept.moving.tolist() for kept in records] == [[], [2], [2, 4], [0, 2, 4]]


@pytest.mark.parametrize("record_every", [1, 4])
def test_interrupted_and_extended(tmp_path, record_every):
    weights, _ = start(TASK, "combined")
    flow = partial(matrix_flow, TASK, weights, order="first", rtol=1e-4, record_every=record_every)
    unbroken = flow(t_end=30.0)
    for step in (1, 2, 17, 40):
        file = tmp_path / f"{step}.npz"
        with pytest.raises(KeyboardInterrupt):
            flow(t_end=30.0, checkpoint=file, progress=stopping_at(step))
        seen = []
        require_same(flow(t_end=30.0, checkpoint=file, progress=seen.append), unbroken)
        assert seen[0].steps == step + 1  # nothing is done twice
    file = tmp_path / "extended.npz"
    for t_end in (0.01, 3.0, 3.0, 12.0, 30.0):
        extended = flow(t_end=t_end, checkpoint=file)
        assert extended.t[-1] == t_end
    require_same(extended, unbroken)
    seen = []
    require_same(flow(t_end=30.0, checkpoint=file, progress=seen.append), unbroken)
    assert len(seen) == 1  # nothing was left to do but the last stretch
    with pytest.raises(ValueError, match=r"at t = .* already, past t_end = 3"):
        flow(t_end=3.0, checkpoint=file)


KILLED = """
import os, random, signal, sys
import torch
torch.set_num_threads(1)
os.fsync = lambda descriptor: None
sys.path.insert(0, {tests!r})
from test_matrix_flow import TASK, matrix_flow, require_same, start
rng = random.Random({seed})
weights, _ = start(TASK, "factored")
file = {file!r}
def flow(**options):
    return matrix_flow(TASK, weights, t_end=6.0, rtol=1e-4, checkpoint_seconds=1e-9, **options)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def dying(call, number):
    original, count = getattr(os, call), [number]
    def faulty(*arguments):
        count[0] -= 1
        if not count[0]:
            if call == "write":
                original(arguments[0], arguments[1][: rng.randrange(len(arguments[1]))])
            die()
        return original(*arguments)
    setattr(os, call, faulty)
kills = 0
while True:
    call, number, after = rng.choice(["write", "replace", None]), rng.randrange(2, 9), rng.randrange(3, 12)
    child = os.fork()
    if child == 0:
        if call:
            dying(call, number)
        heard = []
        flow(checkpoint=file, progress=lambda p: heard.append(p) or (not call and len(heard) == after and die()))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    if status == 0:
        break
    kills += 1
assert kills > 5, kills
require_same(flow(checkpoint=file), flow())
"""


def test_killed_again_and_again(tmp_path):
    """The process dies at a random step, write or rename, over and over; the flow ends as an unbroken one."""
    tests = Path(__file__).parent
    code = KILLED.format(tests=str(tests), seed=0, file=str(tmp_path / "flow.npz"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tests.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_of_another_flow_is_refused(tmp_path):
    weights, _ = start(TASK, "factored")
    file = tmp_path / "flow.npz"
    matrix_flow(TASK, weights, t_end=0.1, checkpoint=file)
    before = file.read_bytes()
    others = [
        ({"objective": TASK.replace(noise_std=0.4)}, "task is"),
        ({"order": "first"}, "order is leading there and first here"),
        ({"rtol": 1e-5}, "rtol is 1e-07 there and 1e-05 here"),
        ({"parameters": start(TASK, "factored", seed=1)[0]}, "start is"),
        ({"parameters": combined(weights)}, "parameters is Factored there and Combined here"),
        ({"record_every": 2}, "record_every is 1"),
        ({"objective": partial(exponential_loss, TASK)}, "task is"),
    ]
    for changes, message in others:
        arguments = {"objective": TASK, "parameters": weights, "t_end": 0.1, "checkpoint": file} | changes
        with pytest.raises(CheckpointError, match=f"another flow: .*{message}"):
            matrix_flow(**arguments)
    assert file.read_bytes() == before
    function = partial(exponential_loss, TASK)
    matrix_flow(function, weights, t_end=0.1, checkpoint=tmp_path / "function.npz")
    with pytest.raises(CheckpointError, match="loss at the start is"):
        matrix_flow(lambda *w: 2 * function(*w), weights, t_end=0.1, checkpoint=tmp_path / "function.npz")
    array, other = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros(3))
    np.savez(other, identity=np.array("[1]"))
    cut, overwritten = before[:-40], before[:200] + b"\0" * 50 + before[250:]
    for damaged in (cut, b"", overwritten, array.getvalue(), other.getvalue()):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a usable checkpoint"):
            matrix_flow(TASK, weights, t_end=0.1, checkpoint=file)


def test_the_edge_of_the_domain(tmp_path):
    """Where first order falls without bound, the flow reaches the edge in finite time; what there is of it is kept."""
    task = block_task((1,), 1000)
    kq, ov = torch.zeros(1, 2, 2, dtype=torch.float64), torch.zeros(1, 1, 2, dtype=torch.float64)
    kq[0, 0, 0], ov[0, 0, 1] = 0.7, -5.0
    file = tmp_path / "flow.npz"
    for _ in range(2):
        with pytest.raises(MatrixFlowError, match=r"could not be followed past t = ") as caught:
            matrix_flow(task, Combined(kq, ov), order="first", t_end=100.0, checkpoint=file)
        flow = caught.value.trajectory
        assert 0 < flow.t[-1] < 100
        assert flow.spectral().omega[-1, 0, 0] == pytest.approx(0.5**0.5, abs=0.01)
        assert (np.diff(flow.loss) <= 0).all()
    kq[0, 0, 0] = 0.71
    with pytest.raises(ValueError, match="does not exist"):
        matrix_flow(task, Combined(kq, ov), t_end=1.0)


def test_bad_arguments():
    weights, _ = start(TASK, "factored")
    flow = partial(matrix_flow, TASK, t_end=1.0)
    single = Factored(*(tensor.float() for tensor in weights.tensors().values()), SCALE)
    with pytest.raises(TypeError, match=r"float64 parameters on the CPU, w_q is torch.float32"):
        flow(single)
    broken = weights.with_tensors(weights.tensors() | {"w_v": weights.w_v * np.nan})
    with pytest.raises(ValueError, match="w_v has NaN"):
        flow(broken)
    reading = weights.with_tensors(weights.tensors() | {"w_k": weights.w_k + 0.1})
    with pytest.raises(ValueError, match="logits must not read labels"):
        flow(reading)
    for changes, message in [
        ({"t_end": 0.0}, "t_end must be positive"),
        ({"rtol": 0.5}, "rtol must be between"),
        ({"atol": -1.0}, "atol must be positive"),
        ({"record_every": 0}, "record_every must be a positive integer"),
        ({"order": "second"}, "order must be one of"),
        ({"checkpoint": "x", "checkpoint_seconds": 0.0}, "checkpoint_seconds must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            flow(weights, **changes)
    with pytest.raises(TypeError, match="a tensor with one number"):
        matrix_flow(lambda kq, ov: kq, weights, t_end=1.0)
    with pytest.raises(ValueError, match="loss at the start must be finite"):
        matrix_flow(lambda kq, ov: kq.sum() * np.nan, weights, t_end=1.0)


def test_first_order_warns_once_for_short_contexts():
    task = block_task((3,), 100)
    weights, _ = start(task, "factored", heads=1)
    with pytest.warns(ShortContextWarning, match="L = 100") as caught:
        matrix_flow(task, weights, t_end=0.5, order="first")
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_zero_start_stays():
    weights = factored(TASK, *np.zeros((2, 2, 2)), *np.zeros((2, 2, 5)))
    flow = matrix_flow(TASK, weights, t_end=1e6)
    assert flow.loss.tolist() == [flow.loss[0]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["factored", "combined"])
def test_thirty_covariates_and_four_heads_to_the_limit(kind):
    """In tens of thousands of evaluations at most, where an ordinary explicit method takes hundreds of thousands."""
    task = demo_task()
    weights = initial_parameters(task, 4, start="small", seed=0, scale=1.0, size=0.01, parameters=kind)
    flow = matrix_flow(task, weights, t_end=3000.0, order="first")
    assert flow.evaluations < 30_000
    assert (np.diff(flow.loss) <= 1e-12 * flow.loss[0]).all()
    if kind == "factored":
        assert flow.loss[-1] == pytest.approx(theory(task, 4).one_head_per_task_first_order.loss, rel=1e-4)
    path = flow.spectral()
    expected = solve(task, path.mu[0], path.omega[0], parameters=kind, order="first", t_end=3000.0)
    np.testing.assert_allclose(flow.loss, expected(flow.t).loss, atol=1e-4 * flow.loss[0])
