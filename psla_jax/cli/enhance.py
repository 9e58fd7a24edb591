"""Commands for label enhancement, the L of PSLA: enhance, crossfit and prepare relabel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from psla_jax.cli.arguments import UsageError, parse
from psla_jax.cli.train_evaluate import read_config
from psla_jax.config import KINDS, Kind, RunConfig, Threshold
from psla_jax.runtime.terminal import printable


@dataclass(frozen=True)
class Enhance:
    """Adds labels that a model detects. Example: psla enhance train.json --scores S.npz --labels audioset --ontology
    ontology.json --threshold mean median"""

    data: Positional[str]
    """Training datafile. Results are written beside it: D_type1_mean.json, D_type2_mean.json, D_type1_2_mean.json."""
    scores: str
    """Scores of its clips: an .npz of psla evaluate --save, a run directory, or the reference's CSV."""
    labels: str
    """Label CSV (index,mid,display_name); audioset and fsd50k are built in."""
    ontology: str
    """AudioSet's ontology.json, or a file of the same format."""
    threshold: tuple[Threshold, ...] = ("mean",)
    """Score above which a class is added: one or more statistics of its scores on the clips that have the label."""
    type: tuple[Kind, ...] = KINDS
    """type1 adds missing children, type2 missing parents, type1_2 both."""
    out: str = ""
    """Output folder; empty: that of the datafile."""
    force: bool = False
    """Whether to replace existing files."""


def enhance(arguments: list[str]) -> int:
    """psla enhance D.json --scores S --labels L.csv --ontology O.json"""
    options = parse(Enhance, arguments, "psla enhance")

    from psla_jax.labeling.enhance import Request, run
    from psla_jax.runtime.logging import Logger

    run(Request(**dataclasses.asdict(options)), Logger())
    return 0


@dataclass(frozen=True)
class Crossfit:
    """Enhances the training set with scores of models trained on other folds of it; run the command again to resume.
    Example: psla crossfit configs/fsd50k.py --ontology ontology.json --folds 3 --run-dir runs/fsd50k"""

    ontology: str
    """AudioSet's ontology.json, or a file of the same format."""
    config: Annotated[RunConfig, tyro.conf.FlagConversionOff, tyro.conf.arg(name="")]
    folds: int = 3
    """Number of folds of the training set; a model is trained for each."""
    model: Literal["ensemble", "average"] = "ensemble"
    """Model that scores a fold: the checkpoint ensemble of its run, or the weight average."""
    threshold: tuple[Threshold, ...] = ("mean",)
    """Score above which a class is added: one or more statistics of its scores on the clips that have the label."""
    type: tuple[Kind, ...] = KINDS
    """type1 adds missing children, type2 missing parents, type1_2 both."""
    out: str = ""
    """Output folder for the enhanced datafiles; empty: that of the training datafile."""
    force: bool = False
    """Whether to replace existing enhanced datafiles."""


def crossfit(arguments: list[str]) -> int:
    """psla crossfit CONFIG.py --ontology O.json [--folds 3] [--section.field value ...]"""
    help_requested = bool({"-h", "--help"} & set(arguments))
    path = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if not path and not help_requested:
        raise UsageError("psla crossfit needs a config file first: psla crossfit configs/demo.py --ontology O.json")
    config = read_config(path) if path and (Path(path).is_file() or not help_requested) else RunConfig()
    options = tyro.cli(
        Crossfit,
        default=Crossfit(ontology=tyro.MISSING, config=config),
        args=arguments[1:] if path else arguments,
        prog=f"psla crossfit {path or 'CONFIG.py'}",
    )

    from psla_jax.labeling.crossfit import Request, run

    run(Request(**vars(options)))
    return 0


@dataclass(frozen=True)
class Relabel:
    """Transfers the labels of a published datafile to your copy of the clips, matched by clip id.
    Example: psla prepare relabel balanced_train_data_type1_2_mean.json --onto mine.json --out mine_enhanced.json"""

    enhanced: Positional[str]
    """Datafile with the labels, such as one of the reference's enhanced label sets."""
    onto: str
    """Your datafile, with any folders and audio formats; AudioSet ids may be preceded by Y and followed by times."""
    out: str
    """Datafile to write, with its sampling weights beside it."""
    unmatched: Literal["keep", "drop"] = "keep"
    """Whether your clips that are not in ENHANCED keep their labels or are dropped."""
    force: bool = False
    """Whether to replace existing files."""


def relabel(arguments: list[str]) -> int:
    """psla prepare relabel ENHANCED.json --onto MINE.json --out NEW.json"""
    options = parse(Relabel, arguments, "psla prepare relabel")

    from psla_jax.data.prepare import relabel

    print(printable(relabel.relabel(**vars(options)).report()))
    return 0
