"""Messages and TensorBoard events of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from psla_jax.evaluation.metrics import evaluate
from psla_jax.evaluation.tables import ModelSummary, print_summary
from psla_jax.runtime.logging import Logger, TensorBoardWriter


def events(directory: Path) -> list[Event]:
    """Reads TFRecords: a length of eight bytes, a checksum of four, the data, and its checksum of four."""
    found = []
    for file in sorted(directory.glob("*tfevents*")):
        content, place = file.read_bytes(), 0
        while place < len(content):
            size = int.from_bytes(content[place : place + 8], "little")
            found.append(Event.FromString(content[place + 12 : place + 12 + size]))
            place += size + 16
    return found


def test_curves_and_histograms_are_there_at_once(tmp_path: Path) -> None:
    with TensorBoardWriter(tmp_path / "board", start=7) as board:
        board.scalars({"loss": 0.25, "d_prime": float("inf")}, 8)
        board.histogram("AP", np.array([0.1, 0.2, np.nan, 0.9]), 8)
        board.histogram("none", np.array([np.nan]), 8)
        found = events(tmp_path / "board")
    assert [event.session_log.status for event in found if event.HasField("session_log")] == [1]
    assert [event.step for event in found if event.HasField("session_log")] == [7]
    values = [value for event in found for value in event.summary.value]
    assert [(value.tag, value.simple_value) for value in values if value.HasField("simple_value")] == [("loss", 0.25)]
    (histogram,) = [value.histo for value in values if value.HasField("histo")]
    assert (histogram.num, histogram.min, histogram.max) == (3, 0.1, 0.9)


def test_curves_that_cannot_be_written_are_said_once_and_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    with TensorBoardWriter(tmp_path / "file" / "board", 0, said.append) as board:
        for step in range(3):
            board.scalars({"loss": 0.1}, step)
    assert len(said) == 1
    assert "are disabled" in said[0]


def test_nothing_is_written_where_no_place_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with TensorBoardWriter(None, 0) as board:
        board.scalars({"loss": 0.1}, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("silent", [False, True])
def test_lines_go_to_the_screen_and_the_log_unless_another_process_speaks(tmp_path: Path, capsys, silent) -> None:
    logger = Logger(tmp_path / "log.txt", silent=silent)
    logger.info("[red]a name with brackets[/red]")
    logger.debug("for the log\nalone")
    shown = capsys.readouterr().out
    assert shown == ("" if silent else "[red]a name with brackets[/red]\n")
    assert (tmp_path / "log.txt").exists() is not silent
    if not silent:
        lines = [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()]
        assert lines == ["[red]a name with brackets[/red]", "for the log", "alone"]


def test_a_reader_that_leaves_does_not_end_the_work(tmp_path: Path) -> None:
    """``psla train ... | head`` must not stop a training; its log file is complete."""
    code = """
import sys
from pathlib import Path
from psla_jax.runtime.logging import Logger
logger = Logger(Path(sys.argv[1]))
for number in range(10_000):
    logger.info(f"line {number}")
logger.console.print("a table")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "log.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].endswith(" line 9999")


def test_names_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Rich would print the colons of demo:train: as a picture, and leave out what is in brackets."""
    text = "demo:train: 420 clips of [bold] runs/a[b]"
    Logger().info(text)
    metrics = evaluate(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[1, 0], [0, 1]]))
    print_summary(Logger().console, [ModelSummary("model", {"evaluation": metrics}, {})], text)
    assert capsys.readouterr().out.count(text) == 2
