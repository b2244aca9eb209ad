"""Distributions of prompts, and prompts drawn from them as a pure function of seed, step and index."""

from .multi_task import MultiTaskRegression, Prompts
from .sparse import SparsePrompts, SparseRegression

__all__ = ["MultiTaskRegression", "Prompts", "SparsePrompts", "SparseRegression"]
