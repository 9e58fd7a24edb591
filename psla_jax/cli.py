"""``psla``: arguments and nothing else. Each command imports what is heavy when it runs.

Exit codes: 0 done, 1 a run that failed, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import Positional

USAGE = """\
usage: psla COMMAND ...

PSLA audio tagging in JAX.

commands:
  train CONFIG.py [--section.field value]   train, evaluate and aggregate; run again to go on
  evaluate MODEL... --data D.json           figures of models and of their ensemble
  prepare fsd50k DIR                        datafiles from a data set

psla COMMAND --help tells more."""


class UsageError(ValueError):
    """A command line that cannot be carried out."""


def train(arguments: list[str]) -> int:
    """psla train CONFIG.py [--section.field value ...]"""
    from psla_jax.config import RunConfig

    path = next((a for a in arguments if not a.startswith("-")), None)
    if path is None or arguments[0] != path:
        if arguments and arguments[0] in ("-h", "--help"):
            default, rest, prog = RunConfig(), arguments, "psla train CONFIG.py"
        else:
            raise UsageError("psla train wants a config file first: psla train configs/demo.py")
    else:
        rest, prog = arguments[1:], f"psla train {path}"
        default = RunConfig() if {"-h", "--help"} & set(rest) and not Path(path).is_file() else read_config(path)
    config = tyro.cli(
        RunConfig,
        default=default,
        args=rest,
        prog=prog,
        description="Train, evaluate and aggregate. Example: psla train configs/demo.py --seed 1 --run-dir runs/demo-1",
        config=(tyro.conf.FlagConversionOff,),
    )

    from psla_jax import experiment

    experiment.train(config)
    return 0


def read_config(path: str) -> Any:
    """Runs a config file and takes its ``config``.

    Raises:
        UsageError, ConfigError: naming the file and what is wrong in it.
    """
    from psla_jax.config import ConfigError, RunConfig

    if not Path(path).is_file():
        raise UsageError(f"there is no config file {path}: name one, such as configs/demo.py.")
    sys.path.insert(0, str(Path(path).resolve().parent))  # so that a config can name a model of its own beside it
    try:
        found = runpy.run_path(path).get("config")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        raise UsageError(f"the config file {path} cannot be run: {type(error).__name__}: {error}.") from error
    if not isinstance(found, RunConfig):
        raise UsageError(f"{path} is no config: it has to assign a RunConfig to the name config.")
    return found


@dataclass(frozen=True)
class Evaluate:
    """Figures of models and of their ensemble on a data set. Example: psla evaluate runs/demo --data demo:evaluation"""

    models: Positional[tuple[str, ...]]
    """Model directories or run directories."""
    data: str
    """The datafile to score."""
    labels: str = ""
    """Label CSV that fixes the order of the classes; empty: the first model's own."""
    batch_size: int = 32
    """Clips scored at a time."""
    channel: Literal["mean", "first"] = "mean"
    """Which channel of a stereo file."""
    bootstrap: int = 200
    """Resamples behind the confidence intervals; 0 for none."""
    trust: bool = False
    """Import the Python code that a custom model names."""


def evaluate(arguments: list[str]) -> int:
    """psla evaluate MODEL... --data D.json [--labels L.csv]"""
    options = _parse(Evaluate, arguments, "psla evaluate")

    from psla_jax import comparison

    comparison.evaluate(comparison.Request(**dataclasses.asdict(options)))
    return 0


@dataclass(frozen=True)
class PrepareFSD50K:
    """Datafiles from FSD50K, at 16 kHz. Example: psla prepare fsd50k /data/FSD50K"""

    directory: Positional[str]
    """Where FSD50K.dev_audio, FSD50K.eval_audio and FSD50K.ground_truth are."""
    out: str = ""
    """Where resampled audio and datafiles go; empty: beside the originals."""
    workers: int = 0
    """Threads that resample; 0 for one a core."""
    channel: Literal["mean", "first"] = "mean"
    """What a stereo file becomes: the mean of its channels, or the first one."""


def prepare(arguments: list[str]) -> int:
    """psla prepare fsd50k DIR"""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: psla prepare fsd50k DIR [options]\n\nExample: psla prepare fsd50k /data/FSD50K")
        return 0 if arguments else 2
    if arguments[0] != "fsd50k":
        raise UsageError(f"psla prepare does not know {arguments[0]!r}: choose fsd50k.")
    options = _parse(PrepareFSD50K, arguments[1:], "psla prepare fsd50k")

    from psla_jax.data import fsd50k

    made = fsd50k.prepare(
        options.directory, options.out or None, workers=options.workers or None, channel=options.channel
    )
    print(made.report())
    return 0


def _parse(kind: type, arguments: list[str], prog: str) -> Any:
    return tyro.cli(kind, args=arguments, prog=prog, config=(tyro.conf.FlagConversionOff,))


COMMANDS: dict[str, Callable[[list[str]], int]] = {"train": train, "evaluate": evaluate, "prepare": prepare}


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point. A user's mistake is one sentence on standard error, never a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if given else 2
    if given[0] == "--version":
        from psla_jax import __version__

        print(f"psla_jax {__version__}")
        return 0
    if given[0] not in COMMANDS:
        print(f"psla: there is no command {given[0]!r}: choose {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        return COMMANDS[given[0]](given[1:])
    except KeyboardInterrupt:
        print("psla: interrupted; start it again to go on.", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"psla: {error.strerror or error}: {error.filename or 'the disk'}.", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError) as error:
        if not type(error).__module__.startswith("psla_jax."):
            raise
        print(f"psla: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


if __name__ == "__main__":
    sys.exit(main())
