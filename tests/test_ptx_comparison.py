"""What the replay of generated code takes for rounding, and what for a difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ptx.generated import ROUNDING, Tolerance, differences


def differ(a: Any, b: Any, kind: Any, tolerance: Tolerance = ROUNDING) -> bool:
    mine, theirs = (np.array([1.0, x, 3.0, 4.0], kind).view(np.uint8) for x in (a, b))
    return bool(len(differences(mine, theirs, tolerance)))


@pytest.mark.parametrize(
    ("a", "b", "kind", "different"),
    [
        (2.0, np.nextafter(np.float32(2), np.float32(3)), np.float32, False),
        (2.0, 2.001, np.float32, True),
        (1e-9, -1e-9, np.float32, False),
        (np.nan, np.nan, np.float32, False),
        (np.nan, 2.0, np.float32, True),
        (np.inf, 2.0, np.float32, True),
        (-0.7, 0.7, np.float32, True),
        (2.0, 2.0 + 1e-13, np.float64, False),
        (2.0, 2.0 + 1e-9, np.float64, True),
        (7, 8, np.int32, True),
        (0, 1, np.int32, True),
        (7, 8, np.int64, True),
        (2**40, 2**40 + 1, np.int64, True),
    ],
)
def test_what_differs(a: Any, b: Any, kind: Any, different: bool) -> None:
    assert differ(a, b, kind) is different


def test_halves() -> None:
    halves = Tolerance(1e-3, 1e-3, halves=True)
    assert not differ(2.0, np.nextafter(np.float16(2), np.float16(3)), np.float16, halves)
    assert differ(2.0, 2.1, np.float16, halves)
    assert differ(2.0, np.nextafter(np.float16(2), np.float16(3)), np.float16)
