"""The prediction of times on GPUs: counting loops in disassembled code, the formulas, and the page that holds it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mhicl_fast.bench import AttentionShape, PromptShape
from mhicl_fast.bench.gpus import A100, H100
from mhicl_fast.sampling import stream_lengths

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import gpu_counts
import gpu_model
from gpu_workloads import (
    WARP,
    AttentionSizes,
    Operation,
    Phase,
    Sizes,
    Work,
    blocks_of_normals,
    eager_absorbed,
    general_attention,
    given_prompts,
    sampled_step,
    sdpa_absorbed,
)
from sass import classify, functions, smallest

CODE = """
.text._Zouter:
.L_x_0:
        /*0000*/                   IMAD.WIDE.U32 R2, R0, R1, RZ ;
.L_x_1:
        /*0010*/                   LDS.128 R4, [R2] ;
        /*0020*/                   FFMA R4, R5, R6, R4 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/                   MUFU.EX2 R3, R3 ;
        /*0050*/              @!P1 BRA `(.L_x_0) ;
        /*0060*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0070*/                   EXIT ;
.text._Zother:
        /*0000*/                   EXIT ;
"""
LOOP = {"slots": 100, "mix": {"multiply-add": 64, "integer product": 4, "integer": 12, "shared": 16}, "special_each": 0}
COUNTS = {"kernel": {"products": LOOP}}


class TestCounting:
    def test_loops_are_found_with_their_instructions(self) -> None:
        found = functions(CODE)
        assert found["_Zother"] == []
        inner, outer = sorted(found["_Zouter"], key=lambda loop: loop.slots)
        assert inner.innermost
        assert not outer.innermost
        assert inner.mix() == {"multiply-add": 1, "shared": 1}
        assert outer.mix() == {"multiply-add": 1, "integer product": 1, "special": 1, "shared": 1}
        assert outer.slots == 6
        assert smallest([inner, outer], lambda loop: loop.count("FFMA") > 0) == [inner]
        assert smallest([inner, outer], lambda loop: loop.count("MUFU") > 0) == [outer]

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("FFMA.FTZ", "multiply-add"), ("IMAD.MOV.U32", "integer product"), ("LOP3.LUT", "integer"), ("BRA", "other"),
         ("I2FP.F32.S32", "integer"), ("I2F.U32", "special"), ("LDG.E.128", "memory"), ("DFMA", "double")],
    )  # fmt: skip
    def test_instructions_have_classes(self, name: str, kind: str) -> None:
        assert classify(name) == kind

    def test_the_committed_counts_are_of_kernels_that_are_there(self) -> None:
        counts = json.loads(gpu_counts.COUNTS.read_text())
        assert counts.keys() == {"sm_80", "sm_90"}
        for kernels in counts.values():
            assert kernels.keys() <= gpu_counts.KERNELS.keys()
            assert kernels["sampled step"].keys() == gpu_counts.KINDS.keys()
            for kernel, kinds in kernels.items():
                assert (gpu_counts.ROOT / "csrc" / "cuda" / gpu_counts.KERNELS[kernel][0]).exists()
                for kind, loop in kinds.items():
                    assert sum(loop["mix"].values()) <= loop["slots"], (kernel, kind)


class TestClocks:
    def test_a_loop_is_bound_by_issuing_where_lanes_are_many_and_by_lanes_where_they_are_few(self) -> None:
        assert gpu_model.clocks_of(LOOP, H100).bound == "issue"
        assert gpu_model.clocks_of(LOOP, H100).most == 25
        assert gpu_model.clocks_of(LOOP, A100).bound == "multiply-add"
        assert gpu_model.clocks_of(LOOP, A100).most == 34

    def test_a_kernel_of_nothing_but_multiply_adds_reaches_the_peak(self) -> None:
        loop = {"slots": 64, "mix": {"multiply-add": 64}, "special_each": 0}
        multiply_adds = 10**9
        work = Work("kernel", (Phase("", "multiply-adds", multiply_adds / WARP),), 0)
        for gpu in (H100, A100):
            found = gpu_model.predict([work], {"kernel": {"products": loop}}, gpu)
            assert 2 * multiply_adds / found.seconds == pytest.approx(gpu.float32, rel=0.15)

    def test_memory_bounds_what_moves_more_than_it_computes(self) -> None:
        found = gpu_model.predict([Work("kernel", (Phase("", "products", 1.0),), 10**9)], COUNTS, H100)
        assert found == (pytest.approx(1e9 / 3.35e12), "memory")

    def test_pytorch_stands_at_the_roofs(self) -> None:
        operations = [Operation("", 10**9, 0), Operation("", 0, 67 * 10**12)]
        assert gpu_model.at_the_roofs(operations, H100) == pytest.approx(4e9 / 3.35e12 + 67 / 66.9)


class TestFormulas:
    def test_blocks_of_normals_are_the_sampler_s(self) -> None:
        for length, dim in ((100, 50), (16, 4), (40, 5), (1, 1)):
            assert 4 * blocks_of_normals(length, dim) == stream_lengths(length, dim, 1)[0]

    def test_multiply_adds_are_those_of_the_benchmark_s_operations(self) -> None:
        """Half the operations; of the fused step as many as `mhicl bench` counts, with padded tokens more."""
        s = Sizes(10, 128, 64, 0, 8)  # no padding
        fused = next(work for work in sampled_step(s) if work.kernel == "sampled step")
        products = sum(phase.passes for phase in fused.phases if phase.kind == "products") * 64 * WARP
        assert products == 4 * s.n * s.heads * s.length * s.dim_x
        a = AttentionSizes(2, 6, 3, 4, 5, 8)
        shape = AttentionShape(2, 6, 3, 4, 5, 8, 8)
        forward = general_attention(a)["forward"][0]
        assert forward.phases[0].passes * WARP == shape.operations.forward / 2
        assert forward.bytes == 4 * shape.elements.forward

    def test_a_causal_row_sees_what_the_benchmark_counts(self) -> None:
        for rows, keys in ((4, 6), (6, 4), (5, 5)):
            shape = AttentionShape(2, 6, 3, rows, keys, 8, 8, True)
            assert AttentionSizes(2, 6, 3, rows, keys, 8, True).pairs == 2 * 6 * shape.seen_pairs

    def test_a_context_is_read_once_here_and_often_elsewhere(self) -> None:
        s = Sizes(1000, 100, 50, 1, 8)
        context = 4 * s.n * s.length * s.dim
        ours = sum(work.bytes for part in given_prompts(s).values() for work in part)
        assert 2 * context < ours < 3 * context
        assert PromptShape(1000, 100, 50, 8, 1).elements.both * 4 < ours
        assert 4 * sum(x.elements for x in eager_absorbed(s, draws=False)) > 4 * context
        assert 4 * sum(x.elements for x in sdpa_absorbed(s, draws=False)) > 6 * context
        drawn = sum(work.bytes for work in sampled_step(s))
        assert drawn < context  # no context is in memory


class TestPage:
    def test_it_holds_what_the_script_says(self) -> None:
        text = gpu_model.tables(json.loads(gpu_counts.COUNTS.read_text()))
        page = gpu_model.PAGE.read_text()
        assert gpu_model.with_tables(page, text) == page, "run python benchmarks/gpu_model.py --write"
        assert text.startswith("*Everything in this section is a prediction; none of it was measured.*")
        assert max(len(line) for line in text.splitlines() if line.startswith("| step")) < 200

    def test_the_study_s_step_is_predicted(self) -> None:
        counts = json.loads(gpu_counts.COUNTS.read_text())
        for name, gpu in gpu_model.MACHINES.items():
            step = gpu_model.predict(sampled_step(gpu_model.STUDY), counts[name], gpu)
            assert step.bound in ("issue", "multiply-add", "integer", "shared memory")
            useful = 8 * 10_000 * 8 * 100 * 51
            assert useful / gpu.float32 < step.seconds < 100 * useful / gpu.float32

    def test_the_readme_has_the_same_prediction(self) -> None:
        readme = " ".join((gpu_model.PAGE.parent.parent / "README.md").read_text().split())
        step, other = (1e3 * gpu_model.predict_step("sampled", gpu_model.STUDY, gpu).seconds for gpu in (H100, A100))
        assert f"*predicted* to take at least {step:.2f} ms on an H100 and {other:.2f} ms on an A100" in readme

    def test_a_page_without_marks_is_refused(self) -> None:
        with pytest.raises(SystemExit, match="lacks the marks"):
            gpu_model.with_tables("no marks", "text")
