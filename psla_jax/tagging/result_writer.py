"""Writes the results of many recordings so that an interrupted run can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from psla_jax.runtime import files as output_files
from psla_jax.runtime.streams import STANDARD, discard_standard_output, is_output_stream, open_output
from psla_jax.tagging.share import ALL, FolderError, Share, read_progress

NO_FILES: Mapping[str, Sequence[Path]] = {}


class ResultWriter:
    """Appends results to files, recording by recording, and keeps a progress file until all are written.

    The same command resumes an interrupted run: incomplete lines are cut off, and finished recordings are skipped,
    unless their lines or their own files have been deleted since. Pipes, devices and standard output (``-``) receive
    the results of the recordings that are not skipped.

    Attributes:
        done: paths of the recordings whose lines are written.
        failed: paths of the recordings among them that could not be tagged.
        closed: pipes that their reader has closed before the end.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        folders: Sequence[str],
        settings: Any,
        *,
        overwrite: bool,
        share: Share = ALL,
        own: Mapping[str, Sequence[Path]] = NO_FILES,
    ) -> None:
        """Opens the outputs.

        Args:
            files: output files, each with the header of a new one; with several processes only the first part has it.
            folders: folders for outputs of single recordings.
            settings: any JSON value; a run is resumed only with equal settings.
            overwrite: start over and replace existing outputs.
            share: the share of this process; unless it is the only one, it writes parts of the files.
            own: by path of a recording of this process, its files in the folders, to which other processes write too.

        Raises:
            FolderError: an output exists that this run has not started, that was started with other settings, or that
                another process writes.
            OSError: an output cannot be written; new files are removed again.
        """
        self.done, self.failed, self.closed = set[str](), set[str](), list[str]()
        self._own, self._share, self._folders = own, share, folders
        self._files: dict[str, IO[bytes]] = {}
        self._streams: dict[str, IO[bytes]] = {}
        self._progress: IO[bytes] | None = None
        headers = {path: header.encode() if share.index == 0 else b"" for path, header in files.items()}
        streams = {path: headers.pop(path) for path in files if path == STANDARD or is_output_stream(path)}
        with ExitStack() as stack:
            if headers or folders:
                self._open_files(headers, settings, overwrite, stack)
            for path, header in streams.items():
                self._streams[path] = _enter(stack, open_output(path))
                self._write_to_stream(path, header)
            self._stack = stack.pop_all()

    def _open_files(self, headers: Mapping[str, bytes], settings: Any, overwrite: bool, stack: ExitStack) -> None:
        """Opens the files at the end of the last recording that is complete in all of them."""
        outputs, share = [*headers, *self._folders], self._share
        self._progress_path = share.progress_path(outputs[0])
        _make_folder(self._progress_path.parent)
        stack.enter_context(_locked(self._progress_path, outputs[0]))
        share.require_same_count(outputs[0])
        lines = [] if overwrite else read_progress(self._progress_path)
        settings = json.loads(json.dumps(settings))
        if lines and lines[0] != {"settings": settings}:
            raise FolderError(
                f"{outputs[0]} was started with other settings: repeat those to resume, name another path, or start "
                "over with --overwrite."
            )
        parts = {path: Path(share.part_path(path)) for path in headers}
        if not lines and not overwrite:
            folders = map(Path, self._folders) if share.count == 1 else (p for own in self._own.values() for p in own)
            _require_new([*parts.values(), *folders])
        lines = _intact(lines, {path: part.stat().st_size if part.is_file() else 0 for path, part in parts.items()})
        for line in lines[1:]:
            self._mark(line["clip"], line["failed"])
        for folder in (*map(os.path.dirname, headers), *self._folders):
            _make_folder(Path(folder))
        sizes = lines[-1].get("sizes", {}) if lines else {}
        with output_files.removed_on_failure([self._progress_path, *parts.values()]):
            # Written before the outputs, so that the same command resumes whatever happens to them.
            with output_files.atomic_text(self._progress_path) as file:
                file.writelines(json.dumps(line) + "\n" for line in lines or [{"settings": settings}])
            self._progress = _enter(stack, open(self._progress_path, "ab"))  # noqa: SIM115
            for path, part in parts.items():
                size = sizes.get(path, 0)
                self._files[path] = _enter(stack, open(part, "r+b" if size else "wb"))  # noqa: SIM115
                self._files[path].truncate(size)
                self._files[path].seek(size)
                self._write_to_file(path, b"" if size else headers[path])

    def is_complete(self, clip: str) -> bool:
        """Returns whether nothing of a recording has to be written: its lines are, and its own files exist."""
        return clip in self.done and (
            clip in self.failed or all(os.path.exists(path) for path in self._own.get(clip, ()))
        )

    def append(self, clip: str, texts: Mapping[str, str], *, failed: bool = False) -> None:
        """Appends the lines of a recording, unless an interrupted run has done so, and records it as done or failed.

        Raises:
            OSError: a file cannot be written. The same command resumes at this recording.
            BrokenPipeError: the only output is a pipe that its reader has closed.
        """
        encoded = {path: text.encode("utf-8", "surrogateescape") for path, text in texts.items()}
        for path, content in encoded.items() if clip not in self.done else ():
            if path in self._files:
                self._write_to_file(path, content)
            else:
                self._write_to_stream(path, content)
        self._mark(clip, failed)
        if self._progress is not None:
            sizes = {path: file.tell() for path, file in self._files.items()}
            with output_files.named_in_errors(self._progress_path):
                self._progress.write((json.dumps({"clip": clip, "failed": failed, "sizes": sizes}) + "\n").encode())
                self._progress.flush()

    def _mark(self, clip: str, failed: bool) -> None:
        self.done.add(clip)
        if failed:
            self.failed.add(clip)
        else:
            self.failed.discard(clip)

    def _write_to_file(self, path: str, content: bytes) -> None:
        with output_files.named_in_errors(path):
            self._files[path].write(content)
            self._files[path].flush()

    def _write_to_stream(self, path: str, content: bytes) -> None:
        """Writes to a pipe; once its reader has closed it, only the other outputs are written, if there are any."""
        if path not in self._streams:
            return
        try:
            with output_files.named_in_errors("standard output" if path == STANDARD else path):
                self._streams[path].write(content)
                self._streams[path].flush()
        except BrokenPipeError:
            if path == STANDARD:
                discard_standard_output()
            del self._streams[path]
            self.closed.append(path)
            if not (self._streams or self._files or self._folders):
                raise

    def finish(self) -> None:
        """Closes the files and removes the progress file, after all recordings of this process are done."""
        for path, file in self._files.items():
            with output_files.named_in_errors(path):
                file.close()  # A network file system may report only here that the disk is full.
        self.close()
        if self._progress is not None:
            self._progress_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files, so that the run can be resumed."""
        self._stack.close()


def _enter(stack: ExitStack, opened: AbstractContextManager[IO[bytes]]) -> IO[bytes]:
    """Enters a file into the stack, which closes it without an error: it would repeat that of a failed write."""
    own = ExitStack()
    file = own.enter_context(opened)
    stack.callback(_close, own)
    return file


def _close(opened: ExitStack) -> None:
    with suppress(OSError):
        opened.close()


@contextmanager
def _locked(progress: Path, output: str) -> Iterator[None]:
    """Prevents that another process writes the same outputs at the same time."""
    lock = FileLock(f"{progress}.lock", timeout=0)
    try:
        with suppress(RuntimeError):  # filelock raises one where the file system has no locks.
            lock.acquire()
    except Timeout as error:
        raise FolderError(
            f"{output} is being written by another psla tag: wait until it has ended, or name another path."
        ) from error
    except OSError as error:  # The folder is read-only.
        error.filename = output
        raise
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FolderError(f"{error.filename} is not a folder: name another path for the output.") from error


def _require_new(paths: Sequence[Path]) -> None:
    """Raises FolderError if a path is an existing file, or a folder that is not empty."""
    for path in paths:
        if os.path.isfile(path) or (os.path.isdir(path) and any(path.iterdir())):
            raise FolderError(f"{path} already exists: name another path, or replace it with --overwrite.")


def _intact(lines: list[dict[str, Any]], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Returns the lines of a progress file up to the last recording that is in the output files, given their sizes.

    Files that were deleted or cut off since the interruption lack recordings that the progress file lists as done.
    """
    recorded = len(lines)
    while recorded > 1 and any(sizes[path] < size for path, size in lines[recorded - 1]["sizes"].items()):
        recorded -= 1
    return lines[:recorded]
