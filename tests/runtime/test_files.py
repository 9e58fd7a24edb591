"""Files appear whole or not at all, and pipes and devices in their place are neither replaced nor waited for."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from psla_jax.runtime import files, streams


def write(path: Path, text: str) -> None:
    with files.atomic_text(path) as file:
        file.write(text)


def write_and_fail(path: Path, error: BaseException) -> None:
    with files.atomic_text(path) as file:
        file.write("new")
        raise error


def write_both_and_fail(first: Path, second: Path) -> None:
    with files.removed_on_failure([first, second]):
        write(second, "new")
        raise OSError("full")


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "\udcff" * 255])
def test_a_name_may_have_all_bytes_that_the_system_allows(tmp_path, name):
    write(tmp_path / name, "content")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["content"]
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, error):
    write(tmp_path / "a.txt", "old")
    with pytest.raises(type(error)) as raised:
        write_and_fail(tmp_path / "a.txt", error)
    assert getattr(raised.value, "filename", str(tmp_path / "a.txt")) == str(tmp_path / "a.txt")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to("target")
    for text in ("first", "second"):
        write(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_text() == text


def test_standard_output_and_devices_are_written_to_and_stay_what_they_are(capfdbinary, tmp_path):
    # Reached through links, so that a mistake in this package cannot replace the devices of the system.
    for name in ("fd/1", "stdout", "null", "full"):
        link = tmp_path / name.replace("/", "")
        link.symlink_to(f"/dev/{name}")
        assert not files.exists(link)
        if name == "full":
            with pytest.raises(OSError, match=r"No space left on device: .*/full"):
                write(link, "text")
        else:
            write(link, f"to {name}\n")
        assert os.readlink(link) == f"/dev/{name}"
    assert capfdbinary.readouterr().out == b"to fd/1\nto stdout\n"


def test_a_named_pipe_carries_output_and_input(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    write(pipe, "x" * 100_000)
    reader.join(10)
    assert received == ["x" * 100_000]
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"y" * 100_000))
    writer.start()
    with streams.regular_file(pipe) as name:
        assert Path(name).read_bytes() == b"y" * 100_000
    writer.join(10)
    assert not os.path.exists(name)
    assert pipe.is_fifo()


def test_a_pipe_that_no_other_program_opens_is_an_error_and_not_a_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "PARTNER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TimeoutError, match="no program writes to this pipe"), streams.regular_file(tmp_path / "pipe"):
        pass
    with pytest.raises(TimeoutError, match="no program reads from this pipe"):
        write(tmp_path / "pipe", "text")
    with pytest.raises(OSError, match="it is a device"), streams.regular_file("/dev/zero"):
        pass


def test_a_slow_writer_of_a_pipe_is_waited_for(monkeypatch):
    """A program that has opened the pipe may take longer than the time to open it."""
    monkeypatch.setattr(streams, "PARTNER_SECONDS", 0.0)
    read_end, write_end = os.pipe()
    timer = threading.Timer(0.3, lambda: (os.write(write_end, b"late"), os.close(write_end)))
    timer.start()
    with streams.regular_file(f"/dev/fd/{read_end}") as name:
        assert Path(name).read_bytes() == b"late"
    os.close(read_end)


def test_files_of_a_failed_set_are_removed_except_older_ones(tmp_path):
    write(tmp_path / "old", "old")
    with pytest.raises(OSError, match="full"):
        write_both_and_fail(tmp_path / "old", tmp_path / "new")
    assert os.listdir(tmp_path) == ["old"]
