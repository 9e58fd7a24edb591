"""``psla``: finds the command and says how it ended. What a command takes and does is in ``commands/``.

Exit codes: 0 done, 1 a run that failed, 2 bad usage or input; 130 interrupted and 143 told to end, and then the same
command goes on.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from psla_jax import runtime
from psla_jax.terminal import printable


@dataclass(frozen=True)
class Command:
    """A row of the help: what to type, what it does, and the function that does it."""

    usage: str
    does: str
    function: str
    """``module:function`` in ``psla_jax.commands``; imported when the command is called."""
    computes: bool = False
    """Whether it is faster with what :mod:`psla_jax.runtime` asks of the machine."""

    short: bool = False
    """Whether its files are closed when it returns, so that the process may end without Python's tidying up."""

    def load(self) -> Callable[[list[str]], int]:
        """The function; takes the arguments and returns the exit code."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(f"psla_jax.commands.{module}"), name)


COMMANDS = {
    "train": Command(
        "CONFIG.py [--section.field value]", "train, evaluate and aggregate; run again to go on", "runs:train", True
    ),
    "evaluate": Command("MODEL... --data D.json", "figures of models and of their ensemble", "runs:evaluate", True),
    "tag": Command(
        "AUDIO... --model MODEL", "what is in recordings of any length, and when", "tagging:tag", True, True
    ),
    "calibrate": Command(
        "MODEL --data VAL.json", "its scores made probabilities and decisions", "calibrate:calibrate", True
    ),
    "listen": Command("[-] --model MODEL", "the same of a microphone or a pipe, as it comes", "listen:listen", True),
    "prepare": Command("audioset|folder|... ...", "datafiles from a data set", "prepare:prepare"),
    "enhance": Command("D.json --scores S", "labels that a model finds and annotators left out", "labeling:enhance"),
    "crossfit": Command(
        "CONFIG.py --ontology O.json", "the same, by models that have not seen the clips", "labeling:crossfit", True
    ),
    "check": Command("D.json [--labels L.csv]", "what is wrong with a data set", "check:check", True),
    "pack": Command("D.json DEST", "a data set in a few large files", "check:pack"),
    "convert": Command("SRC.pth MODEL --labels L.csv", "official PyTorch weights in, verified", "models:convert", True),
    "export": Command("MODEL DEST.pth", "and out again", "models:export", True),
    "models": Command("[NAME]", "the official weights: list, download and convert", "models:models", True),
    "average": Command("MODEL... DEST", "the mean of models' weights", "models:average", True),
    "check-model": Command("MODEL", "is a model still what it was when it was saved?", "models:check_model", True),
}


def usage() -> str:
    """The help of ``psla`` alone."""
    lines = [f"  {name + ' ' + command.usage:<42}{command.does}" for name, command in COMMANDS.items()]
    head = ["usage: psla COMMAND ...", "", "PSLA audio tagging in JAX.", "", "commands:"]
    return "\n".join([*head, *lines, "", "psla COMMAND --help tells more."])


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point. A user's mistake is one sentence on standard error, never a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else 2
    if given[0] == "--version":
        from psla_jax import __version__

        print(f"psla_jax {__version__}")
        return 0
    if given[0] not in COMMANDS:
        print(f"psla: there is no command {given[0]!r}: choose {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    command = COMMANDS[given[0]]
    computes = command.computes and not {"-h", "--help"} & set(given)
    if computes and arguments is None:
        runtime.restart_with_huge_pages()
    try:
        if computes:
            runtime.prepare_libraries(programs=arguments is None)
        code = command.load()(given[1:])
        if command.short and arguments is None:
            _end(code)
        return code
    except KeyboardInterrupt as error:  # or Stopped, which says what was saved
        print(f"psla: {printable(str(error)) or 'interrupted; start it again to go on.'}", file=sys.stderr)
        return getattr(error, "code", 130)
    except BrokenPipeError:  # Whoever read the output has had enough, as head has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that cannot be written
        what = printable(f"{error.strerror or error}: {error.filename or 'the disk'}")
        print(f"psla: {what}.", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError) as error:
        if not type(error).__module__.startswith("psla_jax."):
            raise
        print(f"psla: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _end(code: int) -> NoReturn:
    """Ends the process. Python would take apart every array and module first, which takes longer than to tag a clip."""
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
