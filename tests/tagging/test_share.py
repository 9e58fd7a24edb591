"""Recordings divided among processes: the parts together contain every recording once, also after an interruption."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from psla_jax.tagging.result_writer import ResultWriter
from psla_jax.tagging.share import ALL, FolderError, Share

CLIPS = [f"{number}.wav" for number in range(7)]


def open_writer(folder: Path, share: Share, **options) -> ResultWriter:
    return ResultWriter({str(folder / "a b.csv"): "clip\n"}, [], 1, overwrite=False, share=share, **options)


def process(folder: Path, share: Share, until: int = 99) -> None:
    """Writes a share, or its first recordings as an interrupted process; every third recording has no lines."""
    writer = open_writer(folder, share)
    for clip in [clip for clip in share.select(CLIPS) if clip not in writer.done][:until]:
        writer.append(clip, {str(folder / "a b.csv"): f"{clip} ä\n" * (int(clip[0]) % 3)})
    if until < 99:
        writer.close()
    else:
        writer.finish()


def joined(folder: Path, share: Share) -> list[str]:
    """Runs the documented shell command and returns the lines of the joined file."""
    subprocess.run(share.cat_command(str(folder / "a b.csv")), shell=True, check=True)
    return (folder / "a b.csv").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("count", [2, 3, 12])
def test_the_parts_together_are_the_output_of_a_single_process(tmp_path, count):
    (tmp_path / "one").mkdir()
    process(tmp_path / "one", ALL)
    for index in reversed(range(count)):
        process(tmp_path, Share(index, count))
    parts = {f"a b.csv.part{index}of{count}" for index in range(count)}
    assert {path.name for path in tmp_path.iterdir()} == {"one", *parts}
    header, *rows = joined(tmp_path, Share(0, count))
    expected_header, *expected_rows = (tmp_path / "one" / "a b.csv").read_text(encoding="utf-8").splitlines()
    assert header == expected_header
    assert sorted(rows) == sorted(expected_rows)


def test_an_interrupted_process_resumes(tmp_path):
    process(tmp_path, Share(0, 2), until=2)
    process(tmp_path, Share(1, 2), until=0)
    assert (tmp_path / "a b.csv.part0of2.progress").exists()
    interrupted = open_writer(tmp_path, Share(0, 2))
    assert interrupted.done == {"0.wav", "2.wav"}
    interrupted.close()
    process(tmp_path, Share(0, 2))
    process(tmp_path, Share(1, 2))
    assert not list(tmp_path.glob("*.progress"))
    rows = joined(tmp_path, Share(0, 2))
    assert rows[0] == "clip"
    assert sorted(rows[1:]) == sorted(f"{clip} ä" for clip in CLIPS for _ in range(int(clip[0]) % 3))


@pytest.mark.parametrize(("begun", "then"), [(Share(0, 2), Share(0, 3)), (ALL, Share(1, 2)), (Share(1, 3), ALL)])
def test_another_number_of_processes_does_not_resume(tmp_path, begun, then):
    process(tmp_path, begun, until=1)
    with pytest.raises(FolderError, match="was started by another number of processes"):
        open_writer(tmp_path, then)


def test_existing_outputs_are_not_overwritten(tmp_path):
    process(tmp_path, Share(0, 2))
    with pytest.raises(FolderError, match=r"a b\.csv\.part0of2 already exists"):
        open_writer(tmp_path, Share(0, 2))
    process(tmp_path, Share(1, 2))
    (tmp_path / "labels").mkdir()
    own = tmp_path / "labels" / "0.txt"
    ResultWriter({}, [str(own.parent)], 1, overwrite=False, share=Share(1, 2), own={"0": [own]}).close()
    own.write_text("existing")
    with pytest.raises(FolderError, match=r"0\.txt already exists"):
        ResultWriter({}, [str(own.parent)], 1, overwrite=False, share=Share(0, 2), own={"0": [own]})
