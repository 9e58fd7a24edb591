"""XLA's compilers for GPUs and TPUs, which need neither driver nor device.

Their wheels are in a folder of their own, which only the subprocess that compiles has on its path. Beside the
other packages, they would be taken for devices that do not work by every ``import jax``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from psla_jax.config import RunConfig
from psla_jax.plan import hlo
from psla_jax.plan.devices import Device, PlanError, PlanTimeout
from psla_jax.plan.job import Job, Memory
from psla_jax.plan.summary import Summary, summarise
from psla_jax.runtime.cache import in_cache

ENVIRONMENTS: dict[str, dict[str, str]] = {
    # XLA would try the tiles of Triton's products on a device; cuBLAS, its other choice, needs none.
    "cuda": {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"},
    "tpu": {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"},
}
"""Environment variables of the process that compiles, by platform."""
MODULE = "psla_jax.plan.worker"


@dataclass(frozen=True)
class Compiled:
    """A step that was compiled, not run."""

    memory: Memory
    summary: Summary
    seconds: float
    """Time that it took to compile."""


def requirement(platform: str) -> tuple[str, str]:
    """Returns the wheel with the compiler of a platform, for the installed JAX, and its size in words."""
    if platform == "cuda":
        return f"jax-cuda12-pjrt=={importlib.metadata.version('jaxlib')}", "174 MB to download, 458 MB on disk"
    extras = importlib.metadata.requires("jax") or []
    found = next((text.partition(";")[0].strip() for text in extras if text.startswith("libtpu")), "libtpu")
    return found, "213 MB to download, 600 MB on disk"


def compiler_folder(platform: str, log: Callable[[str], None]) -> Path:
    """Returns the folder with the compiler of a platform, which pip fills on first use.

    Raises PlanError if pip cannot.
    """
    wheel, size = requirement(platform)

    def install(path: Path) -> Path:
        if path.is_dir():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            log(f"installing {wheel} in {path} ({size}), once")
            new = Path(temporary) / "new"
            command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(new), wheel]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
            if done.returncode:
                reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
                raise PlanError(
                    f"the compiler {wheel} cannot be installed ({reason.removeprefix('ERROR: '):.200}): connect this "
                    f"machine to a package index, or copy the installed files of this wheel to {path}."
                )
            shutil.move(new, path)
        return path

    return in_cache(install, "compilers", wheel.replace("==", "-").replace("*", "x"))


def compile_step(
    step: str,
    config: RunConfig,
    num_classes: int,
    device: Device,
    num_devices: int,
    *,
    timeout: float,
    log: Callable[[str], None],
    keep: Path | None = None,
) -> Compiled:
    """Compiles a step for devices that are absent.

    Args:
        step: ``train`` or ``evaluation``.
        config: the settings of the training.
        num_classes: number of classes.
        device: kind of the devices.
        num_devices: their number.
        timeout: seconds after which to give up.
        log: called with a line before the compiler is installed.
        keep: path to write the text of the compiled program to.

    Raises:
        PlanError: the compiler cannot be installed, the config cannot be trained, or compilation fails.
        PlanTimeout: it takes longer.
    """
    platform, _ = device.topology(num_devices)
    folder = compiler_folder(platform, log)
    with tempfile.TemporaryDirectory(prefix="psla-plan-") as temporary:
        out = Path(temporary) / "program.hlo"
        job = Job(step, config, num_classes, device, num_devices, out)
        _run(job, _environment(platform, folder), timeout)
        result = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        if "error" in result:
            raise PlanError(result["error"])
        text = out.read_text(encoding="utf-8")
        if keep is not None:
            shutil.copyfile(out, keep)
    return Compiled(Memory(**result["memory"]), summarise(hlo.parse(text)), result["seconds"])


def _environment(platform: str, folder: Path) -> dict[str, str]:
    """Returns the environment of the process that compiles: with the compiler, and without a device."""
    paths = [str(folder), *(path for path in sys.path if path)]
    variables = dict(ENVIRONMENTS[platform])
    if "XLA_FLAGS" in variables:
        variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {variables['XLA_FLAGS']}".strip()
    return os.environ | variables | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}


def _run(job: Job, environment: dict[str, str], timeout: float) -> None:
    """Runs a job in a process of its own; raises PlanError if it leaves no result."""
    command, what = [sys.executable, "-m", MODULE], f"the {job.step} step for {job.num_devices} x {job.device.title}"
    try:
        done = subprocess.run(
            command, input=pickle.dumps(job), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PlanTimeout(
            f"{what} was not compiled within {timeout:g} s: raise --timeout, or plan for a smaller model."
        ) from None
    if not job.out.with_suffix(".json").is_file():
        lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"the compiler ended with exit code {done.returncode}"
        raise PlanError(f"{what} cannot be compiled ({reason.strip():.300}): change the model or the batch size.")
