"""The build's decisions, the compiled module's checks when it is loaded, and the choice of the instruction set."""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mhicl_fast
from build_tools import isa_leaks
from build_tools.cuda import BuildError, Toolkit, Torch, architectures, decide, find_toolkit, read_switch
from build_tools.jobs import GIB, free_memory, job_count, usable_cpus
from mhicl_fast import _extension

ROOT = Path(__file__).resolve().parent.parent
CPU_TORCH = Torch("2.13.0+cpu", None)
CUDA_TORCH = Torch("2.14.1+cu130", "13.0")
CUDA_13 = Toolkit(Path("/opt/cuda"), "13.2")
CUDA_12 = Toolkit(Path("/opt/cuda"), "12.8")


def python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run code in another interpreter, in the repository's root."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False)


def setup_py(command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py with one command."""
    code = f"import runpy, sys; sys.argv = ['setup.py', {command!r}]; runpy.run_path('setup.py', run_name='__main__')"
    return python(code, **environ)


def make_toolkit(prefix: Path, version: str) -> Toolkit:
    """A folder that looks like a CUDA toolkit, with an nvcc that tells its version and where it lies."""
    for part in ("bin/nvcc", "include/cuda_runtime_api.h", "lib64/libcudart.so"):
        (prefix / part).parent.mkdir(parents=True, exist_ok=True)
        (prefix / part).touch()
    make_command(prefix / "bin" / "nvcc", f"echo '#$ TOP={prefix}/bin/..'; echo 'release {version}, V{version}.1'")
    return Toolkit(prefix, version)


def make_command(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


class TestCudaSwitch:
    @pytest.mark.parametrize("value", ["auto", "0", "1"])
    def test_accepts_its_values(self, value: str) -> None:
        assert read_switch({"MHICL_CUDA": value}) == value

    def test_is_auto_when_unset(self) -> None:
        assert read_switch({}) == "auto"

    @pytest.mark.parametrize("value", ["yes", "", "ON", "2"])
    def test_refuses_anything_else(self, value: str) -> None:
        with pytest.raises(BuildError, match=f"MHICL_CUDA must be auto, 0 or 1, got '{value}'"):
            read_switch({"MHICL_CUDA": value})

    @pytest.mark.parametrize("switch", ["auto", "1"])
    def test_builds_with_a_toolkit_of_the_same_major_version(self, switch: str) -> None:
        assert decide(switch, CUDA_TORCH, CUDA_13, []).toolkit is CUDA_13

    def test_zero_leaves_cuda_out_even_where_it_could_be_built(self) -> None:
        plan = decide("0", CUDA_TORCH, CUDA_13, [])
        assert plan.toolkit is None
        assert plan.reason == "MHICL_CUDA=0"

    @pytest.mark.parametrize(
        ("torch_found", "toolkit", "told"),
        [
            pytest.param(CPU_TORCH, CUDA_13, ["torch 2.13.0+cpu was built without CUDA"], id="cpu-torch"),
            pytest.param(CUDA_TORCH, None, ["no CUDA compiler", "nvcc on PATH: none", "CUDA 13.0"], id="no-toolkit"),
            pytest.param(CUDA_TORCH, CUDA_12, ["CUDA 12.8", "CUDA 13.0", "/opt/cuda"], id="mismatch"),
        ],
    )
    def test_an_obstacle_is_an_error_when_forced_and_a_reason_when_not(
        self, torch_found: Torch, toolkit: Toolkit | None, told: list[str]
    ) -> None:
        plan = decide("auto", torch_found, toolkit, ["nvcc on PATH: none"])
        assert plan.toolkit is None
        assert plan.reason
        with pytest.raises(BuildError) as error:
            decide("1", torch_found, toolkit, ["nvcc on PATH: none"])
        assert plan.reason in str(error.value)
        for part in [*told, "MHICL_CUDA=1", "Install", "set MHICL_CUDA=0"]:
            assert part in str(error.value)

    def test_architectures_have_a_default_that_pytorchs_variable_overrides(self) -> None:
        assert architectures({}) == architectures({"TORCH_CUDA_ARCH_LIST": ""}) == "8.0;9.0+PTX"
        assert architectures({"TORCH_CUDA_ARCH_LIST": "7.5"}) == "7.5"


class TestFindToolkit:
    def test_cuda_home_is_the_only_place_where_it_is_set(self, tmp_path: Path) -> None:
        chosen = make_toolkit(tmp_path / "chosen", "13.0")
        make_toolkit(tmp_path / "other", "12.1")
        path = str(tmp_path / "other" / "bin")
        assert find_toolkit({"CUDA_HOME": str(chosen.prefix), "PATH": path})[0] == chosen

        (chosen.prefix / "lib64" / "libcudart.so").unlink()
        toolkit, looked = find_toolkit({"CUDA_HOME": str(chosen.prefix), "PATH": path})
        assert toolkit is None
        assert looked == [f"CUDA_HOME: {chosen.prefix} lacks lib64/libcudart.so"]

    def test_nvcc_may_be_a_wrapper_that_lies_elsewhere(self, tmp_path: Path) -> None:
        real = make_toolkit(tmp_path / "real", "13.0")
        make_command(tmp_path / "bin" / "nvcc", f'exec {real.prefix}/bin/nvcc "$@"')
        toolkit, looked = find_toolkit({"PATH": str(tmp_path / "bin")})
        assert toolkit == real
        assert looked == [f"nvcc on PATH: CUDA 13.0 in {real.prefix}"]

    def test_an_nvcc_that_tells_nothing_is_not_a_toolkit(self, tmp_path: Path) -> None:
        toolkit = make_toolkit(tmp_path, "13.0")
        make_command(toolkit.prefix / "bin" / "nvcc", "exit 1")
        found, looked = find_toolkit({"CUDA_HOME": str(tmp_path)})
        assert found is None
        assert "does not tell its version" in looked[0]

    def test_says_that_path_holds_no_compiler(self, tmp_path: Path) -> None:
        _, looked = find_toolkit({"PATH": str(tmp_path)})
        assert looked[0] == "nvcc on PATH: none"
        assert "/usr/local/cuda" in looked[1]


class TestJobs:
    @pytest.mark.parametrize(
        ("cpus", "free", "with_cuda", "jobs"),
        [(8, 64, False, 8), (8, 5, False, 2), (8, 5, True, 1), (64, 64, True, 16), (2, 0, False, 1), (1, 64, True, 1)],
    )
    def test_are_capped_by_cores_and_memory(self, cpus: int, free: int, with_cuda: bool, jobs: int) -> None:
        assert job_count(cpus, free * GIB, with_cuda) == jobs

    def test_the_machine_tells_its_cores_and_memory(self) -> None:
        assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
        assert free_memory() > 0


class TestSetup:
    def test_missing_torch_names_the_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)  # makes the import fail
        monkeypatch.setattr(sys, "path", [*sys.path])
        installed_torch = runpy.run_path(str(ROOT / "setup.py"))["installed_torch"]
        with pytest.raises(BuildError, match="pip install --no-build-isolation"):
            installed_torch()

    @pytest.mark.parametrize(
        ("environ", "message"),
        [
            ({"MHICL_CUDA": "maybe"}, "mhicl_fast: MHICL_CUDA must be auto, 0 or 1, got 'maybe'"),
            (
                {"CXX": "no-such-compiler"},
                "mhicl_fast: no C++ compiler was found (looked for 'no-such-compiler' on PATH)",
            ),
        ],
    )
    def test_errors_end_the_build_without_a_traceback(self, environ: dict[str, str], message: str) -> None:
        done = setup_py("build_ext", **environ)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.skipif(torch.version.cuda is not None, reason="the installed torch is a CUDA build")
    def test_cuda_cannot_be_forced_with_a_cpu_torch(self) -> None:
        done = setup_py("--name", MHICL_CUDA="1")
        assert done.returncode == 1
        assert f"MHICL_CUDA=1, but torch {torch.__version__} was built without CUDA" in done.stderr


class TestLoading:
    @pytest.mark.parametrize(
        ("built_for", "built_cuda", "running", "running_cuda"),
        [
            ("2.13.0+cpu", None, "2.13.0+cpu", None),
            ("2.13.0+cpu", None, "2.13.1", None),
            ("2.13.0+cpu", None, "2.13.0+cu130", "13.0"),
            ("2.14.1+cu130", "13.2", "2.14.0+cu130", "13.0"),
            ("2.15.0.dev20260801+cpu", None, "2.15.0.dev20260801+cpu", None),
        ],
    )
    def test_accepts_a_torch_with_the_same_interface(
        self, built_for: str, built_cuda: str | None, running: str, running_cuda: str | None
    ) -> None:
        _extension.check_torch({"torch": built_for, "cuda": built_cuda}, running, running_cuda)

    @pytest.mark.parametrize(
        ("built_for", "built_cuda", "running", "running_cuda", "message"),
        [
            ("2.13.0", None, "2.12.0", None, "built for torch 2.13.0, but torch 2.12.0 is running"),
            ("2.1.0", None, "2.13.0", None, "built for torch 2.1.0, but torch 2.13.0 is running"),
            ("2.15.0.dev1", None, "2.15.0.dev2", None, "built for torch 2.15.0.dev1, but torch 2.15.0.dev2"),
            ("2.15.0a0+git1", None, "2.15.0", None, "built for torch 2.15.0a0+git1, but torch 2.15.0 is running"),
            ("2.14.1+cu130", "13.0", "2.14.1+cpu", None, "with CUDA 13.0, but .* 2.14.1.cpu was built without CUDA"),
            ("2.14.1+cu130", "13.0", "2.14.1+cu128", "12.8", "with CUDA 13.0, but .* was built with CUDA 12.8"),
        ],
    )
    def test_refuses_any_other_torch_and_names_the_remedy(
        self, built_for: str, built_cuda: str | None, running: str, running_cuda: str | None, message: str
    ) -> None:
        with pytest.raises(ImportError, match=f"{message.replace('+', '.')}.*rebuild with pip install"):
            _extension.check_torch({"torch": built_for, "cuda": built_cuda}, running, running_cuda)

    def test_the_check_comes_before_the_module_is_loaded(self) -> None:
        done = python("import torch; torch.__version__ = '2.12.0'; import mhicl_fast")
        assert done.returncode == 1
        assert f"ImportError: mhicl_fast was built for torch {torch.__version__}, but torch 2.12.0" in done.stderr

    def test_a_package_that_was_not_built_says_how_to(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(_extension, "_CONFIG", tmp_path / "_build_config.json")
        with pytest.raises(ImportError, match=r"not built for this Python.*pip install --no-build-isolation -e \."):
            _extension.load()

    def test_submodules_are_imported_when_first_used(self) -> None:
        code = """
import sys, mhicl_fast
assert not {"matplotlib", "scipy", "mhicl_fast.tasks"} & set(sys.modules), "imported at the start"
mhicl_fast.tasks.MultiTaskRegression
"""
        done = python(code)
        assert done.returncode == 0, done.stderr

    def test_an_unknown_attribute_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'prompt_atention'"):
            mhicl_fast.prompt_atention  # noqa: B018


class TestBuildInfo:
    def test_tells_what_was_built_and_what_runs(self) -> None:
        info = mhicl_fast.build_info()
        assert info["version"] == mhicl_fast.__version__
        assert info["python"] == platform.python_version()
        assert info["torch"]["running"] == torch.__version__
        assert info["torch"]["built_for"].split(".")[:2] == torch.__version__.split(".")[:2]
        assert re.search(r"\d+\.\d+", info["compiler"])
        assert info["threads"] == torch.get_num_threads()
        assert bool(info["cuda"]["architectures"]) == (info["cuda"]["version"] is not None)
        assert bool(info["cuda"]["left_out"]) == (info["cuda"]["version"] is None)

    def test_instruction_sets_are_those_that_the_processor_has(self) -> None:
        isas = mhicl_fast.build_info()["instruction_sets"]
        assert isas["active"] in isas["supported"]
        assert isas["supported"] == [isa for isa in isas["compiled"] if isa in isas["supported"]]
        if platform.machine() != "x86_64":
            assert isas["compiled"] == ["portable"]
            return
        assert isas["compiled"] == ["portable", "avx2", "avx512"]
        flags = set(Path("/proc/cpuinfo").read_text().split())
        assert ("avx2" in isas["supported"]) == ({"avx2", "fma"} <= flags)
        assert ("avx512" in isas["supported"]) == ({"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags)

    def test_is_printed_one_fact_a_line(self) -> None:
        info = mhicl_fast.build_info()
        lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in _extension.format_build_info(info).splitlines())
        assert lines["mhicl_fast"].startswith(mhicl_fast.__version__)
        assert lines["instruction set"].startswith(info["instruction_sets"]["active"])
        assert lines["threads"] == str(info["threads"])

        info["cuda"] |= {"version": "13.0", "architectures": ["8.0", "9.0+PTX"], "left_out": ""}
        info["cuda"] |= {"operators": ["attention", "flow_step"], "devices": ["NVIDIA H100", "NVIDIA A100"]}
        assert re.search(r"^CUDA +13\.0 for 8\.0, 9\.0\+PTX$", _extension.format_build_info(info), re.MULTILINE)
        lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in _extension.format_build_info(info).splitlines())
        assert lines["CUDA kernels"] == "attention, flow_step"
        assert lines["CUDA devices"] == "cuda:0 NVIDIA H100, cuda:1 NVIDIA A100"
        info["cuda"] |= {"version": None, "architectures": [], "left_out": "MHICL_CUDA=0"}
        assert re.search(r"^CUDA +none \(MHICL_CUDA=0\)$", _extension.format_build_info(info), re.MULTILINE)


class TestInstructionSets:
    ACTIVE = "import mhicl_fast; print(mhicl_fast.build_info()['instruction_sets']['active'])"

    @pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
    def test_each_can_be_forced_where_the_processor_has_it(self, isa: str) -> None:
        done = python(self.ACTIVE, MHICL_ISA=isa)
        if isa in mhicl_fast.build_info()["instruction_sets"]["supported"]:
            assert done.stdout.strip() == isa
        else:
            assert "RuntimeError: MHICL_ISA must be one of" in done.stderr
            assert f'got "{isa}"' in done.stderr

    def test_an_unknown_one_is_an_error_that_names_the_choices(self) -> None:
        done = python(self.ACTIVE, MHICL_ISA="sse9")
        assert done.returncode == 1
        supported = ", ".join(mhicl_fast.build_info()["instruction_sets"]["supported"])
        assert f'({supported}), got "sse9"' in done.stderr

    @pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (binutils) is not installed")
    @pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 chooses its instruction set when it runs")
    def test_none_leaks_out_of_its_kernels(self) -> None:
        assert isa_leaks.check(Path(_extension.native.__file__ or "")) == {}

    @pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
    @pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (binutils) is not installed")
    @pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 chooses its instruction set when it runs")
    def test_a_leak_is_found(self, tmp_path: Path) -> None:
        body = "void scale(float* x) { for (int i = 0; i < 64; ++i) x[i] *= 3; }"
        source = tmp_path / "leak.cpp"
        source.write_text(
            f"namespace mhicl::portable {{ {body} }}\n"
            f'#pragma GCC target("avx2")\n namespace mhicl::avx2 {{ {body} }}\n namespace elsewhere {{ {body} }}\n'
            f'#pragma GCC target("avx512f,prefer-vector-width=512")\n'
            f"namespace mhicl::avx512 {{ {body} }}\n namespace mhicl::avx2::wide {{ {body} }}\n"
        )
        subprocess.run(["c++", "-O3", "-c", str(source), "-o", str(tmp_path / "leak.o")], check=True)
        found = isa_leaks.check(tmp_path / "leak.o")
        assert set(found) == {"elsewhere::scale(float*)", "mhicl::avx2::wide::scale(float*)"}


def test_the_cuda_operator_is_known_and_needs_a_gpu() -> None:
    with pytest.raises(NotImplementedError, match="cuda_self_check"):
        torch.ops.mhicl.cuda_self_check(torch.ones(3))
