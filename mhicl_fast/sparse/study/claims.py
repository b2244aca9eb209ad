"""The study's claims, and the summary with what holds of them. How they are judged is in `verdicts`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...train.folder import write_json
from ..comparison.estimators import BEST_LASSO, RIDGE, algorithm, descent
from . import checks
from .checks import LITTLE, SIMILAR
from .config import run_name
from .experiments import STEPS
from .results import LoadedStudy
from .verdicts import Claim, judge

_WHERE = "at the largest n, for each σ²"
CLAIMS = (
    Claim(
        "every increase of the number of heads lowers the risk at equal width",
        f"risk ({_WHERE}) of each model − that of the next one up > 0",
        checks.more_heads,
    ),
    Claim(
        "the most heads have a lower risk than the fewest",
        f"risk of the fewest heads / the most ({_WHERE}) > 1",
        checks.most_against_fewest,
    ),
    Claim(
        "the first layer uses all of its heads",
        "share of each of its H heads in the rises of risk by masking > 1/(2H), for the most heads",
        checks.first_layer,
    ),
    Claim(
        "each later layer is dominated by one head",
        "share of its dominant head, chosen on other prompts, > 1/2, for the most heads",
        checks.later_layers,
    ),
    Claim(
        "pruning each later layer to its dominant head costs little",
        f"risk of the pruned model / the full one ({_WHERE}) < {LITTLE}, for the most heads",
        checks.pruned("pruned", "full", LITTLE),
    ),
    Claim(
        "after brief training the pruned model is about as good as the full one",
        f"risk of the pruned model, trained on, / the full one ({_WHERE}) < {LITTLE}, for the most heads",
        checks.pruned("trained on", "full", LITTLE),
    ),
    Claim(
        "the dominant head is the one to keep in the later layers",
        f"risk with another head kept, chosen at random, − that with the dominant one ({_WHERE}) > 0",
        checks.dominant_is_best,
    ),
    Claim(
        "the pruned model beats the single-head model without more training",
        f"risk of the pruned model / the single-head one ({_WHERE}) < 1, for the most heads",
        checks.pruned("pruned", "single", 1.0),
    ),
    Claim(
        "the pruned model beats the single-head model after brief training",
        f"risk of the pruned model, trained on, / the single-head one ({_WHERE}) < 1, for the most heads",
        checks.pruned("trained on", "single", 1.0),
    ),
    Claim(
        "states after the first layer are better features for gradient descent than the covariates",
        "risk of t steps on the best map of x − that on the best map of h¹ > 0 for each t, for the most heads",
        checks.better_features,
    ),
    Claim(
        "many heads make better features in the first layer than the fewest",
        "risk of t steps on the best map of h¹ of the fewest heads − that of the most > 0 for each t",
        checks.better_features_of_heads,
    ),
    Claim(
        "states after the first layer hold the preprocessed covariates r̂_j x_ij",
        "R² of their linear regression on h¹ > 1/2, and greater than on h⁰, for the most heads",
        checks.holds_preprocessed,
    ),
    Claim(
        "later layers predict as gradient steps on preprocessed covariates do",
        f"cosine of the coefficients implied after each layer from the second on with those of the nearest step > "
        f"{SIMILAR}, for the most heads. Any two good estimates are alike: it is the next claim that tells them apart",
        checks.like_steps,
    ),
    Claim(
        "later layers are nearer to gradient descent on preprocessed covariates than on raw ones",
        "E‖ŵ − βᵗ‖²/E‖w‖² at the nearest step of raw descent − that of preprocessed > 0 after each layer from the "
        "second on, for the most heads",
        checks.rather_preprocessed,
    ),
    *(
        Claim(
            f"the model of the most heads beats {name}",
            f"risk of {name} / the model's ({_WHERE}) > 1",
            checks.against(*estimators),
        )
        for name, estimators in (
            (f"the algorithm after {STEPS[1]} steps", (algorithm(STEPS[1]),)),
            (f"the algorithm after {STEPS[-1]} steps", (algorithm(STEPS[-1]),)),
            (f"gradient descent after {STEPS[1]} steps with the best step size", (descent(STEPS[1]),)),
            ("ridge regression with the Bayes penalty", (RIDGE,)),
            ("the Lasso with the best penalty", (BEST_LASSO,)),
        )
    ),
)


def write_summary(study: LoadedStudy, failures: Mapping[str, str]) -> None:
    """Write summary.json: the claims with their verdicts, and why what failed did."""
    claims = [judge(claim, study, study.study.seeds) for claim in CLAIMS]
    content = {"claims": claims, "risk": _risks(study), "failed": dict(failures)}
    write_json(study.path / "summary.json", content)


def _risks(study: LoadedStudy) -> list[dict[str, Any]]:
    """The risks of each number of heads at the largest n, for each noise variance: of each seed with its standard error
    over prompts, their mean, and its standard error over seeds, None unless there are three."""
    found = []
    for heads in study.study.heads:
        named = {seed: run_name(heads, seed) for seed in study.risk}
        seeds = {seed: study.risk[seed] for seed, name in named.items() if name in study.risk[seed].names}
        each = {seed: risk.risk[risk.names.index(named[seed]), -1] for seed, risk in seeds.items()}
        values = np.array([risk.value for risk in each.values()])
        several = len(values) > 2
        found.append(
            {
                "heads": heads,
                "seeds": [
                    {"seed": seed, "value": risk.value.tolist(), "se": risk.se.tolist()} for seed, risk in each.items()
                ],
                "mean": values.mean(0).tolist() if len(values) else None,
                "se_over_seeds": (values.std(0, ddof=1) / np.sqrt(len(values))).tolist() if several else None,
            }
        )
    return found
