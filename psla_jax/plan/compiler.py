"""XLA's compilers for GPUs and TPUs, which need neither driver nor device.

Their wheels are in a folder of their own, which only the subprocess that compiles has on its path. Beside the
other packages, they would be taken for devices that do not work by every ``import jax``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import re
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
    "tpu": {"TPU_SKIP_MDS_QUERY": "1"},
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


@dataclass(frozen=True)
class Wheels:
    """The packages with the compiler of a platform."""

    folder: str
    requirements: tuple[str, ...]
    size: str


def wheels(platform: str) -> Wheels:
    """Returns the packages with the compiler of a platform, for the installed JAX."""
    version = importlib.metadata.version("jaxlib")
    if platform == "cuda":
        # The second one has NVIDIA's assembler, ptxas, which XLA's plugin finds beside itself.
        packages = (f"jax-cuda12-pjrt=={version}", "nvidia-cuda-nvcc-cu12>=12.6.85")
        return Wheels(f"cuda-{version}", packages, "215 MB to download, 550 MB on disk")
    extras = importlib.metadata.requires("jax") or []
    libtpu = next((text.partition(";")[0].strip() for text in extras if text.startswith("libtpu")), "libtpu")
    return Wheels(f"tpu-{version}", (libtpu,), "213 MB to download, 684 MB on disk")


def compiler_folder(platform: str, log: Callable[[str], None]) -> Path:
    """Returns the folder with the compiler of a platform, which pip fills on first use.

    Raises PlanError if pip cannot.
    """
    needed = wheels(platform)

    def install(path: Path) -> Path:
        if not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            log(f"installing {' and '.join(needed.requirements)} in {path} ({needed.size}), once")
            with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
                new = Path(temporary) / path.name
                _pip_install(needed, new, path)
                shutil.move(new, path)
        return path

    return in_cache(install, "compilers", needed.folder)


def _pip_install(needed: Wheels, new: Path, path: Path) -> None:
    """Installs packages in the folder `new`, which will be `path`; raises PlanError if that fails."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(new)]
    done = subprocess.run(
        [*command, *needed.requirements], capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise PlanError(
            f"the compiler, {' and '.join(needed.requirements)}, cannot be installed "
            f"({reason.removeprefix('ERROR: '):.200}): connect this machine to a package index, or copy {path} from "
            "another one."
        )


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
        reason = _reason(done.stderr.decode("utf-8", "replace")) or f"exit code {done.returncode}"
        raise PlanError(f"{what} cannot be compiled ({reason:.300}): change the model or the batch size.")


def _reason(output: str) -> str:
    """Returns the line of a process's messages that says why it failed: its exception, or else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    exceptions = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return next(iter(exceptions[-1:] or lines[-1:]), "")
