"""GPUs by name: the peaks that their maker publishes, and what nvidia-smi and PyTorch say of one that is here."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

import torch

from .roofs import Roofs


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVIDIA's data sheets, architecture white papers and the CUDA programming guide's table of arithmetic
    throughput describe it.

    clock: boost, in Hz. float32, float64, tf32: operations per second at that clock, tf32 on the matrix units without
    sparsity, float64 not on them. bandwidth: bytes per second of memory. Per multiprocessor and clock: lanes of float32
    multiply-adds, of 32-bit integer operations, of special functions, and bytes of shared memory.
    """

    name: str
    multiprocessors: int
    clock: float
    float32: float
    float64: float
    tf32: float
    bandwidth: float
    float_lanes: int
    integer_lanes: int
    special_lanes: int = 16
    shared_bytes: int = 128

    def roofs(self, dtype: str) -> Roofs:
        """Of float32 arithmetic for 16-bit types, in which the kernels compute them."""
        return Roofs(self.float64 if dtype == "float64" else self.float32, self.bandwidth)


H100 = Gpu("H100 SXM", 132, 1.755e9, 66.9e12, 33.5e12, 494e12, 3.35e12, 128, 64)
A100 = Gpu("A100 SXM 80 GB", 108, 1.41e9, 19.5e12, 9.7e12, 156e12, 2.039e12, 64, 64)

# By the name that the driver gives.
PUBLISHED = {
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H100 PCIe": Gpu("H100 PCIe", 114, 1.755e9, 51.2e12, 25.6e12, 378e12, 2.0e12, 128, 64),
    "NVIDIA H200": Gpu("H200 SXM", 132, 1.755e9, 66.9e12, 33.5e12, 494e12, 4.8e12, 128, 64),
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A100 80GB PCIe": Gpu("A100 PCIe 80 GB", 108, 1.41e9, 19.5e12, 9.7e12, 156e12, 1.935e12, 64, 64),
    "NVIDIA A100-SXM4-40GB": Gpu("A100 SXM 40 GB", 108, 1.41e9, 19.5e12, 9.7e12, 156e12, 1.555e12, 64, 64),
    "NVIDIA A100-PCIE-40GB": Gpu("A100 PCIe 40 GB", 108, 1.41e9, 19.5e12, 9.7e12, 156e12, 1.555e12, 64, 64),
}


def gpu_facts(device: torch.device) -> dict[str, str]:
    """A GPU that is here, in words: what it is, its driver, and what limits its clock."""
    properties = torch.cuda.get_device_properties(device)
    facts = {
        "GPU": f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"compute capability {properties.major}.{properties.minor}, {properties.total_memory / 2**30:.0f} GiB",
        "CUDA": f"{torch.version.cuda} (cuDNN {torch.backends.cudnn.version()})",
    }
    return facts | _smi_facts(f"GPU-{properties.uuid}")


def _smi_facts(identity: str) -> dict[str, str]:
    """Driver, clocks and power limit as nvidia-smi tells them; nothing where there is no such command.

    It counts all GPUs, PyTorch those of CUDA_VISIBLE_DEVICES, in an order of its own: a number may be another's.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    queries = {"driver": "driver_version", "largest clock": "clocks.max.sm", "power limit": "power.limit"}
    wanted = [f"--query-gpu={','.join(queries.values())}", "--format=csv,noheader", f"--id={identity}"]
    done = subprocess.run([command, *wanted], capture_output=True, text=True, timeout=30)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(queries, values)) if done.returncode == 0 and len(values) == len(queries) else {}
