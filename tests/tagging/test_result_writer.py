"""Outputs of interrupted and failed runs."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from disks import file_size_limit

from psla_jax.tagging.result_writer import ResultWriter
from psla_jax.tagging.share import FolderError


def open_writer(tmp_path, settings=1, overwrite=False) -> ResultWriter:
    files = {str(tmp_path / "a.csv"): "head\n", str(tmp_path / "b.json"): ""}
    return ResultWriter(files, [], settings, overwrite=overwrite)


def interrupt(tmp_path, clips: str) -> None:
    """Writes the results of some recordings and ends without finishing."""
    writer = open_writer(tmp_path)
    for clip in clips:
        append(writer, tmp_path, clip)
    writer.close()


def append(writer: ResultWriter, tmp_path, clip: str) -> None:
    writer.append(clip, {str(tmp_path / "a.csv"): f"{clip}\n", str(tmp_path / "b.json"): f"<{clip}>\n"})


@pytest.mark.parametrize("torn", ["", "half a li", "clip 2\nclip"])
def test_an_interrupted_run_resumes_after_the_last_complete_line(tmp_path, torn):
    first = open_writer(tmp_path)
    for clip in ("0", "1"):
        append(first, tmp_path, clip)
    first.close()
    with open(tmp_path / "a.csv", "a") as file:
        file.write(torn)
    with open(tmp_path / "a.csv.progress", "a") as file:
        file.write(torn and '{"clip": "2", "si')
    again = open_writer(tmp_path)
    assert again.done == {"0", "1"}
    for clip in ("2", "3"):
        append(again, tmp_path, clip)
    again.finish()
    assert (tmp_path / "a.csv").read_text() == "head\n0\n1\n2\n3\n"
    assert (tmp_path / "b.json").read_text() == "<0>\n<1>\n<2>\n<3>\n"
    assert not (tmp_path / "a.csv.progress").exists()


def test_an_interruption_before_the_first_clip_changes_nothing(tmp_path):
    open_writer(tmp_path).close()
    again = open_writer(tmp_path)
    append(again, tmp_path, "0")
    again.finish()
    assert (tmp_path / "a.csv").read_text() == "head\n0\n"


def test_nothing_is_overwritten_unless_asked(tmp_path):
    done = open_writer(tmp_path)
    append(done, tmp_path, "0")
    done.finish()
    with pytest.raises(FolderError, match=r"a\.csv already exists"):
        open_writer(tmp_path)
    replaced = open_writer(tmp_path, overwrite=True)
    assert replaced.done == set()
    replaced.finish()
    assert (tmp_path / "a.csv").read_text() == "head\n"


def test_other_settings_do_not_resume(tmp_path):
    begun = open_writer(tmp_path)
    append(begun, tmp_path, "0")
    begun.close()
    with pytest.raises(FolderError, match="was started with other settings"):
        open_writer(tmp_path, settings=2)
    assert (tmp_path / "a.csv").read_text() == "head\n0\n"
    (tmp_path / "a.csv.progress").write_text("this\nis something else\n")
    with pytest.raises(FolderError, match="is not a progress file of psla tag"):
        open_writer(tmp_path)


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.txt").write_text("mine")
    with pytest.raises(FolderError, match="labels already exists"):
        ResultWriter({}, [str(tmp_path / "labels")], 1, overwrite=False)
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == '["labels"]'


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda a, b: b.unlink(), ""),
        (lambda a, b: (a.unlink(), b.unlink()), ""),
        (lambda a, b: os.truncate(a, len("head\n0\n1\n")), "01"),
        (lambda a, b: os.truncate(b, len("<0>\n<1>\n<")), "01"),
        (lambda a, b: os.truncate(a, 0), ""),
    ],
)
def test_results_that_were_deleted_after_the_interruption_are_written_again(tmp_path, damage, kept):
    interrupt(tmp_path, "0123")
    damage(tmp_path / "a.csv", tmp_path / "b.json")
    writer = open_writer(tmp_path)
    assert writer.done == set(kept)
    for clip in "01234":
        if not writer.is_complete(clip):
            append(writer, tmp_path, clip)
    writer.finish()
    assert (tmp_path / "a.csv").read_text() == "head\n0\n1\n2\n3\n4\n"
    assert (tmp_path / "b.json").read_text() == "<0>\n<1>\n<2>\n<3>\n<4>\n"


def test_own_files_that_were_deleted_after_the_interruption_are_missing(tmp_path):
    """A recording without its own file is not complete, and its lines are not written twice."""
    folder, table = tmp_path / "labels", str(tmp_path / "a.csv")
    own = {clip: [folder / f"{clip}.txt"] for clip in "0123"}
    options = {"folders": [str(folder)], "settings": 1, "overwrite": False, "own": own}
    writer = ResultWriter({table: ""}, **options)
    for clip in "012":
        own[clip][0].touch()
        writer.append(clip, {table: f"{clip}\n"}, failed=clip == "2")
    writer.close()
    for clip in "12":
        own[clip][0].unlink()
    writer = ResultWriter({table: ""}, **options)
    assert [writer.is_complete(clip) for clip in "0123"] == [True, False, True, False], "2 failed: it has no file"
    writer.append("1", {table: "1\n"})
    writer.append("3", {table: "3\n"})
    writer.finish()
    assert Path(table).read_text() == "0\n1\n2\n3\n"
    assert not list(tmp_path.glob("*.progress*"))


def test_a_full_disk_at_the_first_write_leaves_nothing(tmp_path):
    """An empty file in place of the output would block the same command."""
    table = str(tmp_path / "a.csv")
    with file_size_limit(1000), pytest.raises(OSError, match=rf"File too large: '{table}'"):
        ResultWriter({table: "x" * 1001}, [], 1, overwrite=False)
    assert os.listdir(tmp_path) == []
    ResultWriter({table: "head\n"}, [], 1, overwrite=False).finish()
    assert Path(table).read_text() == "head\n"


def test_a_disk_that_becomes_full_loses_only_the_recording_being_written(tmp_path):
    table = str(tmp_path / "a.csv")
    writer = ResultWriter({table: "head\n"}, [], 1, overwrite=False)
    writer.append("0", {table: "0\n"})
    with file_size_limit(1000):
        with pytest.raises(OSError, match=rf"File too large: '{table}'"):
            writer.append("1", {table: "1" * 2000})
        writer.close()
    assert os.path.getsize(table) > len("head\n0\n"), "a part was written"
    writer = ResultWriter({table: "head\n"}, [], 1, overwrite=False)
    assert writer.done == {"0"}
    writer.append("1", {table: "1\n"})
    writer.finish()
    assert Path(table).read_text() == "head\n0\n1\n"


def test_two_processes_do_not_write_the_same_outputs(tmp_path):
    first = open_writer(tmp_path)
    with pytest.raises(FolderError, match=r"a\.csv is being written by another psla tag"):
        open_writer(tmp_path)
    with pytest.raises(FolderError, match=r"a\.csv is being written by another psla tag"):
        open_writer(tmp_path, overwrite=True)
    append(first, tmp_path, "0")
    first.close()
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "b.json", "a.csv.progress"}
    open_writer(tmp_path).finish()
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "b.json"}
    assert (tmp_path / "a.csv").read_text() == "head\n0\n"


@pytest.mark.parametrize("others", [True, False])
def test_a_reader_that_leaves_ends_only_its_own_output(tmp_path, others):
    pipe, table = str(tmp_path / "pipe"), str(tmp_path / "a.csv")
    os.mkfifo(pipe)
    received: list[bytes] = []

    def read() -> None:
        with open(pipe, "rb", buffering=0) as file:
            received.append(file.read(100))

    reader = threading.Thread(target=read)
    reader.start()
    writer = ResultWriter({pipe: "head\n"} | ({table: "head\n"} if others else {}), [], 1, overwrite=False)
    reader.join(10)
    texts = {pipe: "0\n", table: "0\n"} if others else {pipe: "0\n"}
    if others:
        writer.append("0", texts)
        assert writer.closed == [pipe]
        writer.finish()
        assert Path(table).read_text() == "head\n0\n"
    else:
        with pytest.raises(BrokenPipeError):
            writer.append("0", texts)
        writer.close()
    assert received == [b"head\n"]
    assert {path.name for path in tmp_path.iterdir()} == {"pipe"} | ({"a.csv"} if others else set())
