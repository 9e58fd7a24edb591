"""The L of PSLA: enhance, crossfit, and prepare relabel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from psla_jax.commands.arguments import UsageError, parse, spelled_out
from psla_jax.commands.runs import read_config
from psla_jax.config import KINDS, Kind, RunConfig, Threshold
from psla_jax.terminal import printable


@dataclass(frozen=True)
class Enhance:
    """Adds the labels that a model finds. Example: psla enhance train.json --scores S.npz --labels audioset --ontology
    ontology.json --threshold mean median"""

    data: Positional[str]
    """The training datafile. Results go beside it: D_type1_mean.json, D_type2_mean.json, D_type1_2_mean.json."""
    scores: str
    """Scores of its clips: an .npz of psla evaluate --save, a run directory that has them, or the reference's CSV."""
    labels: str
    """Label CSV (index,mid,display_name); audioset and fsd50k are built in."""
    ontology: str
    """AudioSet's ontology.json, or one of its form."""
    threshold: tuple[Threshold, ...] = ("mean",)
    """What a class has to score to be added: a statistic of its scores on the clips that carry it; one or more."""
    type: tuple[Kind, ...] = KINDS
    """Type 1 adds missing children, type 2 missing parents, 1_2 both."""
    out: str = ""
    """Folder for the results; empty: that of the datafile."""
    force: bool = False
    """Replace files that are there."""


def enhance(arguments: list[str]) -> int:
    """psla enhance D.json --scores S --labels L.csv --ontology O.json"""
    options = parse(Enhance, arguments, "psla enhance")

    from psla_jax import enhancement
    from psla_jax.journal import Journal

    enhancement.run(enhancement.Request(**dataclasses.asdict(options)), Journal())
    return 0


@dataclass(frozen=True)
class Crossfit:
    """Trains on all folds but one, scores that one, and enhances with these scores; run again to go on.
    Example: psla crossfit configs/fsd50k.py --ontology ontology.json --folds 3 --run-dir runs/fsd50k"""

    ontology: str
    """AudioSet's ontology.json, or one of its form."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    folds: int = 3
    """How many parts the training set is cut into: so many runs."""
    model: Literal["ensemble", "average"] = "ensemble"
    """What scores a fold: the checkpoint ensemble of its run, or the weight average."""
    threshold: tuple[Threshold, ...] = ("mean",)
    """What a class has to score to be added: a statistic of its scores on the clips that carry it; one or more."""
    type: tuple[Kind, ...] = KINDS
    """Type 1 adds missing children, type 2 missing parents, 1_2 both."""
    out: str = ""
    """Folder for the enhanced datafiles; empty: that of the training datafile."""
    force: bool = False
    """Replace enhanced datafiles that are there."""


def crossfit(arguments: list[str]) -> int:
    """psla crossfit CONFIG.py --ontology O.json [--folds 3] [--section.field value ...]"""
    asked = bool({"-h", "--help"} & set(arguments))
    path = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if not path and not asked:
        raise UsageError("psla crossfit wants a config file first: psla crossfit configs/demo.py --ontology O.json")
    config = read_config(path) if path and (Path(path).is_file() or not asked) else RunConfig()
    options = tyro.cli(
        Crossfit,
        default=Crossfit(ontology=tyro.MISSING, config=config),
        args=spelled_out(Crossfit, arguments[1:] if path else arguments),
        prog=f"psla crossfit {path or 'CONFIG.py'}",
        config=(tyro.conf.FlagConversionOff,),
    )

    from psla_jax import crossfit

    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    crossfit.run(crossfit.Request(**fields))
    return 0


@dataclass(frozen=True)
class Relabel:
    """The labels of somebody's datafile on your own copy of the clips, matched by clip id.
    Example: psla prepare relabel balanced_train_data_type1_2_mean.json --onto mine.json --out mine_enhanced.json"""

    enhanced: Positional[str]
    """The datafile with the labels, such as the reference's enhanced label sets."""
    onto: str
    """Your datafile: AudioSet ids may have a Y before and times behind them; any folders, any kind of audio file."""
    out: str
    """The datafile to write, with its weights beside it."""
    unmatched: Literal["keep", "drop"] = "keep"
    """Your clips that are not among those of ENHANCED: keep their labels, or are left out."""
    force: bool = False
    """Replace files that are there."""


def relabel(arguments: list[str]) -> int:
    """psla prepare relabel ENHANCED.json --onto MINE.json --out NEW.json"""
    options = parse(Relabel, arguments, "psla prepare relabel")

    from psla_jax.data import relabel

    done = relabel.relabel(
        options.enhanced, options.onto, options.out, unmatched=options.unmatched, force=options.force
    )
    print(printable(done.report()))
    return 0
