"""Loops in disassembled GPU code, and what their instructions are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

# Which unit of a multiprocessor an instruction keeps busy, by the beginning of its name; the first that fits. What is
# in none (branches, barriers, conversions of predicates) takes an issue slot alone, as all do.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "multiply-add": ("FFMA", "FADD", "FMUL", "HFMA2"),
    "double": ("DFMA", "DADD", "DMUL"),
    "integer product": ("IMAD",),
    "special": ("MUFU", "I2F.", "F2I", "F2F"),
    "shared": ("LDS", "STS"),
    "memory": ("LDG", "STG", "LDGSTS"),
    "shuffle": ("SHFL",),
    "integer": (
        "LOP", "IADD", "VIADD", "ISETP", "SHF", "LEA", "SEL", "FSEL", "FSETP", "FMNMX", "IMNMX", "VIMNMX", "IABS",
        "MOV", "PRMT", "I2FP", "PLOP3", "POPC", "SGXT", "DSETP",
    ),
}  # fmt: skip
_INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*)")
_LABEL = re.compile(r"(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class Loop:
    """A loop's instructions, from the target of its backward branch to that branch, inner loops counted once."""

    first: int
    last: int
    instructions: tuple[str, ...]
    innermost: bool

    @property
    def slots(self) -> int:
        """Issue slots of a warp."""
        return len(self.instructions)

    def count(self, *beginnings: str) -> int:
        """Instructions whose names begin so."""
        return sum(name.startswith(beginnings) for name in self.instructions)

    def mix(self) -> dict[str, int]:
        """Instructions by class, those in `CLASSES`."""
        found = Counter(classify(name) for name in self.instructions)
        return {name: found[name] for name in CLASSES if found[name]}


def classify(name: str) -> str:
    """The class of an instruction; "other" for what is in none."""
    return next((known for known, beginnings in CLASSES.items() if name.startswith(beginnings)), "other")


def functions(text: str) -> dict[str, list[Loop]]:
    """The loops of each function in what `nvdisasm -c` prints, by mangled name."""
    parts = re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]
    return {part.partition(":")[0]: list(_loops(part)) for part in parts}


def _loops(text: str) -> Iterator[Loop]:
    labels: dict[str, int] = {}
    names: list[str] = []
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        label, instruction = _LABEL.match(line.strip()), _INSTRUCTION.match(line.strip())
        if label:
            labels[label[1]] = len(names)
        if instruction:
            target = _TARGET.search(instruction[2])
            if target and instruction[1].startswith("BRA"):
                jumps.append((len(names), target[1]))
            names.append(instruction[1])
    spans = [(labels[target], at) for at, target in jumps if labels.get(target, at + 1) <= at]
    for first, last in spans:
        inner = any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans)
        yield Loop(first, last, tuple(names[first : last + 1]), not inner)


def smallest(loops: list[Loop], wanted: Callable[[Loop], bool]) -> list[Loop]:
    """The loops that are wanted and contain no other wanted one."""
    found = [loop for loop in loops if wanted(loop)]
    return [
        loop
        for loop in found
        if not any(other is not loop and loop.first <= other.first and other.last <= loop.last for other in found)
    ]
