"""Pages about the study of sparse linear regression: about a study, a run, or the comparison of the algorithm."""

from .page import write_report

__all__ = ["write_report"]
