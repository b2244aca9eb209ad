"""Records how kernels are launched at the sizes that matter most, for the table of their resources.

    PYTHONPATH=.:tests python -m ptx.typical

Every kernel's launch is the one with most shared memory among `ptx.calls`, unless a call below launches it too.
"""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import torch
from emulated import RecordedLaunch, emulated

from build_tools.cuda_resources import LAUNCHES
from mhicl_fast.tasks import MultiTaskRegression
from mhicl_fast.train.objective import Objective
from ptx import calls
from ptx.calls import CALLS, Call

# The study's sizes: 100 tokens of 50 covariates and a label, 8 heads; and attention as in a small transformer.
LENGTH, DIM_X, HEADS = 100, 50, 8
TOKENS, HEAD_DIM = 81, 32


def flow_step(estimator: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """A step of the study's training, for few prompts."""
    asked = Objective(MultiTaskRegression(DIM_X, 1, LENGTH, noise_std=0.1), estimator, 2, 1)
    kq, ov = (0.1 * calls.numbers(HEADS, rows, DIM_X + 1, dtype=dtype) for rows in (DIM_X + 1, 1))
    kq[:, DIM_X:] = 0
    options = {**asked.native_estimate(), "step": 0, "first_prompt": 0}
    return emulated().flow_step, kq, ov, *asked.native_distribution(), options


def typical() -> list[Call]:
    """Calls at those sizes."""
    made = []
    for dtype, tf32 in ((torch.float32, False), (torch.float64, False), (torch.float32, True)):
        of_heads = [
            partial(calls.prompt_attention, HEADS, dtype, LENGTH, DIM_X + 1),
            partial(calls.prompt_attention_backward, HEADS, dtype, LENGTH, DIM_X + 1),
            *(partial(flow_step, estimator, dtype) for estimator in ("sampled", "conditional")),
        ]
        of_tokens = [
            partial(calls.attention, TOKENS, HEAD_DIM, dtype, TOKENS),
            partial(calls.attention_backward, TOKENS, HEAD_DIM, dtype, TOKENS),
        ]
        made += [Call(make, tf32=tf32) for make in of_heads + of_tokens]
        made.append(Call(partial(calls.sampled, 2, LENGTH, DIM_X, 1, dtype, False)))
    return made


def asked(launch: RecordedLaunch) -> dict[str, int]:
    """What the launch asks for."""
    return {"threads": math.prod(launch.block), "shared": launch.shared_bytes}


def main() -> None:
    """Write the launches."""
    found: dict[str, dict[str, int]] = {}
    for name, call in CALLS.items():
        for launch in call.launches():
            if launch.kernel not in found or launch.shared_bytes > found[launch.kernel]["shared"]:
                found[launch.kernel] = asked(launch)
        print(name, flush=True)
    for call in typical():
        for launch in call.launches():
            found[launch.kernel] = asked(launch)
    lines = [f'  "{kernel}": {json.dumps(found[kernel])}' for kernel in sorted(found)]
    LAUNCHES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
