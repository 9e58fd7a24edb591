"""The process that compiles: ``python -m psla_jax.plan.worker``, started by :mod:`psla_jax.plan.compiler`.

It reads a pickled :class:`psla_jax.plan.job.Job` on standard input, and writes the optimised program and a JSON file
beside it.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import time
from typing import Any

from jax.experimental import topologies

from psla_jax.plan.job import Job, Memory
from psla_jax.plan.programs import STEPS
from psla_jax.runtime.errors import is_own
from psla_jax.runtime.sharding import Placement


def compile_job(job: Job) -> dict[str, Any]:
    """Compiles a program and writes its text to ``job.out``; returns its memory and the seconds that it took."""
    platform, options = job.device.topology(job.num_devices)
    devices = topologies.get_topology_desc(platform=platform, **options).devices  # type: ignore[arg-type]
    start = time.monotonic()
    lowered = STEPS[job.step](job.config, job.num_classes, Placement.over(devices[: job.num_devices]))
    compiled = lowered.compile()
    seconds = time.monotonic() - start
    job.out.write_text(compiled.as_text() or "", encoding="utf-8")
    plan: Any = compiled.memory_analysis()
    memory = Memory(
        plan.argument_size_in_bytes,
        plan.output_size_in_bytes,
        plan.alias_size_in_bytes,
        plan.temp_size_in_bytes,
        plan.generated_code_size_in_bytes,
    )
    return {"memory": dataclasses.asdict(memory), "seconds": seconds}


def main() -> int:
    """Runs the job on standard input; returns 2 after an error of this package, whose message is in the JSON file."""
    job: Job = pickle.load(sys.stdin.buffer)
    try:
        result, code = compile_job(job), 0
    except (ValueError, RuntimeError) as error:
        if not is_own(error):
            raise
        result, code = {"error": str(error)}, 2
    job.out.with_suffix(".json").write_text(json.dumps(result), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
