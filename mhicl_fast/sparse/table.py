"""The table that commands print about a run."""

from __future__ import annotations

from ..train.wording import align, number, uncertain, whole
from .config import SparseConfig
from .loaded import SparseRun


def results_table(run: SparseRun) -> str:
    """The results of a finished run as aligned lines for a person to read; ValueError for another."""
    summary = run.summary
    if summary is None:
        raise ValueError(f"the run in {run.path} is not finished")
    zero = number(zero_risk(run.config))
    risks = zip(*(summary[key] for key in ("noise_variance", "excess_risk", "excess_risk_se", "ridge_risk")))
    rows = [
        ("noise variance", "excess risk", "ridge", "always 0"),
        *((f"{level:g}", uncertain(risk, error), number(ridge), zero) for level, risk, error, ridge in risks),
    ]
    facts = [
        ("evaluated on", f"{whole(summary['eval_prompts'])} fresh prompts each, ± their standard error"),
        (
            "last step's loss",
            f"{number(summary['final_loss'])}, of prompts of {run.metrics['context_length'][-1]:.0f} examples",
        ),
        ("steps", f"{whole(summary['steps'])}, {whole(summary['prompts_seen'])} prompts"),
        ("time", f"{summary['wall_s']:.1f} s, {whole(round(summary['prompts_seen'] / summary['wall_s']))} prompts/s"),
        ("folder", str(run.path)),
    ]
    return f"{align(rows)}\n\n{align(facts)}"


def zero_risk(config: SparseConfig) -> float:
    """The risk of predicting 0: E (w·x)² = s/d · tr Σ, as E wwᵀ = s/d · Id."""
    covariance = config.task().covariance
    trace = config.dim_x if covariance is None else float(covariance.trace())
    return config.sparsity / config.dim_x * trace
