"""The algorithm against other estimators: a table, curves of the risk, and the map of where it wins."""

from .compare import compare, comparison_table
from .config import ComparisonConfig

__all__ = ["ComparisonConfig", "compare", "comparison_table"]
