"""Reports: every measurement on trained weights next to theory, as a value in Python or as a page about a run."""

from .analysis import Analysis, analyse
from .run_page import write_report

__all__ = ["Analysis", "analyse", "write_report"]
