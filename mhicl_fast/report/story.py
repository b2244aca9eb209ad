"""How the run went: the three phases, and which head took which task when."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from ..plots import allocation_figure, loss_figure
from ..train.wording import count, number, shared_heads, whole
from .content import Block, Paragraph, Picture, Section, Table
from .drawing import inline_svg
from .findings import Findings
from .overview import moment

_SETTLED = 0.02  # of the largest value: a smaller change over the last tenth of a run's records is none


def phases(found: Findings) -> Section:
    """The story of the loss, phase by phase."""
    picture = Picture(
        inline_svg(loss_figure(found.run), "loss", "Loss against flow time with the three phases and theory's losses"),
        "Loss of every recorded step (an estimate on that step's prompts) against flow time, with the solutions of "
        "the ODE where there are any, the phases as bands, and theory's losses as dashed lines. The diamond is the "
        "loss evaluated on fresh prompts.",
    )
    blocks: list[Block] = [picture, *(Paragraph(Markup(text)) for text in _told(found))]
    if found.config.n_tasks > 1:
        blocks.append(_task_table(found))
    return Section("phases", "Three phases", blocks)


def _told(found: Findings) -> list[str]:
    """One paragraph for each phase that there was."""
    ends = [found.summary["phases"][f"{name}_end"] for name in ("warmup", "emergence")]
    start, final = _loss_at(found, 0.0), found.summary["eval_loss"]
    if ends[0] is None or ends[1] is None:
        return [
            "No task's learnt share has come to 5 %, so the phases are not told apart: the run is in warm-up, or its "
            f"weights are not read in the axes of the covariates. The loss was {number(start)} at the start and is "
            f"{number(final)} now."
        ]
    warm, emerged = (_loss_at(found, end["flow_time"]) for end in ends)
    still = "hardly moves" if abs(start - warm) < 0.1 * abs(start - emerged) else "moves"
    end = float(found.run.metrics["flow_time"][-1])
    return [
        f"<b>Warm-up</b> (to {moment(ends[0])}): heads drift from their start, the loss {still}, from "
        f"{number(start)} to {number(warm)}.",
        f"<b>Emergence</b> (to {moment(ends[1])}): {_learnt(found)}, and the loss goes to {number(emerged)}.",
        f"<b>Convergence</b> (to flow time {number(end)}, step {whole(found.summary['steps'])}): {_settled(found)}.",
        *_stay(found),
    ]


def _loss_at(found: Findings, time: float) -> float:
    return float(np.interp(time, found.run.metrics["flow_time"], found.run.metrics["loss"]))


def _learnt(found: Findings) -> str:
    learnt = sum(end is not None for end in found.summary["phases"]["task_emergence_end"])
    if found.config.n_tasks == 1:
        return "the task is learnt"
    order = [str(task) for task in np.argsort(found.half_learnt, kind="stable") if np.isfinite(found.half_learnt[task])]
    some = "every task is" if learnt == found.config.n_tasks else f"{learnt} of {found.config.n_tasks} tasks are"
    return f"{some} learnt" + (f", in the order {', '.join(order)}" if len(order) > 1 else "")


def _settled(found: Findings) -> str:
    change = max(_late_change(found.run.metrics[name]) for name in ("mu", "omega"))
    moved = "the values settle"
    if change > _SETTLED:
        moved = f"the values still move, by {number(100 * change, 2)} % of the largest in the last tenth"
    return f"{moved}; the evaluated loss is {number(found.summary['eval_loss'])} in the end"


def _late_change(values: np.ndarray) -> float:
    """Change of values (T, H, I) from the last but one to the last tenth of the records, relative to the largest."""
    tenth = max(1, len(values) // 10)
    late, before = values[-tenth:].mean(0), values[-2 * tenth : -tenth].mean(0) if len(values) > tenth else values[0]
    return float(np.abs(late - before).max() / np.abs(late).max())


def _stay(found: Findings) -> list[str]:
    """The plateau and the escape from it, where seen."""
    plateau, escape = found.summary["plateau"], found.summary["escape"]
    if plateau is None:
        return []
    stay = (
        f"from flow time {number(plateau['start'])} to {number(plateau['end'])} the loss stays near that of one head "
        f"per task, at {number(plateau['loss'])} on average"
    )
    if escape is None:
        return [f"<b>Plateau</b>: {stay}."]
    return [
        f"<b>Plateau and escape</b>: {stay}. By {number(escape['time'])} it has fallen 20 % "
        "below that state: heads no longer serve one task each, and together do better."
    ]


def _task_table(found: Findings) -> Table:
    phases = found.summary["phases"]
    pairs = zip(phases["task_warmup_end"], phases["task_emergence_end"])
    rows = [
        (f"task {task}", moment(warm), moment(emerged), number(float(found.run.metrics["share"][-1, task]), 3))
        for task, (warm, emerged) in enumerate(pairs)
    ]
    caption = (
        "Each task's own phases: when its learnt share reaches 5 % and 95 % of the final one, in the last column. "
        "Final is what the last record has: in a run that stops while a task is being learnt, emergence seems to end "
        "there."
    )
    return Table(caption, ("Task", "Warm-up ends", "Emergence ends", "Final share"), rows)


def winners(found: Findings) -> Section:
    """Predicted against observed winners and times."""
    summary = found.summary
    picture = Picture(
        inline_svg(allocation_figure(found.run), "allocation", "Share of every head in every task"),
        "Shares μ·ω at the end. A square marks the head that took the task (it holds more than half of the shares' "
        "sizes)" + (", a star the head that was predicted to." if _any(summary["predicted_allocation"]) else "."),
    )
    if summary["predicted_times"] is None:
        text = f"No prediction: {summary.get('prediction_note') or 'the theory does not cover this start'}."
    elif found.config.parameters == "combined":
        text = (
            "The start alone predicts when tasks are learnt. While little is learnt, tasks do not see each other and "
            "each head's μ and ω of a task drive one another; in this flow all heads grow together and keep their "
            "differences, so that no head leaves the others behind. The times are those at which half of the task is "
            "learnt."
        )
    else:
        text = (
            "The start alone predicts who wins and when. While little is learnt, tasks do not see each other and each "
            "head's μ and ω of a task drive one another; the head that gets to a large value first takes the task, "
            "and the others are left behind. The times are those at which half of the task is learnt."
        )
    if summary["predicted_times"] is not None and summary.get("prediction_note"):
        text += f" Here there are times only: {summary['prediction_note']}."
    blocks: list[Block] = [Paragraph(text), _winner_table(found), picture]
    shared = shared_heads(summary["allocation"])
    if shared:
        blocks.insert(2, Paragraph(_shared(shared)))
    return Section("winners", "Which head takes which task", blocks)


def _shared(shared: dict[int, list[int]]) -> str:
    return " ".join(
        f"Head {head} is shared by tasks {' and '.join(map(str, tasks))}, which divide its attention."
        for head, tasks in shared.items()
    )


def _winner_table(found: Findings) -> Table:
    summary = found.summary
    n_tasks = found.config.n_tasks
    predicted_times = summary["predicted_times"] or [None] * n_tasks
    predicted_heads = summary["predicted_allocation"] or [-1] * n_tasks
    columns: dict[str, Sequence[str]] = {}
    if summary["predicted_times"] is not None:
        columns["Predicted head"] = [_head(head) for head in predicted_heads]
    columns["Observed head"] = [_head(head) for head in summary["allocation"]]
    if summary["predicted_times"] is not None:
        columns["Predicted time"] = [number(math.inf if time is None else time) for time in predicted_times]
    if found.half_learnt_ode is not None:
        columns["Time in the ODE"] = [number(time) for time in found.half_learnt_ode.tolist()]
    columns["Time in the run"] = [number(time) for time in found.half_learnt.tolist()]
    rows = [(f"task {task}", *(column[task] for column in columns.values())) for task in range(n_tasks)]
    caption = (
        f"Winners and times (flow time at which half of the task is learnt, ∞ for never) of {count(n_tasks, 'task')}; "
        "– where no head holds a majority of the task, or none is predicted to."
    )
    return Table(caption, ("Task", *columns), rows, numeric=True)


def _any(heads: Sequence[int] | None) -> bool:
    return heads is not None and max(heads) >= 0


def _head(head: int) -> str:
    return f"head {head}" if head >= 0 else "–"
