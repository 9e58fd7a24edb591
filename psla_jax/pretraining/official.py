"""The released weights of PSLA: what there is, and one name to get it by."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from psla_jax.cache import cache_directory
from psla_jax.checkpoints import DESCRIPTION, read_card, require_place
from psla_jax.config import Padding
from psla_jax.download import fetch, sha256_of
from psla_jax.pretraining import convert, pth
from psla_jax.pretraining.names import PretrainingError

LICENCE = "not stated with the weights; the authors' code: https://github.com/YuanGongND/psla"

BROKEN = zipfile.BadZipFile, zlib.error, EOFError
"""What reading a damaged archive raises."""


@dataclass(frozen=True)
class Release:
    """Released weights: one file, or a folder of them as a zip archive.

    Attributes:
        name: what they are called here.
        what: what they are.
        labels: the class list they were trained with.
        models: how many there are.
        mAP: of their (ensemble's) scores on the evaluation set, as published.
        url: where the authors have them.
    """

    name: str
    what: str
    labels: str
    models: int
    mAP: float
    url: str

    @property
    def file(self) -> Path:
        """Where the download goes."""
        suffix = ".pth" if self.models == 1 else ".zip"
        return cache_directory() / "official" / f"{self.name}{suffix}"


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
"""What the authors released. Of none of these files is a checksum known: what they hold is checked instead."""


def release(name: str) -> Release:
    """The release of that name. Raises PretrainingError naming the others."""
    found = next((entry for entry in CATALOGUE if entry.name == name), None)
    if found is None:
        known = ", ".join(entry.name for entry in CATALOGUE)
        raise PretrainingError(f"there are no official weights {name!r}: choose one of {known}.")
    return found


def get(
    name: str, destination: Path, *, padding: Padding = "symmetric", overwrite: bool = False, say: Callable[[str], None]
) -> list[Path]:
    """Downloads official weights into the cache, if they are not there, and converts them.

    Args:
        name: of a :class:`Release`.
        destination: the model directory; for a set, the folder of its model directories. Those of the set that were
            converted there already are kept.
        padding: of the models, see ``psla convert``.
        overwrite: replace what is there.
        say: told what is going on, line by line.

    Returns:
        The model directories.

    Raises:
        DownloadError, PretrainingError: the download fails or holds something else; the message says which file to
            put where.
    """
    found = release(name)
    if found.models == 1:
        require_place(destination, overwrite=overwrite)
    _require_torch(name)
    if not found.file.is_file():
        say(f"downloading {found.url}")
    fetch(found.url, found.file, check=functools.partial(_check_file if found.models == 1 else _check_archive, found))
    if found.models == 1:
        return [_convert(found, found.file, destination, padding, overwrite, say)]
    directories = []
    for file in unpack(found.file):
        directory = destination / file.stem
        if overwrite or not _is_converted(file, directory, padding):
            _convert(found, file, directory, padding, overwrite, say)
        directories.append(directory)
    say(f"{len(directories)} models in {destination}; psla evaluate {destination}/* --data D.json compares them")
    return directories


def _is_converted(file: Path, directory: Path, padding: Padding) -> bool:
    """Whether a model directory was made of that file, by an earlier call that may not have come to its end."""
    if not (directory / DESCRIPTION).is_file():
        return False
    card = read_card(directory)
    source = card.notes.get("source", {})
    return card.model.padding == padding and source.get("sha256") == sha256_of(file)


def _convert(
    found: Release, file: Path, directory: Path, padding: Padding, overwrite: bool, say: Callable[[str], None]
) -> Path:
    request = convert.Request(
        str(file), str(directory), found.labels, padding=padding, licence=LICENCE, overwrite=overwrite
    )
    try:
        conversion = convert.convert(request)
    except PretrainingError as error:
        raise PretrainingError(
            f"{str(error).rstrip('.')}; if the download is at fault, delete {found.file} and start again."
        ) from error
    for line in conversion.lines():
        say(line)
    return directory


def _require_torch(name: str) -> None:
    """Before a long download, not after it."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise PretrainingError(f"converting {name} needs PyTorch: pip install torch.") from error


def _check_file(found: Release, path: Path) -> None:
    try:
        pth.read(path)
    except PretrainingError as error:
        what = str(error).removeprefix(str(path)).partition(":")[0]
        raise _stranger(found, what.strip()) from error


def _check_archive(found: Release, path: Path) -> None:
    good = False
    # The zip files are made on the way: a continued one may be put together from two. OSError: an offset before 0.
    with contextlib.suppress(*BROKEN, OSError), zipfile.ZipFile(path) as archive:
        good = bool(_members(path)) and archive.testzip() is None
    if not good:
        raise _stranger(found, "is no archive of weights, or a damaged one")


def _stranger(found: Release, what: str) -> PretrainingError:
    """The error for a download of the wrong kind."""
    return PretrainingError(
        f"what {found.url} gave {what}: open the link in a browser, and put the {found.file.suffix} file at "
        f"{found.file} yourself."
    )


def _members(path: Path) -> list[zipfile.ZipInfo]:
    """The files of weights in an archive, in the order of the numbers in their names."""
    with zipfile.ZipFile(path) as archive:
        members = [
            m for m in archive.infolist() if m.filename.endswith(".pth") and "optim" not in Path(m.filename).name
        ]
    return sorted(
        members, key=lambda m: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", m.filename)]
    )


def unpack(path: Path) -> list[Path]:
    """Unpacks the weights of an archive beside it, those that are not there yet; their paths.

    Raises:
        PretrainingError: it is no archive, a damaged one, or one without weights.
    """
    try:
        files = _unpack(path)
    except BROKEN as error:
        raise PretrainingError(f"{path} is damaged or no zip archive: delete it and start again.") from error
    if not files:
        raise PretrainingError(f"{path} holds no weights (.pth): delete it and start again.")
    return files


def _unpack(path: Path) -> list[Path]:
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with zipfile.ZipFile(path) as archive:
        for member in _members(path):
            # The name alone, not the path that the archive gives it: nothing is written anywhere else.
            file = folder / Path(member.filename).name
            if file in files:
                raise PretrainingError(f"{path} holds {file.name} twice: unpack it by hand and convert the files.")
            if not file.is_file() or file.stat().st_size != member.file_size:
                _extract(archive, member, file)
            files.append(file)
    return files


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path) -> None:
    """Writes a member to `file`, whole or not at all."""
    aside = file.with_name(f".{file.name}.part")
    try:
        with archive.open(member) as source, open(aside, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def show() -> None:
    """Prints the catalogue."""
    screen = Console(highlight=False, soft_wrap=True)
    console = screen if screen.is_terminal else Console(highlight=False, soft_wrap=True, width=200)
    table = Table(title="official weights (mAP as published)", title_justify="left")
    for column in ("name", "what", "models", "mAP", "in cache", "link"):
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "mAP"))
    for entry in CATALOGUE:
        cached = "yes" if entry.file.is_file() else "-"
        table.add_row(entry.name, entry.what, str(entry.models), f"{entry.mAP:.3f}", cached, entry.url)
    console.print(table)
    console.print(f"cache: {CATALOGUE[0].file.parent}; psla models NAME downloads and converts", soft_wrap=True)
