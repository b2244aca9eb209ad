"""Shapes of the benchmark: how they are read, what they cost by hand-computed numbers, how they are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mhicl_fast.bench import AttentionShape, BenchInputError, PromptShape, default_shapes, random_shapes
from mhicl_fast.bench.measuring import as_shapes
from mhicl_fast.bench.problem import Problem
from mhicl_fast.bench.random_shapes import DIM, HEADS, KEYS, MOST_LOGITS, MOST_PROMPTS, OPERATIONS


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("64,8,81,80,32,causal", AttentionShape(64, 8, 8, 81, 80, 32, 32, True)),
        ("2000,8/1,1,100,51", AttentionShape(2000, 8, 1, 1, 100, 51, 51)),
        ("2,6/3,4,5,7,9", AttentionShape(2, 6, 3, 4, 5, 7, 9)),
        ("2,6/3,4,5,7,9,causal", AttentionShape(2, 6, 3, 4, 5, 7, 9, True)),
    ],
)
def test_texts_of_attention(text: str, shape: AttentionShape) -> None:
    assert AttentionShape.parse(text) == shape
    assert AttentionShape.parse(text.replace(",", " , ")) == shape
    assert str(shape) == text


def test_texts_of_prompt_attention() -> None:
    assert PromptShape.parse("2000,100,50,8,1") == PromptShape(2000, 100, 50, 8, 1)
    assert str(PromptShape(2000, 100, 50, 8, 1)) == "2000,100,50,8,1"


@pytest.mark.parametrize(
    "text",
    ["1,2,3,4", "1,2,3,4,5,6,7", "1,2,3,4,x", "1,2,3,4,0", "1,-2,3,4,5", "1,3/2,3,4,5", "1,/,3,4,5", "1,2,3,4,5,cusal"],
)  # fmt: skip
def test_texts_that_are_no_shape(text: str) -> None:
    with pytest.raises(BenchInputError, match=rf"got '{text}'"):
        AttentionShape.parse(text)


def test_a_shape_of_the_other_operator_is_refused() -> None:
    with pytest.raises(BenchInputError, match=r"must be of attention, got PromptShape"):
        as_shapes("attention", [PromptShape(2, 3, 4, 5, 1)])
    with pytest.raises(BenchInputError, match=r"N,L,d,H,I; got '1,2,3,4,5,causal'"):
        as_shapes("prompt_attention", ["1,2,3,4,5,causal"])


def test_a_file_of_shapes(tmp_path: Path) -> None:
    file = tmp_path / "shapes"
    file.write_text("# mine\n64,8,41,41,32\n\n2,6/3,4,5,7  # shared\n")
    assert [str(shape) for shape in as_shapes("attention", [str(file), "1,1,1,2,3"])] == [
        "64,8,41,41,32", "2,6/3,4,5,7", "1,1,1,2,3"]  # fmt: skip
    with pytest.raises(BenchInputError, match="neither a shape nor a file"):
        as_shapes("attention", [str(tmp_path / "none")])


def test_operations_and_elements_of_attention() -> None:
    plain = AttentionShape(2, 6, 3, 4, 5, 7, 9)
    # 2 prompts, 6 heads, 4 · 5 pairs; a product with q or k takes 2 · 7 operations a pair, one with v or do 2 · 9.
    pairs = 2 * 6 * 20
    assert tuple(plain.operations) == (pairs * (14 + 18), pairs * (2 * 14 + 2 * 18))
    assert plain.operations.both == 3 * plain.operations.forward
    query, key, value, out = 2 * 6 * 4 * 7, 2 * 3 * 5 * 7, 2 * 3 * 5 * 9, 2 * 6 * 4 * 9
    assert tuple(plain.elements) == (query + key + value + out, 2 * (query + key + value) + out)


@pytest.mark.parametrize(("rows", "keys"), [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1)])
def test_causal_operations_count_the_pairs_that_are_seen(rows: int, keys: int) -> None:
    seen = int(torch.ones(rows, keys).tril().sum())
    assert AttentionShape(1, 1, 1, rows, keys, 1, 1, True).operations.forward == 4 * seen


def test_operations_of_prompt_attention() -> None:
    shape = PromptShape(3, 10, 4, 2, 1)
    assert shape.operations.both == 8 * 3 * 2 * 10 * 5 + 4 * 3 * 2 * 25
    context, query, kq, ov, out = 3 * 10 * 5, 3 * 5, 2 * 25, 2 * 5, 3
    assert shape.elements.forward == context + query + kq + ov + out
    assert shape.elements.backward == context + query + 2 * (kq + ov) + out


@pytest.mark.parametrize("text", ["2,6/3,4,5,7,9", "3,2,6,6,5,causal"])
def test_elements_are_those_of_the_tensors(text: str) -> None:
    problem = Problem.make(AttentionShape.parse(text), torch.float32)
    inputs, out = sum(x.numel() for x in problem.inputs), problem.exact()[0]
    assert problem.shape.elements.forward == inputs + out.numel()
    assert problem.shape.elements.backward == inputs + problem.grad_out.numel() + sum(
        g.numel() for g in problem.exact()[1:]
    )
    assert problem.shape.logits * problem.shape.prompts == (2 * 6 * 4 * 5 if "/" in text else 3 * 2 * 36)


def test_default_shapes() -> None:
    assert len(default_shapes("attention")) == 9
    assert str(default_shapes("attention")[6]) == "10000,2/1,1,40,6"
    assert str(default_shapes("prompt_attention")[0]) == "2000,100,50,8,1"


def test_random_shapes_lie_in_their_range() -> None:
    shapes = [shape for shape in random_shapes("attention", 300, 5) if isinstance(shape, AttentionShape)]
    assert len(shapes) == 300
    for shape in shapes:
        assert KEYS[0] <= shape.keys <= KEYS[1]
        assert DIM[0] <= shape.dim <= DIM[1]
        assert shape.heads in HEADS
        assert shape.key_heads in (1, shape.heads)
        assert shape.rows in (1, shape.keys)
        assert shape.prompts <= MOST_PROMPTS
        assert shape.prompts == 1 or shape.logits * shape.prompts <= MOST_LOGITS
        assert shape.prompts == 1 or shape.operations.forward <= 2 * OPERATIONS[1]
    assert {shape.causal for shape in shapes} == {False, True}
    assert {shape.heads > shape.key_heads for shape in shapes} == {False, True}
    assert len({shape.keys for shape in shapes}) > 100
    assert shapes == random_shapes("attention", 300, 5)
    assert shapes != random_shapes("attention", 300, 6)
    assert all(DIM[0] <= shape.dim_x <= DIM[1] for shape in random_shapes("prompt_attention", 9, 0)
               if isinstance(shape, PromptShape))  # fmt: skip
    with pytest.raises(BenchInputError, match="got 0"):
        random_shapes("attention", 0, 0)
