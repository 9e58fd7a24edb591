"""Data sets to datafiles: prepare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from psla_jax.commands import labeling
from psla_jax.commands.arguments import UsageError, parse
from psla_jax.terminal import printable


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


def prepare_fsd50k(arguments: list[str]) -> int:
    """psla prepare fsd50k DIR"""
    options = parse(PrepareFSD50K, arguments, "psla prepare fsd50k")

    from psla_jax.data import fsd50k

    made = fsd50k.prepare(
        options.directory, options.out or None, workers=options.workers or None, channel=options.channel
    )
    print(printable(made.report()))
    return 0


@dataclass(frozen=True)
class PrepareAudioSet:
    """Datafiles from AudioSet's segment lists and whatever audio is there.

    Example: psla prepare audioset --segments balanced_train_segments.csv eval_segments.csv --audio /data/audioset
    """

    segments: tuple[str, ...]
    """balanced_train_segments.csv, unbalanced_train_segments.csv and eval_segments.csv, or some of them."""
    audio: tuple[str, ...]
    """Folders of the audio, in any depth and under any name with the clip's id in it."""
    out: str = "data/audioset"
    """Where datafiles, coverage and the lists of missing clips go."""
    labels: str = "audioset"
    """Class list (CSV); audioset: the official one, which is built in."""
    ontology: str = ""
    """An ontology.json to check and to put beside the datafiles; audioset: the official one, downloaded once."""
    force: bool = False
    """Replace files that are there."""


def prepare_audioset(arguments: list[str]) -> int:
    """psla prepare audioset --segments CSV... --audio DIR..."""
    options = parse(PrepareAudioSet, arguments, "psla prepare audioset")
    for name in ("segments", "audio"):
        if not getattr(options, name):
            raise UsageError(f"psla prepare audioset wants at least one name after --{name}.")

    from psla_jax.data import audioset

    made = audioset.prepare(
        options.segments,
        options.audio,
        options.out,
        labels=options.labels,
        ontology=options.ontology,
        force=options.force,
    )
    print(printable(made.report()))
    return 0


@dataclass(frozen=True, kw_only=True)
class Own:
    """What folder and csv have in common."""

    out: str = ""
    """Where datafiles and config go; empty: data/NAME."""
    fold: str = ""
    """Which fold evaluates, where the data set has folds; empty: the last."""
    validation: float | None = None
    """Share of clips to choose the best epoch on; None: a tenth, and nothing where the data set brings a split."""
    evaluation: float = 0.1
    """Share of clips to evaluate on, where the data set brings no split."""
    seed: int = 0
    """Of the division into parts."""
    force: bool = False
    """Replace files that are there."""


@dataclass(frozen=True)
class PrepareFolder(Own):
    """Datafiles and a config from a folder with a folder of recordings per class. Example: psla prepare folder sounds

    ESC-50, Speech Commands, and train, validation and test folders are recognised.
    """

    directory: Positional[str]
    """The folder; the class of a recording is the folder directly below it."""


def prepare_folder(arguments: list[str]) -> int:
    """psla prepare folder DIR"""
    options = parse(PrepareFolder, arguments, "psla prepare folder")

    from psla_jax.data import folder

    return _write(folder.read(options.directory, fold=options.fold), options, Path(options.directory).resolve().name)


@dataclass(frozen=True)
class PrepareCSV(Own):
    """Datafiles and a config from a CSV of files and class names. Example: psla prepare csv sounds.csv --audio wavs

    One column has the files (filename, file, path, fname ...), one the classes (label, class, category ...), and one
    may divide them (split, subset, fold ...).
    """

    table: Positional[str]
    """The CSV."""
    audio: str = ""
    """Folder of the recordings, which may lie below it; empty: that of the CSV."""
    file_column: str = ""
    """Column of the files, where it has no usual name."""
    label_column: str = ""
    """Column of the classes, where it has no usual name."""
    split_column: str = ""
    """Column of parts or folds, where it has no usual name."""
    separator: Literal["auto", "bar", "semicolon", "comma", "none"] = "auto"
    """What stands between the labels of a clip; auto: the first of bar, semicolon and comma that is found."""


_SEPARATORS = {"auto": None, "bar": "|", "semicolon": ";", "comma": ",", "none": ""}


def prepare_csv(arguments: list[str]) -> int:
    """psla prepare csv FILE.csv"""
    options = parse(PrepareCSV, arguments, "psla prepare csv")

    from psla_jax.data import table

    found = table.read(
        options.table,
        options.audio,
        columns=table.Columns(options.file_column, options.label_column, options.split_column),
        separator=_SEPARATORS[options.separator],
        fold=options.fold,
    )
    return _write(found, options, Path(options.table).stem)


def _write(found, options: Own, name: str) -> int:
    from psla_jax.data import collection

    made = collection.prepare(
        found,
        options.out or str(Path("data") / name),
        validation=options.validation,
        evaluation=options.evaluation,
        seed=options.seed,
        force=options.force,
    )
    print(printable(made.report()))
    return 0


@dataclass(frozen=True)
class DataSet:
    """A row of the help: what to type, what it is for, and the function that does it."""

    usage: str
    does: str
    prepare: Callable[[list[str]], int]


DATA_SETS = {
    "fsd50k": DataSet("DIR", "FSD50K as it is downloaded", prepare_fsd50k),
    "audioset": DataSet("--segments CSV... --audio DIR...", "AudioSet: its lists, your audio", prepare_audioset),
    "folder": DataSet("DIR", "your recordings, a folder per class; ESC-50, Speech Commands", prepare_folder),
    "csv": DataSet("FILE.csv [--audio DIR]", "your recordings, listed in a table", prepare_csv),
    "relabel": DataSet("ENHANCED.json --onto MINE.json", "somebody's labels, your audio", labeling.relabel),
}


def usage() -> str:
    """The help of ``psla prepare`` alone."""
    rows = [f"  {f'{name} {data_set.usage}':<44}{data_set.does}" for name, data_set in DATA_SETS.items()]
    head = [
        "usage: psla prepare DATASET ...",
        "",
        "Datafiles, class list and what else training needs.",
        "",
        "data sets:",
    ]
    return "\n".join([*head, *rows, "", "psla prepare DATASET --help tells more."])


def prepare(arguments: list[str]) -> int:
    """psla prepare DATASET ..."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] not in DATA_SETS:
        raise UsageError(f"psla prepare does not know {arguments[0]!r}: choose one of {', '.join(DATA_SETS)}.")
    return DATA_SETS[arguments[0]].prepare(arguments[1:])
