"""Tests that need a GPU: skipped, with the reason, where there is none.

MHICL_TEST_DEVICE=cpu runs their bodies on the CPU, which tests the tests; =emulated does that with the GPU's kernels,
run by the emulation of tests/emulation in the CPU's place.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from on_device import DEVICE, EMULATED, use_emulated_kernels, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason, ours = why_not(), Path(__file__).resolve().parent
    for item in items:
        if not item.path.resolve().is_relative_to(ours):
            continue
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif DEVICE.type == "cpu" and item.get_closest_marker("hardware"):
            item.add_marker(pytest.mark.skip(reason="has nothing to test without a GPU"))
        elif EMULATED and item.get_closest_marker("large"):
            item.add_marker(pytest.mark.skip(reason="would take the emulation minutes"))


@pytest.fixture(autouse=True, scope="session")
def _device() -> None:
    if why_not() is not None:
        return
    if EMULATED:
        use_emulated_kernels()
    elif DEVICE.type == "cuda":
        torch.cuda.set_device(DEVICE)  # whose streams and graphs the tests mean
