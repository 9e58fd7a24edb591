"""Official checkpoints: list, download and conversion."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.table import Table

from psla_jax.config import Padding
from psla_jax.models.model_dir import DESCRIPTION, read_card, require_replaceable
from psla_jax.pretraining import convert, weight_file
from psla_jax.pretraining.state_dict import PretrainingError
from psla_jax.runtime.cache import cache_directory, in_cache
from psla_jax.runtime.download import fetch, sha256_of
from psla_jax.runtime.files import atomic_path

LICENCE = "not stated with the weights; the authors' code: https://github.com/YuanGongND/psla"

DEFAULT = "audioset-average"
"""Release that is used where no model is named."""
MODEL_VARIABLE = "PSLA_MODEL"
"""Environment variable with the path or name of the model that is used where none is named."""
MEGABYTES = 55
"""Size of a checkpoint; those of 200 classes are slightly smaller."""
ARCHIVE_ERRORS = zipfile.BadZipFile, zlib.error, EOFError
"""Exceptions raised while reading a damaged archive."""


@dataclass(frozen=True)
class Release:
    """Released weights: a single checkpoint, or a zip archive of several.

    Attributes:
        name: name used by ``psla models``.
        what: description.
        labels: class list that the models were trained with.
        models: number of checkpoints.
        mAP: published mAP of the model, or of the ensemble of all models, on the evaluation set.
        url: download link of the authors.
    """

    name: str
    what: str
    labels: str
    models: int
    mAP: float
    url: str

    @property
    def file(self) -> Path:
        """Path of the download in the cache."""
        return cache_directory().joinpath(*self.location)

    @property
    def location(self) -> tuple[str, str]:
        """Folder and name of the download in the cache."""
        return "official", f"{self.name}{'.pth' if self.models == 1 else '.zip'}"


CATALOGUE = tuple(
    Release(name, what, name.partition("-")[0], models, mAP, f"https://www.dropbox.com/{link}?dl=1")
    for name, what, models, mAP, link in (
        ("audioset-single", "single model", 1, 0.440, "s/d1z27wj30ew5qrs/as_mdl_0.pth"),
        ("audioset-average", "weight average", 1, 0.444, "s/ieggie0ara4x26d/as_mdl_0_wa.pth"),
        ("audioset-checkpoints", "all epochs of a run", 30, 0.453, "sh/jo6te8fcy1ptabw/AAAtJ9sMn93-3L0XkebzQQxIa"),
        ("audioset-3-runs", "3 runs of one setting", 3, 0.464, "sh/c83w8816vl6yhty/AADjoO9irfP1RCr-qyZMJg_-a"),
        ("audioset-10-models", "10 settings", 10, 0.474, "sh/ihfbxcemxamihz9/AAD9zqnUptZzyZlquqpWllDya"),
        ("fsd50k-single", "single model", 1, 0.559, "s/stzrmfty2oyqnnj/fsd_mdl_best_single.pth"),
        ("fsd50k-average", "weight average", 1, 0.562, "s/5fvybrbulvhsish/fsd_mdl_wa.pth"),
        ("fsd50k-checkpoints", "all epochs of a run", 40, 0.573, "sh/gyv95m53sib36vk/AADWCgApSxtAEVU1KrnQApi3a"),
    )
)
"""All releases of the authors. No checksums are published, so the content of a download is checked instead."""


def find_release(name: str) -> Release:
    """Returns the release with the given name. Raises PretrainingError if there is none."""
    release = next((release for release in CATALOGUE if release.name == name), None)
    if release is None:
        names = ", ".join(release.name for release in CATALOGUE)
        raise PretrainingError(f"there are no official weights {name!r}: choose one of {names}.")
    return release


def get(
    name: str, destination: Path, *, padding: Padding = "symmetric", overwrite: bool = False, log: Callable[[str], None]
) -> list[Path]:
    """Downloads official weights unless they are in the cache, converts them, and returns the model directories.

    Args:
        name: name of a :class:`Release`.
        destination: model directory to write, or for a release of several models the folder of their directories.
            Models of such a release that were converted before are kept unless `overwrite` is true.
        padding: padding of the models, see ``psla convert``.
        overwrite: whether to replace existing models.
        log: receives progress messages.

    Raises:
        DownloadError, PretrainingError: the download fails or has unexpected content; the message says which file to
            put where.
    """
    release = find_release(name)
    single = release.models == 1
    if single:
        require_replaceable(destination, overwrite=overwrite)
    if not release.file.is_file():
        log(f"downloading {release.url}")
    check = functools.partial(_check_download, release)
    download = in_cache(lambda path: fetch(release.url, path, check=check), *release.location)
    if single:
        return [_convert(release, download, destination, padding, overwrite, log)]
    directories = []
    for file in in_cache(lambda folder: unpack(download, folder.with_suffix("")), *release.location):
        directory = destination / file.stem
        if overwrite or not _is_converted(file, directory, padding):
            _convert(release, file, directory, padding, overwrite, log)
        directories.append(directory)
    log(f"{len(directories)} models in {destination}; psla evaluate {destination}/* --data D.json compares them")
    return directories


def resolve(models: Sequence[str], log: Callable[[str], None]) -> list[str]:
    """Returns the paths of models, which are given by their paths or by names of releases.

    A release is downloaded and converted once and kept in the cache directory. Without a model, it is that of the
    environment variable PSLA_MODEL, or else the weight average that the authors trained on AudioSet.

    Args:
        models: paths and names; a path that exists comes before a name.
        log: receives a message about every download and conversion.

    Raises:
        DownloadError, PretrainingError: as :func:`get`.
    """
    names = {release.name for release in CATALOGUE}
    paths: list[str] = []
    for model in models or [os.environ.get(MODEL_VARIABLE) or DEFAULT]:
        paths += _kept(model, log) if model in names and not os.path.exists(model) else [model]
    return paths


def _kept(name: str, log: Callable[[str], None]) -> list[str]:
    """Returns the model directories of a release in the cache directory, after making them if they are missing."""
    release = find_release(name)

    def make(path: Path) -> list[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # Several processes may start at the same time.
            made = [path, *path.iterdir()] if path.is_dir() else []
            made = sorted(directory for directory in made if (directory / DESCRIPTION).is_file())
            if len(made) == release.models:
                return made
            log(
                f"{name} ({release.what}, published mAP {release.mAP:.3f}) is needed once: about "
                f"{MEGABYTES * release.models} MB; licence: {LICENCE}"
            )
            return get(name, path, log=log)

    return [str(directory) for directory in in_cache(make, "models", name)]


def _is_converted(file: Path, directory: Path, padding: Padding) -> bool:
    """Returns whether a model directory was converted from the file, as by a previous, interrupted call."""
    if not (directory / DESCRIPTION).is_file():
        return False
    card = read_card(directory)
    return card.model.padding == padding and card.notes.get("source", {}).get("sha256") == sha256_of(file)


def _convert(
    release: Release, file: Path, directory: Path, padding: Padding, overwrite: bool, log: Callable[[str], None]
) -> Path:
    request = convert.Request(
        str(file), str(directory), release.labels, padding=padding, licence=LICENCE, overwrite=overwrite
    )
    try:
        conversion = convert.convert(request)
    except PretrainingError as error:
        remedy = f"if the download is damaged, delete {release.file} and start again."
        raise PretrainingError(f"{str(error).rstrip('.')}; {remedy}") from error
    for line in conversion.lines():
        log(line)
    return directory


def _check_download(release: Release, path: Path) -> None:
    """Raises PretrainingError if a download is not a weight file, or not an archive of weights."""
    problem = ""
    if release.models == 1:
        try:
            weight_file.read(path)
        except PretrainingError as error:
            problem = str(error).removeprefix(str(path)).partition(":")[0].strip()
    else:
        problem = "is not an archive of weights, or is damaged"
        # The server creates the archive for each request, so a resumed download may combine two different archives. In
        # this case zipfile may raise OSError for a negative offset.
        with contextlib.suppress(*ARCHIVE_ERRORS, OSError), zipfile.ZipFile(path) as archive:
            if _weight_members(archive) and archive.testzip() is None:
                problem = ""
    if problem:
        raise PretrainingError(
            f"the download from {release.url} {problem}: open the link in a browser, and put the {release.file.suffix} "
            f"file at {release.file} yourself."
        )


def _weight_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Returns the weight files of an archive in the order of the numbers in their names."""
    members = [m for m in archive.infolist() if m.filename.endswith(".pth") and "optim" not in Path(m.filename).name]
    return sorted(
        members, key=lambda m: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", m.filename)]
    )


def unpack(path: Path, folder: Path) -> list[Path]:
    """Extracts the weights of an archive into a folder, except existing files, and returns their paths.

    Raises:
        PretrainingError: the file is not an archive, is damaged, or contains no weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in _weight_members(archive):
                # The path in the archive is ignored, so that nothing is written outside the folder.
                file = folder / Path(member.filename).name
                if file in files:
                    raise PretrainingError(f"{path} holds {file.name} twice: unpack it by hand and convert the files.")
                if not file.is_file() or file.stat().st_size != member.file_size:
                    with archive.open(member) as source, atomic_path(file) as part, open(part, "wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                files.append(file)
    except ARCHIVE_ERRORS as error:
        raise PretrainingError(f"{path} is damaged or not a zip archive: delete it and start again.") from error
    if not files:
        raise PretrainingError(f"{path} holds no weights (.pth): delete it and start again.")
    return files


def show() -> None:
    """Prints the catalogue."""
    terminal = Console(emoji=False, highlight=False, soft_wrap=True)
    console = terminal if terminal.is_terminal else Console(emoji=False, highlight=False, soft_wrap=True, width=200)
    table = Table(title="official weights (mAP as published)", title_justify="left")
    for column in ("name", "what", "models", "mAP", "in cache", "link"):
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "mAP"))
    for release in CATALOGUE:
        cached = "yes" if release.file.is_file() else "-"
        table.add_row(release.name, release.what, str(release.models), f"{release.mAP:.3f}", cached, release.url)
    console.print(table)
    console.print(f"cache: {CATALOGUE[0].file.parent}; psla models NAME downloads and converts", soft_wrap=True)
