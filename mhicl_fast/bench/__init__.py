"""How fast the operators are here: times, memory and errors against PyTorch's own ways, and this machine's roofs.

`run` measures and gives a `Report`; `write_report` and `read_report` keep one as JSON, `report_table` and
`compare_reports` put it in words, `bench_figure` draws it. The command `mhicl bench` does all of that.
"""

from __future__ import annotations

from .comparison import compare_reports
from .errors import BenchFailedError, BenchInputError
from .figure import bench_figure
from .measuring import Plan, run
from .random_shapes import random_shapes
from .results import Entry, Report, ShapeResult, read_report, write_report
from .roofs import Roofs, fma_peak, read_bandwidth
from .shapes import AttentionShape, PromptShape, default_shapes
from .table import report_table
from .timing import Timing, time_in_turns

__all__ = [
    "AttentionShape",
    "BenchFailedError",
    "BenchInputError",
    "Entry",
    "Plan",
    "PromptShape",
    "Report",
    "Roofs",
    "ShapeResult",
    "Timing",
    "bench_figure",
    "compare_reports",
    "default_shapes",
    "fma_peak",
    "random_shapes",
    "read_bandwidth",
    "read_report",
    "report_table",
    "run",
    "time_in_turns",
    "write_report",
]
