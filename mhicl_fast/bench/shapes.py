"""The shapes that are measured: how they are written, and what they cost at least."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from .errors import BenchInputError


class Cost(NamedTuple):
    """Operations or elements of the passes; those of both are the sum."""

    forward: int
    backward: int

    @property
    def both(self) -> int:
        return self.forward + self.backward


class Shape(ABC):
    """Sizes of one problem. `str` gives the text that `parse` takes."""

    operator: ClassVar[str]
    form: ClassVar[str]  # how the text is written

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Shape:
        """The shape that a text as `form` names; BenchInputError where it is none."""

    @property
    @abstractmethod
    def prompts(self) -> int:
        """Independent problems."""

    @property
    @abstractmethod
    def logits(self) -> int:
        """Logits of one prompt, hidden ones too."""

    @property
    @abstractmethod
    def operations(self) -> Cost:
        """Useful operations: multiplications and additions of the products that the mathematics needs, once each."""

    @property
    @abstractmethod
    def elements(self) -> Cost:
        """Elements that must move: inputs read once, outputs written once."""


@dataclass(frozen=True)
class AttentionShape(Shape):
    """Attention of `rows` queries per head over `keys` keys, on `heads` query heads and `key_heads` key heads."""

    batch: int
    heads: int
    key_heads: int
    rows: int
    keys: int
    dim: int
    value_dim: int
    causal: bool = False

    operator: ClassVar[str] = "attention"
    form: ClassVar[str] = "B,H,Lq,L,E[,Ev][,causal], H as heads or heads/key heads"

    @classmethod
    def parse(cls, text: str) -> AttentionShape:
        fields = [field.strip() for field in text.split(",")]
        causal = fields[-1] == "causal"
        fields = fields[:-1] if causal else fields
        if len(fields) not in (5, 6):
            raise BenchInputError(f"a shape of attention is written {cls.form}; got {text!r}")
        heads, slash, key_heads = fields[1].partition("/")
        sizes = _sizes([fields[0], heads, key_heads if slash else heads, *fields[2:]], cls.form, text)
        if sizes[1] % sizes[2]:
            raise BenchInputError(f"the query heads must be a multiple of the key heads; got {text!r}")
        batch, query_heads, shared_heads, rows, keys, dim = sizes[:6]
        return cls(batch, query_heads, shared_heads, rows, keys, dim, sizes[-1], causal)

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.key_heads else f"{self.heads}/{self.key_heads}"
        fields = [self.batch, heads, self.rows, self.keys, self.dim]
        fields += [self.value_dim] * (self.value_dim != self.dim) + ["causal"] * self.causal
        return ",".join(map(str, fields))

    @property
    def prompts(self) -> int:
        return self.batch

    @property
    def logits(self) -> int:
        return self.heads * self.rows * self.keys

    @property
    def seen_pairs(self) -> int:
        """Pairs of a row and a key that it sees, in one head: causal row i sees keys 0 to i."""
        if not self.causal:
            return self.rows * self.keys
        square = min(self.rows, self.keys)
        return square * (square + 1) // 2 + (self.rows - square) * self.keys

    @property
    def operations(self) -> Cost:
        """Forward q kᵀ and p v; backward dp = do vᵀ, dv = pᵀ do, dq = ds k and dk = dsᵀ q. The logits that a kernel may
        compute again are not counted."""
        product = 2 * self.batch * self.heads * self.seen_pairs * (self.dim + self.value_dim)
        return Cost(product, 2 * product)

    @property
    def elements(self) -> Cost:
        """Forward q, k, v in and out; backward q, k, v and the output's gradient in, three gradients out."""
        query = self.batch * self.heads * self.rows * self.dim
        key_value = self.batch * self.key_heads * self.keys * (self.dim + self.value_dim)
        out = self.batch * self.heads * self.rows * self.value_dim
        return Cost(query + key_value + out, 2 * (query + key_value) + out)


@dataclass(frozen=True)
class PromptShape(Shape):
    """Prompt attention on `n` prompts of `length` examples: `dim_x` covariates, `n_tasks` tasks, `heads` heads."""

    n: int
    length: int
    dim_x: int
    heads: int
    n_tasks: int

    operator: ClassVar[str] = "prompt_attention"
    form: ClassVar[str] = "N,L,d,H,I"

    @classmethod
    def parse(cls, text: str) -> PromptShape:
        fields = [field.strip() for field in text.split(",")]
        if len(fields) != 5:
            raise BenchInputError(f"a shape of prompt_attention is written {cls.form}; got {text!r}")
        return cls(*_sizes(fields, cls.form, text))

    def __str__(self) -> str:
        return f"{self.n},{self.length},{self.dim_x},{self.heads},{self.n_tasks}"

    @property
    def logits(self) -> int:
        return self.heads * self.length

    @property
    def dim(self) -> int:
        return self.dim_x + self.n_tasks

    @property
    def prompts(self) -> int:
        return self.n

    @property
    def operations(self) -> Cost:
        """Per pass 4 N H L D for two products with the context and 2 N H D² for one with KQ; OV's are far fewer."""
        one_pass = 4 * self.n * self.heads * self.length * self.dim + 2 * self.n * self.heads * self.dim**2
        return Cost(one_pass, one_pass)

    @property
    def elements(self) -> Cost:
        """Forward context, query, kq, ov in and out; backward the same in, two gradients of the weights out."""
        data = self.n * (self.length + 1) * self.dim
        weights = self.heads * self.dim * (self.dim + self.n_tasks)
        out = self.n * self.n_tasks
        return Cost(data + weights + out, data + 2 * weights + out)


OPERATORS: dict[str, type[Shape]] = {shape.operator: shape for shape in (AttentionShape, PromptShape)}

_DEFAULTS = {
    "attention": (
        "64,8,81,81,32,causal",
        "64,1,41,41,256",
        "64,8,41,41,32",
        "256,4,21,21,64",
        "512,2,40,40,6",
        "2000,8/1,1,100,51",
        "10000,2/1,1,40,6",
        "256,4,200,200,16",
        "16,8,512,512,64",
    ),
    "prompt_attention": ("2000,100,50,8,1", "1000,200,30,4,3", "4000,40,5,2,1", "500,1000,20,2,2"),
}


def default_shapes(operator: str) -> list[Shape]:
    """The shapes that are measured where none are given: those of public in-context-learning code."""
    return read_shapes(operator, _DEFAULTS[operator])


def read_shapes(operator: str, texts: Iterable[str]) -> list[Shape]:
    """Shapes from texts; one that holds no comma is a file of texts, a line each, where # begins a comment."""
    shapes: list[Shape] = []
    for text in texts:
        lines = [text] if "," in text else _lines(Path(text))
        shapes += [OPERATORS[operator].parse(line) for line in lines]
    return shapes


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchInputError(f"{str(file)!r} is neither a shape nor a file of shapes: {error}") from error
    return [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]


def _sizes(fields: list[str], form: str, text: str) -> list[int]:
    if not all(field.isascii() and field.isdigit() and int(field) > 0 for field in fields):
        raise BenchInputError(f"sizes must be positive integers, written {form}; got {text!r}")
    return [int(field) for field in fields]
