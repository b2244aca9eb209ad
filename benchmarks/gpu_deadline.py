"""Time that several stages share."""

from __future__ import annotations

import time


class Deadline:
    """Seconds that are left, and what was left out for want of them."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.left_out: list[str] = []

    def remaining(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def part(self, seconds: float) -> float:
        """So many seconds, or what is left."""
        return min(seconds, self.remaining())

    def allows(self, seconds: float, what: str) -> bool:
        """Whether there is time for something that takes so long; if not, it is noted as left out."""
        if self.remaining() >= seconds:
            return True
        self.left_out.append(f"{what}: no time left")
        return False
