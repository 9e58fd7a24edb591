"""Entry point of the command ``psla``: runs a subcommand and reports errors as one sentence.

Exit codes: 0 success, 1 failure, 2 invalid usage or input, 130 interrupted, 143 terminated. After the last two, the
same command resumes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from psla_jax.runtime import process, streams
from psla_jax.runtime.errors import is_own
from psla_jax.runtime.terminal import accept_any_text, printable


@dataclass(frozen=True)
class Command:
    """A subcommand: its arguments and description in the help, and the function that runs it."""

    usage: str
    description: str
    function: str
    """``module:function`` in ``psla_jax.cli``; imported only when the command runs."""
    computes: bool = False
    """Whether the command benefits from huge pages and the compilation cache (:mod:`psla_jax.runtime.process`)."""

    def load(self) -> Callable[[list[str]], int]:
        """Returns the function, which takes the arguments and returns the exit code."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(f"psla_jax.cli.{module}"), name)


GROUPS = {
    "training": {
        "train": Command(
            "CONFIG [--section.field value]",
            "Train, evaluate and aggregate a model; rerun to resume.",
            "train_evaluate:train",
            True,
        ),
        "crossval": Command(
            "CONFIG [--folds F.json ...]",
            "Train and evaluate on every fold; report the mean.",
            "crossval:crossval",
            True,
        ),
        "sweep": Command(
            "CONFIG --set FIELD V1 V2 [...]",
            "Train combinations of settings, with several seeds.",
            "sweep:sweep",
            True,
        ),
        "teach": Command(
            "CONFIG --models MODEL... --out D",
            "Score the inputs of a training, to distill them.",
            "teach:teach",
            True,
        ),
        "plan": Command(
            "CONFIG --device h100 --devices 8",
            "Plan a training on absent GPUs or TPUs: memory, bounds.",
            "plan:plan",
        ),
    },
    "evaluation and tagging": {
        "evaluate": Command(
            "MODEL... --data D.json", "Compute metrics of models and their ensemble.", "train_evaluate:evaluate", True
        ),
        "tag": Command("AUDIO... --model MODEL", "Tag recordings of any length and locate events.", "tag:tag", True),
        "listen": Command(
            "[-] --model MODEL", "Detect events in live audio from a microphone or a pipe.", "listen:listen", True
        ),
        "calibrate": Command(
            "MODEL --data VAL.json",
            "Fit decision thresholds and probabilities for psla tag.",
            "calibrate:calibrate",
            True,
        ),
    },
    "data and labels": {
        "prepare": Command("audioset|folder|... ...", "Write the datafiles of a data set.", "prepare:prepare"),
        "check": Command("D.json [--labels L.csv]", "Report the defects of a data set.", "check:check", True),
        "pack": Command("D.json DEST", "Pack the clips of a data set into a few large files.", "check:pack"),
        "enhance": Command(
            "D.json --scores S", "Add missing labels, based on the scores of a model.", "enhance:enhance"
        ),
        "crossfit": Command(
            "CONFIG --ontology O.json",
            "Add missing labels, based on models that were not trained on the clip.",
            "enhance:crossfit",
            True,
        ),
    },
    "models": {
        "models": Command("[NAME]", "List, download and convert the official weights.", "models:models", True),
        "convert": Command(
            "SRC MODEL --labels L.csv", "Convert weights with official names and verify them.", "models:convert", True
        ),
        "export": Command("MODEL DEST", "Export a model as official weights or as ONNX.", "models:export", True),
        "average": Command("MODEL... DEST", "Average the weights of several models.", "models:average", True),
        "check-model": Command(
            "MODEL", "Verify that a model computes the scores saved with it.", "models:check_model", True
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def usage() -> str:
    """Returns the help text of ``psla``."""
    lines = ["usage: psla COMMAND ...", "", "PSLA audio tagging in JAX."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {f'{name} {command.usage}':<40}{command.description}" for name, command in commands.items()]
    return "\n".join([*lines, "", "psla COMMAND --help shows the options of a command."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; user errors are printed as one sentence without a traceback.

    Args:
        arguments: command-line arguments after ``psla``; None takes those of the process.
    """
    accept_any_text()
    try:
        code = _run(*list(sys.argv[1:] if arguments is None else arguments) or [""], restart=arguments is None)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as error:  # The subclass Stopped has a message and an exit code of its own.
        message = printable(str(error)) or "interrupted; run the same command again to resume."
        print(f"psla: {message}", file=sys.stderr)
        return getattr(error, "code", 130)
    except BrokenPipeError:  # The reader of the output, such as head, has closed the pipe.
        return 0
    except OSError as error:  # For example a full disk or a read-only directory.
        message = printable(f"{error.strerror or error}: {error.filename or 'the disk'}")
        print(f"psla: {message}.", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError) as error:
        if not is_own(error):
            raise
        print(f"psla: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    finally:
        streams.finish_standard_output()


def _run(name: str, *options: str, restart: bool) -> int:
    """Runs the command called `name` and returns its exit code; `restart` allows a restart with huge pages."""
    if name in ("", "-h", "--help"):
        print(usage())
        return 0 if name else 2
    if name == "--version":
        from psla_jax import __version__

        print(f"psla_jax {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"psla: there is no command {name!r}: choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    computes = command.computes and not {"-h", "--help"} & set(options)
    if computes and restart:
        process.restart_with_huge_pages()
    if computes:
        process.configure_libraries()
    return command.load()(list(options))


if __name__ == "__main__":
    sys.exit(main())
