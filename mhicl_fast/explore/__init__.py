"""A page of sliders that redraws the spectral ODEs' trajectories at once, served on this machine: `mhicl explore`.

`Scenario` is a setting of the sliders and `solve_scenario` solves it; neither needs Bokeh, which draws the page and
comes with `pip install "mhicl_fast[explore]"`.
"""

from __future__ import annotations

from .scenario import Scenario
from .solution import ScenarioError, Solution, solve_scenario

__all__ = ["ExploreError", "Scenario", "ScenarioError", "Solution", "serve", "solve_scenario"]


class ExploreError(RuntimeError):
    """The page cannot be served; the message says why."""


def serve(*, port: int = 0, open_browser: bool = True) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C; `port` 0 takes a free one, which is printed.

    Raises ExploreError where Bokeh is missing or the port cannot be had.
    """
    try:
        import bokeh  # noqa: F401
    except ModuleNotFoundError:
        raise ExploreError('the page needs Bokeh: pip install "mhicl_fast[explore]"') from None
    from .server import run

    run(port, open_browser)
