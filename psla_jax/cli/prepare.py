"""Command ``psla prepare``: datafiles from data sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from psla_jax.cli import enhance
from psla_jax.cli.arguments import UsageError, parse
from psla_jax.runtime.terminal import printable

if TYPE_CHECKING:
    from psla_jax.data.prepare.collection import Collection


@dataclass(frozen=True)
class PrepareFSD50K:
    """Resamples FSD50K and writes its datafiles. Example: psla prepare fsd50k /data/FSD50K"""

    directory: Positional[str]
    """Folder that contains FSD50K.dev_audio, FSD50K.eval_audio and FSD50K.ground_truth."""
    out: str = ""
    """Output folder for resampled audio and datafiles; empty: DIRECTORY."""
    workers: int = 0
    """Number of threads for resampling; 0: a few more than there are cores."""
    channel: Literal["mean", "first"] = "mean"
    """Conversion of stereo files to mono: the mean of the channels, or the first channel."""
    sample_rate: int = 16_000
    """Samples per second of the resampled audio: those of the frontend that will be trained. Other rates than 16000
    have folders of their own, such as FSD50K.dev_audio_32k and datafiles_32k."""


def prepare_fsd50k(arguments: list[str]) -> int:
    """psla prepare fsd50k DIR"""
    options = parse(PrepareFSD50K, arguments, "psla prepare fsd50k")

    from psla_jax.data.prepare import fsd50k

    out, settings = options.out or None, {"channel": options.channel, "sample_rate": options.sample_rate}
    return _print_report(fsd50k.prepare(options.directory, out, workers=options.workers or None, **settings))


@dataclass(frozen=True)
class PrepareAudioSet:
    """Writes datafiles from AudioSet's segment lists and a complete or partial copy of the audio.

    Example: psla prepare audioset --segments balanced_train_segments.csv eval_segments.csv --audio /data/audioset
    """

    segments: tuple[str, ...]
    """One or more of balanced_train_segments.csv, unbalanced_train_segments.csv and eval_segments.csv."""
    audio: tuple[str, ...]
    """Folders that contain the audio files, at any depth, with the clip's id anywhere in the file name."""
    out: str = "data/audioset"
    """Output folder for datafiles, coverage and lists of missing clips."""
    labels: str = "audioset"
    """Class list (CSV); audioset: the official one, which is built in."""
    ontology: str = ""
    """An ontology.json to check and to copy into the output folder; audioset: the official one, downloaded once."""
    force: bool = False
    """Whether to replace existing files."""


def prepare_audioset(arguments: list[str]) -> int:
    """psla prepare audioset --segments CSV... --audio DIR..."""
    options = parse(PrepareAudioSet, arguments, "psla prepare audioset")
    for name in ("segments", "audio"):
        if not getattr(options, name):
            raise UsageError(f"psla prepare audioset needs at least one name after --{name}.")

    from psla_jax.data.prepare import audioset

    return _print_report(audioset.prepare(**vars(options)))


@dataclass(frozen=True, kw_only=True)
class CollectionOptions:
    """Common options of ``psla prepare folder`` and ``psla prepare csv``."""

    out: str = ""
    """Output folder for datafiles and config; empty: data/NAME."""
    fold: str = ""
    """Evaluation fold, if the data set has folds; empty: the last one."""
    validation: float | None = None
    """Share of clips to select the best epoch on; None: 0.1, or 0 if the data set has a predefined split."""
    evaluation: float = 0.1
    """Share of clips to evaluate on, if the data set has no predefined split."""
    folds: tuple[int, ...] | None = None
    """Write folds for psla crossval: without a number, those of the data set itself (ESC-50, UrbanSound8K, folders
    fold1, fold2 ..., or a column fold of the table); with a number, as many stratified ones."""
    seed: int = 0
    """Random seed of the split and of the folds."""
    force: bool = False
    """Whether to replace existing files."""


@dataclass(frozen=True)
class PrepareFolder(CollectionOptions):
    """Writes datafiles and a config for a folder with one subfolder per class. Example: psla prepare folder sounds

    ESC-50, UrbanSound8K, Speech Commands, folders of parts (train, validation, test) or folds, and label files of
    Audacity beside the recordings are recognised.
    """

    directory: Positional[str]
    """The folder; the class of a recording is the name of the folder directly below it."""


def prepare_folder(arguments: list[str]) -> int:
    """psla prepare folder DIR"""
    options = parse(PrepareFolder, arguments, "psla prepare folder")

    from psla_jax.data.prepare import folder

    collection = folder.read(options.directory, fold=options.fold)
    return _prepare_collection(collection, options, Path(options.directory).resolve().name)


@dataclass(frozen=True)
class PrepareCSV(CollectionOptions):
    """Writes datafiles and a config for a CSV of files and classes. Example: psla prepare csv sounds.csv --audio wavs

    One column has the files (filename, file, path, fname ...) and one the classes (label, class, category ...); another
    one may have the parts or folds of a split (split, subset, fold ...). With columns of starts and ends in seconds, as
    in tables of DCASE, Raven and AudioSet-strong, each line is a segment of its file. Label files of Audacity are read.
    """

    table: Positional[str]
    """The CSV."""
    audio: str = ""
    """Folder of the recordings, which is searched recursively; empty: that of the CSV."""
    file_column: str = ""
    """Column of the files; empty: the first with a common name."""
    label_column: str = ""
    """Column of the classes; empty: the first with a common name."""
    split_column: str = ""
    """Column of the parts or folds; empty: the first with a common name, if there is one."""
    group_column: str = ""
    """Column of the sources, such as a recording that clips are cut from, which a random split does not divide;
    empty: the first with a common name (fsID, recording_id, speaker, site ...), if there is one."""
    start_column: str = ""
    """Column of the starts of segments; empty: the first with a common name (start, onset, Begin Time (s) ...), if
    there is also one of ends; none: whole recordings are labelled, whatever columns there are."""
    end_column: str = ""
    """Column of the ends of segments; empty: the first with a common name (end, offset, End Time (s) ...)."""
    separator: Literal["auto", "bar", "semicolon", "comma", "none"] = "auto"
    """Separator of the labels of a clip; auto: lists such as ['Dog', 'Bark'], or the first of bar, semicolon and comma
    that occurs."""


_SEPARATORS = {"auto": None, "bar": "|", "semicolon": ";", "comma": ",", "none": ""}


def prepare_csv(arguments: list[str]) -> int:
    """psla prepare csv FILE.csv"""
    options = parse(PrepareCSV, arguments, "psla prepare csv")

    from psla_jax.data.prepare import table

    columns = table.Columns(
        file=options.file_column,
        label=options.label_column,
        split=options.split_column,
        group=options.group_column,
        start=options.start_column,
        end=options.end_column,
    )
    separator = _SEPARATORS[options.separator]
    collection = table.read(options.table, options.audio, columns=columns, separator=separator, fold=options.fold)
    return _prepare_collection(collection, options, Path(options.table).stem)


def _prepare_collection(recordings: Collection, options: CollectionOptions, name: str) -> int:
    from psla_jax.data.prepare import collection, folds

    folding = None
    if options.folds is not None:
        folding = folds.choose(options.folds, recordings.clips, seed=options.seed, name=name)
    settings = {field: getattr(options, field) for field in ("validation", "evaluation", "seed", "force")}
    assign = folding.assign if folding else None
    prepared = collection.prepare(recordings, options.out or str(Path("data") / name), assign_folds=assign, **settings)
    _print_report(prepared)
    if folding is None:
        folds.remove(os.path.dirname(prepared.config))
    else:
        print(printable(folds.write(prepared, folding, exclusive=recordings.exclusive)))
    return 0


def _print_report(prepared: Any) -> int:
    print(printable(prepared.report()))
    return 0


@dataclass(frozen=True)
class DataSet:
    """Usage and description of a subcommand for the help text, and the function that implements it."""

    usage: str
    description: str
    prepare: Callable[[list[str]], int]


DATA_SETS = {
    "fsd50k": DataSet("DIR", "FSD50K as downloaded", prepare_fsd50k),
    "audioset": DataSet("--segments CSV... --audio DIR...", "AudioSet: its lists, your audio", prepare_audioset),
    "folder": DataSet("DIR", "a folder per class; ESC-50, UrbanSound8K, Speech Commands", prepare_folder),
    "csv": DataSet("FILE.csv [--audio DIR]", "your recordings, listed in a table", prepare_csv),
    "relabel": DataSet("ENHANCED.json --onto MINE.json", "published labels, your audio", enhance.relabel),
}


def usage() -> str:
    """Returns the help text of ``psla prepare``."""
    rows = [f"  {f'{name} {data_set.usage}':<44}{data_set.description}" for name, data_set in DATA_SETS.items()]
    head = ["usage: psla prepare DATASET ...", "", "Prepare a data set for training.", "", "data sets:"]
    return "\n".join([*head, *rows, "", "psla prepare DATASET --help shows the options."])


def prepare(arguments: list[str]) -> int:
    """psla prepare DATASET ..."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] not in DATA_SETS:
        raise UsageError(f"unknown data set {arguments[0]!r}: choose one of {', '.join(DATA_SETS)}.")
    return DATA_SETS[arguments[0]].prepare(arguments[1:])
