"""Linearised stability of states: against closed forms, differences, and the growth of integrated displacements."""

from __future__ import annotations

import numpy as np
import pytest
from spectral_tasks import block_task, demo_task, overlapping_task, small_start

from mhicl_fast.spectral import plateau_and_escape, solve, spectral_gradient, theory
from mhicl_fast.spectral.stability import stability

UNEQUAL = block_task((8, 4, 6), 800, noise_std=0.3, signal=[1.0, 2.0, 0.5])


def one_head_per_task(task, heads):
    state = theory(task, heads).one_head_per_task
    mu, omega = np.zeros((2, heads, task.n_tasks))
    own = np.arange(task.n_tasks)
    mu[own, own], omega[own, own] = state.mu, state.omega
    return mu, omega


def gradient_at_others(task, mu):
    """g_i = (2/L) (λ_i d_i + σ²) μ_i."""
    power = np.asarray(task.signal) * np.asarray(task.support).sum(1) + task.noise_std**2
    return 2 / task.context_length * power * mu.max(0)


@pytest.mark.parametrize("heads", [3, 4])
def test_one_head_per_task_is_a_saddle_of_factored_flows(heads):
    mu, omega = one_head_per_task(UNEQUAL, heads)
    g = gradient_at_others(UNEQUAL, mu)
    found = stability(UNEQUAL, mu, omega, scale=0.7)
    assert found.velocity < 1e-12
    growing = np.sort(np.repeat(g, heads - 1))[::-1]
    np.testing.assert_allclose(found.rates[found.unstable], growing, rtol=1e-10)
    fastest = int(np.argmax(g))
    head = 1 if fastest == 0 else 0
    assert found.labels[0] == f"head {head} on task {fastest}: μ < 0 grows at rate {g[fastest]:.3g}"
    direction = {name: part[0] for name, part in found.directions.items()}
    assert direction["v_o"][head, fastest] == pytest.approx(-direction["v_v"][head, fastest])
    assert abs(direction["v_o"][head, fastest]) == pytest.approx(0.5**0.5)
    for label in (f"task {fastest}: μ > 0 decays", "κ_Q² − κ_K² stays", "v_O² − v_V² stays", "μ, ω decay"):
        assert any(label in text for text in found.labels)
    # what does not move: κ's of unused ω, and the conserved quantities
    assert np.sum(np.abs(found.rates) < 1e-9) == 2 * 3 * (heads - 1) + 2 * 3
    assert "9 of 48 directions grow" in str(stability(UNEQUAL, *one_head_per_task(UNEQUAL, 4)))


def test_the_same_state_drifts_in_combined_flows_and_is_one_sided_in_balanced_ones():
    mu, omega = one_head_per_task(UNEQUAL, 3)
    g = gradient_at_others(UNEQUAL, mu)
    combined = stability(UNEQUAL, mu, omega, parameters="combined")
    assert combined.velocity == pytest.approx(np.sqrt(2 * np.sum(g**2)), rel=1e-10)
    assert np.linalg.norm(combined.drift) == pytest.approx(combined.velocity, rel=1e-10)
    towards = np.einsum("k,khi->hi", combined.drift, combined.directions["mu"])
    np.testing.assert_allclose(towards, -g * (mu == 0), atol=1e-12)
    assert any("μ < 0" in label and "drift" in label for label in combined.labels)

    balanced = stability(UNEQUAL, mu, omega, parameters="factored", scale=0.7)
    assert balanced.velocity < 1e-12
    np.testing.assert_allclose(balanced.rates[balanced.unstable], np.sort(np.repeat(2 * g, 2))[::-1], rtol=1e-10)
    assert all("μ < 0 grows" in balanced.labels[mode] for mode in balanced.unstable)
    assert (balanced.directions["mu"][balanced.unstable].min((1, 2)) == -1).all()
    assert sum("ω > 0 stays" in label for label in balanced.labels) == 6


def weight_scaling(task, shapes, columns):
    size = np.asarray(task.support).sum(1) if columns == task.n_tasks else np.ones(columns)
    half = len(shapes) // 2
    parts = [np.ones(shape) for shape in shapes[:half]] + [np.sqrt(size) * np.ones(shape) for shape in shapes[half:]]
    return np.concatenate([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("order", ["leading", "first"])
@pytest.mark.parametrize("parameters", ["combined", "unbalanced"])
@pytest.mark.parametrize("task", [UNEQUAL, overlapping_task()], ids=["blocks", "overlap"])
def test_modes_are_those_of_the_finite_difference_jacobian(task, parameters, order):
    """At a random state: rates, directions and drift rebuild the velocity's change along any displacement."""
    rng = np.random.default_rng(1)
    columns = task.n_tasks if task is UNEQUAL else task.dim_x
    scale, pairs = 0.6, 2 if parameters == "unbalanced" else 1
    mus, omegas = 0.7 * rng.normal(size=(pairs, 2, task.n_tasks)), 0.4 * rng.normal(size=(pairs, 2, columns))
    count = np.asarray(task.support).sum(1) if columns == task.n_tasks else 1.0

    def velocity(parts):
        if parameters == "combined":
            by_mu, by_omega = spectral_gradient(task, *parts, order=order)
            return [-by_mu, -by_omega / count]
        v_o, v_v, kappa_q, kappa_k = parts
        by_mu, by_omega = spectral_gradient(task, v_o * v_v, scale * kappa_q * kappa_k, order=order)
        by_omega = scale * by_omega / count
        return [-v_v * by_mu, -v_o * by_mu, -kappa_k * by_omega, -kappa_q * by_omega]

    state = [*mus, *omegas]
    shapes = [part.shape for part in state]
    arguments = (mus[0], omegas[0]) if pairs == 1 else (tuple(mus), tuple(omegas))
    found = stability(task, *arguments, parameters=parameters, scale=scale, order=order)
    flat = np.concatenate([part.reshape(len(found.rates), -1) for part in found.directions.values()], axis=1)
    weight = weight_scaling(task, shapes, columns)
    np.testing.assert_allclose((flat * weight) @ (flat * weight).T, np.eye(len(flat)), atol=1e-10)

    change = rng.normal(size=flat.shape[1])
    moved = np.split(change, np.cumsum([part.size for part in state])[:-1])
    moved = [part.reshape(shape) for part, shape in zip(moved, shapes, strict=True)]
    ends = [velocity([s + sign * 1e-5 * m for s, m in zip(state, moved, strict=True)]) for sign in (1, -1)]
    expected = np.concatenate([(plus - minus).reshape(-1) / 2e-5 for plus, minus in zip(*ends, strict=True)])
    amplitudes = (flat * weight) @ (weight * change)
    np.testing.assert_allclose((found.rates * amplitudes) @ flat, expected, rtol=1e-6, atol=1e-7)
    now = np.concatenate([part.reshape(-1) for part in velocity(state)])
    np.testing.assert_allclose(found.drift @ flat, now, atol=1e-10)
    assert found.velocity == pytest.approx(np.linalg.norm(weight * now), rel=1e-10)
    assert (np.diff(found.rates) <= 0).all()


def arrays(start):
    """The arrays of a start in the form of `solve`, in order."""
    mu, omega = start
    return [*mu, *omega] if isinstance(mu, tuple) else [mu, omega]


@pytest.mark.parametrize("parameters", ["unbalanced", "factored", "combined"])
def test_displacements_grow_at_the_rate_given(parameters):
    """Along the fastest mode, integrated: b' = rate b + drift."""
    task = UNEQUAL
    mu, omega = one_head_per_task(task, 4)
    found = stability(task, mu, omega, parameters=parameters)
    size = 1e-7
    mode = 0 if parameters != "combined" else int(np.flatnonzero((found.rates > 1e-3) & (found.drift > 1e-3))[0])
    rate, drift = found.rates[mode], found.drift[mode]
    t_end = 0.01 if drift > 1e-6 else 3 / rate
    trajectory = solve(task, *found.displaced(size, mode), parameters=parameters, t_end=t_end, rtol=1e-11, atol=1e-16)
    end = trajectory(t_end)
    count = np.asarray(task.support).sum(1)
    amplitude = 0.0
    for name, at_start, at_end in zip(
        found.directions, arrays(found.displaced(0.0, mode)), end.factors or (end.mu, end.omega), strict=True
    ):
        weight = count if name in ("omega", "kappa_q", "kappa_k") else 1
        amplitude += np.sum(weight * found.directions[name][mode] * (at_end - at_start))
    if drift > 1e-6:
        expected = (size + drift / rate) * np.exp(rate * t_end) - drift / rate
    else:
        expected = size * np.exp(rate * t_end)
    assert amplitude == pytest.approx(expected, rel=2e-4)
    assert found.escape_time(size, target=expected, mode=mode) == pytest.approx(t_end, rel=1e-9)


def test_escape_from_the_plateau():
    """Ten thousandth parts of imbalance: the escape comes ln(10⁴)/g later, from 0.8247 to 0.474."""
    task = demo_task()
    state = theory(task, 3).one_head_per_task
    found = stability(task, *one_head_per_task(task, 3))
    mu, omega = small_start(0)
    times = []
    for imbalance in (1e-2, 1e-6):
        tilt = np.exp(imbalance * np.random.default_rng(1).uniform(-1, 1, (2, 3, 3)))
        factors = (mu**0.5 * tilt[0], mu**0.5 / tilt[0]), (omega**0.5 * tilt[1], omega**0.5 / tilt[1])
        trajectory = solve(task, *factors, parameters="unbalanced", t_end=3e6, atol=1e-14)
        plateau, escape = plateau_and_escape(trajectory.t, trajectory.loss, state.loss)
        assert state.loss == pytest.approx(0.8247, abs=5e-5)
        assert plateau.loss == pytest.approx(0.8247, rel=0.01)
        assert escape.final_loss == pytest.approx(0.474, abs=5e-4)
        times.append(escape.time)
    predicted = found.escape_time(1e-6) - found.escape_time(1e-2)
    assert predicted == pytest.approx(np.log(1e4) / found.rates[0], rel=1e-12)
    assert times[1] - times[0] == pytest.approx(predicted, rel=0.01)


def test_second_order_of_unused_omega():
    """Once μ_i^h < 0 of another head, ω_i^h < 0 grows: ∂Loss/∂ω_i^h per covariate is −2 λ_i b_i (1 − 1/e) μ_i^h."""
    task = UNEQUAL
    mu, omega = one_head_per_task(task, 4)
    mu[3] = -1e-6
    by_omega = spectral_gradient(task, mu, omega)[1][3] / np.asarray(task.support).sum(1)
    bias = 1 - mu.max(0) * omega.max(0)
    np.testing.assert_allclose(by_omega, 2e-6 * np.asarray(task.signal) * bias * (1 - 1 / np.e), rtol=1e-5)


def test_a_single_head_at_its_optimum_is_stable():
    task = demo_task()
    state = theory(task, 1).single_head
    for parameters in ("combined", "unbalanced", "factored"):
        found = stability(task, state.mu[None], state.omega[None], parameters=parameters)
        assert found.velocity < 1e-10
        assert len(found.unstable) == 0
        assert found.rates[-1] < -1
        assert found.escape_time(1e-3) == np.inf


def test_from_nothing_values_emerge_at_known_rates():
    """At 0 combined values grow as e^{2 λ √d t}, less half of 2 (λ d + σ²) / L; factors do not move."""
    task = block_task((4, 9), 500, signal=[1.0, 0.5])
    damping = np.array([4.0, 4.5]) / 500
    speed = np.sqrt(damping**2 + np.array([4.0, 3.0]) ** 2)
    zero = np.zeros((1, 2))
    combined = stability(task, zero, zero, parameters="combined")
    np.testing.assert_allclose(combined.rates[:2], speed - damping, rtol=1e-12)
    np.testing.assert_allclose(combined.rates[:1:-1], -speed - damping, rtol=1e-12)
    assert combined.labels[0] == "head 0 on task 0: μ, ω grow at rate 3.99"
    assert not stability(task, zero, zero).rates.any()
    assert len(stability(task, zero, zero, parameters="factored").unstable) == 0


def test_each_covariate_by_itself():
    """With ω per covariate, directions that split a support are seen too; the others keep their rates."""
    task = block_task((3, 2), 500, noise_std=0.3)
    mu, omega = one_head_per_task(task, 3)
    together = stability(task, mu, omega, parameters="combined")
    each = stability(task, mu, omega @ np.asarray(task.support, float), parameters="combined")
    assert each.directions["omega"].shape == (3 * (2 + 5), 3, 5)
    for rate in together.rates:
        assert np.abs(each.rates - rate).min() < 1e-9
    assert any("on covariate" in label for label in each.labels)


def test_escape_times():
    mu, omega = one_head_per_task(UNEQUAL, 3)
    found = stability(UNEQUAL, mu, omega)
    assert found.escape_time(1e-3, target=1e-1) == pytest.approx(np.log(100) / found.rates[0])
    marginal = int(np.flatnonzero(np.abs(found.rates) < 1e-9)[0])
    assert found.escape_time(0.0, mode=-1) == np.inf
    assert found.escape_time(1e-3, mode=marginal) == np.inf
    with pytest.raises(ValueError, match="0 <= size < target"):
        found.escape_time(2.0)


def test_bad_inputs_are_named():
    mu, omega = one_head_per_task(UNEQUAL, 3)
    for arguments, options, message in [
        ((mu[:, :2], omega), {}, "mu must be"),
        ((mu, omega[:2]), {}, "heads"),
        ((mu, omega), {"parameters": "other"}, "parameters must be one of"),
        ((mu, omega), {"order": "second"}, "order must be one of"),
        ((mu, omega), {"scale": 0.0}, "scale must be positive"),
        ((mu * np.nan, omega), {}, "mu must be finite"),
        ((mu, 3 * omega), {"order": "first"}, "does not exist"),
        (((mu, mu, mu), omega), {}, "pair"),
        ((mu[None], omega), {"parameters": "combined"}, "two dimensions"),
    ]:
        with pytest.raises(ValueError, match=message):
            stability(UNEQUAL, *arguments, **options)
