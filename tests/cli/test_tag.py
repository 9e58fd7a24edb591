"""The command ``psla tag``."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
from flax import nnx
from sounds import VOCABULARY

from psla_jax.cli import main
from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.models import factory
from psla_jax.models.model_dir import ModelCard, save_model
from psla_jax.models.state import split_model
from psla_jax.runtime import streams
from psla_jax.tagging.result_writer import ResultWriter

MODEL = ModelConfig("efficientnet-tiny", "attention", 2)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, and a folder of five recordings: one is unreadable, and one is longer than a window."""
    folder = tmp_path_factory.mktemp("home")
    network = factory.from_config(MODEL, len(VOCABULARY), np.float32, nnx.Rngs(0))
    save_model(folder / "model", ModelCard(MODEL, FrontendConfig(96), VOCABULARY, {}), *split_model(network))
    rng = np.random.default_rng(0)
    (folder / "in" / "sub").mkdir(parents=True)
    for name, seconds in (("a.wav", 0.5), ("b.flac", 0.9), ("d.wav", 3.0), ("sub/e.wav", 0.7)):
        soundfile.write(folder / "in" / name, rng.normal(0, 0.1, round(22_050 * seconds)), 22_050)
    (folder / "in" / "c.wav").write_text("no sound")
    return folder


def tag(home, *arguments: str) -> int:
    return main.main(["tag", *map(str, arguments), "--model", str(home / "model"), "--threshold", "0.1"])


def test_every_file_of_a_folder_gives_a_result_or_a_line(home, tmp_path, capsys):
    """A sample of 1e30 ends nothing, a cut file has a note, other files are counted, and linked folders followed."""
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 30_000)
    soundfile.write(folder / "a.wav", np.where(np.arange(30_000) == 1600, 1e30, noise), 16_000, subtype="FLOAT")
    soundfile.write(folder / "b.flac", noise, 16_000)
    (folder / "b.flac").write_bytes((folder / "b.flac").read_bytes()[:30_000])
    soundfile.write(elsewhere / "c.wav", noise, 16_000)
    (folder / "link").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "notes.txt").touch()
    assert tag(home, folder, "--csv", tmp_path / "t.csv") == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == f"{folder}: files that are not audio by their names are left out: 1 .txt"
    assert errors[1].startswith(f"psla: {folder / 'a.wav'} holds samples that are not finite or too large")
    assert "the first 1e+30 at 0.100 s" in errors[1]
    assert errors[2].startswith(f"{folder / 'b.flac'} holds ")
    assert "s of the 1.88 s that its header states" in errors[2]
    written = f"wrote the results of 2 of 3 recordings to {tmp_path / 't.csv'}"
    assert errors[3:] == [written, "1 of 3 recordings could not be tagged"]
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert {row["clip"] for row in rows} == {str(folder / "b.flac"), str(folder / "link" / "c.wav")}


def test_a_folder_is_written_in_every_format_and_its_unreadable_file_is_one_line(home, tmp_path, capsys):
    out = tmp_path
    outputs = ["--json", out / "t.json", "--csv", out / "t.csv", "--rttm", out / "t.rttm", "--audacity", out / "labels"]
    assert tag(home, home / "in", *outputs, "--embeddings", out / "embeddings") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"psla: {home / 'in' / 'c.wav'} cannot be read as audio (it is a text that begins with 'no sound'): download "
        "the recording itself.",
        f"wrote the results of 4 of 5 recordings to {out}/t.json, {out}/t.csv, {out}/t.rttm, {out}/labels/, "
        f"{out}/embeddings/",
        "1 of 5 recordings could not be tagged",
    ]
    lines = [json.loads(line) for line in (out / "t.json").read_text().splitlines()]
    assert [line["clip"] for line in lines] == [
        str(home / "in" / n) for n in ("a.wav", "b.flac", "c.wav", "d.wav", "sub/e.wav")
    ]
    assert [("error" in line, "events" in line) for line in lines] == [
        (False, False), (False, False), (True, False), (False, True), (False, False),
    ]  # fmt: skip
    assert [line.get("duration") for line in lines] == [0.5, 0.9, None, 3.0, 0.7]
    with open(out / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["clip"] for row in rows} == {line["clip"] for line in lines if "error" not in line}
    short = [row for row in rows if row["clip"].endswith("a.wav")]
    assert [float(row["score"]) for row in short] == [t["score"] for t in lines[0]["tags"]]
    assert [(row["onset"], row["offset"]) for row in short] == [("0.000", "0.500")] * 4
    assert len((out / "t.rttm").read_text().splitlines()) == len(rows)
    assert sorted(p.name for p in (out / "labels").rglob("*.txt")) == [
        f"{n}.txt" for n in ("a.wav", "b.flac", "d.wav", "e.wav")
    ]
    with np.load(out / "embeddings" / "sub" / "e.wav.npz") as file:
        assert file["frames"].shape == (3, 320)


def test_a_resumed_run_writes_the_same_file_as_an_uninterrupted_one(home, tmp_path, monkeypatch, capsys):
    # Scores are equal bit for bit only if the same program computes them, whatever windows are computed together.
    single = (home / "in", "--batch-size", "1")
    assert tag(home, *single, "--csv", tmp_path / "whole.csv") == 1
    append, clips = ResultWriter.append, []

    def interrupted(self, clip, texts, **options):
        clips.append(clip)
        if len(clips) == 4:
            raise KeyboardInterrupt
        append(self, clip, texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ResultWriter, "append", interrupted)
        assert tag(home, *single, "--csv", tmp_path / "t.csv") == 130
    assert (tmp_path / "t.csv.progress").exists()
    capsys.readouterr()
    assert tag(home, *single, "--csv", tmp_path / "t.csv") == 1, "the unreadable file was done before the interruption"
    errors = capsys.readouterr().err
    assert "3 of 5 recordings are done: resuming" in errors
    assert "1 of 5 recordings could not be tagged" in errors
    assert (tmp_path / "t.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "whole.csv"]


def test_standard_output(home, capsys):
    assert tag(home, home / "in" / "a.wav", "--top", "2") == 0
    shown = capsys.readouterr().out
    assert "0:00.5" in shown
    assert sum(name in shown for name in VOCABULARY.names) == 2
    assert tag(home, home / "in" / "a.wav", home / "in" / "d.wav", "--csv", "-", "--classes", "noise") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["mid"] for row in rows} == {"/t/noise"}
    assert len({row["clip"] for row in rows}) == 2


def test_plots_of_a_folder(home, tmp_path, capsys):
    assert tag(home, home / "in", "--plot", tmp_path / "plots", "--top", "2") == 1
    assert capsys.readouterr().out == ""
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [f"plots/{name}.png" for name in ("a.wav", "b.flac", "d.wav", "sub/e.wav")]
    assert tag(home, home / "in", "--plot", tmp_path / "plots") == 2
    assert "plots already exists" in capsys.readouterr().err


def test_plots_without_matplotlib_are_refused_before_any_work(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main.main(["tag", str(home / "in"), "--model", "nowhere", "--plot", str(tmp_path / "plots")]) == 2
    errors = capsys.readouterr().err
    assert "pip install 'psla_jax[plot]'" in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def hash_of(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


INVALID = {
    "missing file": (["nowhere.wav"], 1, "nowhere.wav is missing"),
    "no audio": (["empty"], 2, "empty contains no audio"),
    "class": (["in/a.wav", "--classes", "Nose"], 2, "did you mean 'noise'"),
    "ontology": (["in/a.wav", "--ontology", "none.json"], 2, "none.json cannot be read"),
    "threshold": (["in/a.wav", "--min-gap", "-1"], 2, "min_gap is -1.0"),
    "overlap": (["in/a.wav", "--overlap", "1"], 2, "overlap is 1.0"),
    "smooth": (["in/a.wav", "--smooth", "2"], 2, "smooth is 2"),
    "top": (["in/a.wav", "--top", "0"], 2, "--top is 0"),
    "two on standard output": (["in/a.wav", "--csv", "-", "--json", "-"], 2, "would mix on standard output"),
    "folder on standard output": (["in/a.wav", "--plot", "-"], 2, "--plot is -, but a folder cannot be written to"),
    "same file": (["in/a.wav", "--csv", "x.txt", "--json", "./x.txt"], 2, "--json and --csv are both x.txt"),
    "file and folder": (["in/a.wav", "--csv", "x", "--plot", "x"], 2, "--csv and --plot are both x"),
    "audio as ontology": (["in/a.wav", "--ontology", "in/b.flac"], 2, "ontology.json (it is not text): download"),
    "existing output": (["in/a.wav", "--csv", "existing.csv"], 2, "existing.csv already exists"),
    "input as output": (["in", "--csv", "in/b.flac", "--overwrite"], 2, "--csv in/b.flac would replace an input"),
    "device as input": (["/dev/zero"], 2, "/dev/zero cannot be read (it is a device or a socket, not a file)"),
    "pipe without writer": (["pipe"], 2, "pipe cannot be read (no program writes to this pipe)"),
    "file as folder": (["in/a.wav", "--csv", "in/a.wav/t.csv"], 2, "in/a.wav is not a folder: name another path"),
    "full disk": (["in/a.wav", "--csv", "full"], 1, "No space left on device: full"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_arguments_are_reported_in_one_sentence(home, capsys, monkeypatch, case):
    monkeypatch.chdir(home)
    monkeypatch.setattr(streams, "PARTNER_SECONDS", 0.05)
    (home / "empty").mkdir(exist_ok=True)
    (home / "existing.csv").touch()
    if not (home / "pipe").exists():
        os.mkfifo(home / "pipe")
        (home / "full").symlink_to("/dev/full")
    before = hash_of(home / "in")
    arguments, code, message = INVALID[case]
    assert tag(home, *arguments) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert errors.startswith("psla: ")
    assert hash_of(home / "in") == before


def test_an_incomplete_model_is_reported_in_one_sentence(home, capsys, tmp_path):
    shutil.copytree(home / "model", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "weights")
    (tmp_path / "model" / "weights.safetensors").unlink()
    assert main.main(["tag", str(home / "in" / "a.wav"), "--model", str(tmp_path / "model")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_processes_divide_a_folder(home, tmp_path, capsys):
    """The parts of two processes contain the rows of a single process, and the CSV header once."""
    single = (home / "in", "--batch-size", "1")
    assert tag(home, *single, "--csv", tmp_path / "one.csv", "--json", tmp_path / "one.json") == 1
    outputs = ("--csv", tmp_path / "two.csv", "--json", tmp_path / "two.json", "--embeddings", tmp_path / "e")
    capsys.readouterr()
    codes, errors = [], []
    for index in (1, 0):
        codes.append(tag(home, *single, *outputs, "--distributed.processes", "2", "--distributed.index", index))
        errors.append(capsys.readouterr().err)
    assert codes == [0, 1], "the unreadable recording is the third one"
    for kind in ("csv", "json"):
        parts = [(tmp_path / f"two.{kind}.part{index}of2").read_text().splitlines() for index in (0, 1)]
        rows = (tmp_path / f"one.{kind}").read_text().splitlines()
        assert sorted(parts[0] + parts[1]) == sorted(rows)
        assert parts[0][0] == rows[0]
        assert f"cat {tmp_path}/two.{kind}.part*of2 > {tmp_path}/two.{kind}" in errors[0]
        assert f"to {tmp_path}/two.json.part1of2, {tmp_path}/two.csv.part1of2, {tmp_path}/e/; " in errors[0]
    files = {f"{name}.part{index}of2" for name in ("two.csv", "two.json") for index in (0, 1)}
    assert {path.name for path in tmp_path.iterdir()} == {"e", "one.csv", "one.json", *files}
    assert len(list((tmp_path / "e").rglob("*.npz"))) == 4


@contextlib.contextmanager
def pipe_with(content: bytes, kind: str, tmp_path, monkeypatch):
    """Yields the name of standard input, a descriptor or a named pipe that gives the content."""
    if kind == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        yield "-"
        return
    read_end, write_end = os.pipe()
    os.mkfifo(tmp_path / "pipe")
    path = f"/dev/fd/{read_end}" if kind == "descriptor" else str(tmp_path / "pipe")

    def write() -> None:
        with open(write_end if kind == "descriptor" else path, "wb") as file:
            file.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    yield path
    writer.join(10)
    os.close(read_end)


@pytest.mark.parametrize("kind", ["-", "descriptor", "named"])
@pytest.mark.parametrize("name", ["b.flac", "d.wav"])
def test_a_pipe_is_tagged_like_the_file_that_it_gives(home, tmp_path, monkeypatch, capsys, kind, name):
    assert tag(home, home / "in" / name, "--csv", "-", "--batch-size", "1") == 0
    expected = capsys.readouterr().out.replace(str(home / "in" / name), "NAME")
    with pipe_with((home / "in" / name).read_bytes(), kind, tmp_path, monkeypatch) as path:
        assert tag(home, path, "--csv", "-", "--batch-size", "1", "--plot", tmp_path / "plots") == 0
    assert expected.count("NAME") >= 4
    assert capsys.readouterr().out.replace(f"{path},", "NAME,") == expected
    (plot,) = (tmp_path / "plots").iterdir()
    assert plot.name == f"{'stdin' if kind == '-' else os.path.basename(path)}.png"


def test_a_pipe_that_is_no_audio_is_named_and_not_its_temporary_file(home, tmp_path, monkeypatch, capsys):
    with pipe_with(b"no sound", "-", tmp_path, monkeypatch) as path:
        assert tag(home, path, "--json", "-") == 1
    printed = capsys.readouterr()
    kind = "it is a text that begins with 'no sound'"
    reason = f"cannot be read as audio ({kind}): check the program that writes to this pipe."
    assert json.loads(printed.out) == {"clip": "-", "error": f"- {reason}"}
    assert printed.err.splitlines() == [f"psla: - {reason}", "1 of 1 recordings could not be tagged"]


def test_standard_output_by_name(home, tmp_path, capfd):
    """Results go to standard output; the link to it is not replaced by a file, and nothing is written beside it."""
    for name in ("stdout", "fd/1"):  # Through links, so that a mistake cannot replace the devices of the system.
        (tmp_path / os.path.basename(name)).symlink_to(f"/dev/{name}")
    assert tag(home, home / "in" / "a.wav", "--csv", "-") == 0
    expected = capfd.readouterr().out
    assert expected.startswith("clip,onset")
    for name in ("stdout", "1"):
        assert tag(home, home / "in" / "a.wav", "--csv", tmp_path / name) == 0
        assert capfd.readouterr().out == expected
        assert (tmp_path / name).is_symlink()
    assert len(os.listdir(tmp_path)) == 2
    assert tag(home, home / "in" / "a.wav", "--csv", "-", "--json", tmp_path / "stdout") == 2
    assert "would mix on standard output" in capfd.readouterr().err


def test_a_name_that_is_too_long_for_its_output_fails_alone_and_is_tried_again(home, tmp_path, capsys):
    fits, too_long = "f" * 251, "l" * 252  # With .txt, 255 bytes are the most that the system allows.
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / name for name in ("a.wav", fits, too_long, "z.wav")]
    for path in paths:
        shutil.copy(home / "in" / "a.wav", path)
    command = [*paths, "--audacity", tmp_path / "labels", "--csv", tmp_path / "t.csv"]
    for attempt in ("first", "second"):
        assert tag(home, *command) == 1
        errors = capsys.readouterr().err.splitlines()
        assert errors[:-3] == (["3 of 4 recordings are done: resuming"] if attempt == "second" else [])
        assert errors[-3] == (
            f"psla: {tmp_path}/labels/{too_long}.txt cannot be written (File name too long): correct this, and run the "
            "same command again."
        )
        assert errors[-2] == f"wrote the results of 3 of 4 recordings to {tmp_path}/t.csv, {tmp_path}/labels/"
        assert errors[-1] == "1 of 4 recordings lack an output: run the same command again to write it"
        assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["a.wav.txt", f"{fits}.txt", "z.wav.txt"]
    with open(tmp_path / "t.csv", newline="") as file:
        rows = [row["clip"] for row in csv.DictReader(file)]
    assert rows == [str(path) for path in paths for _ in range(4)]


def test_deleted_outputs_of_an_interrupted_folder_are_written_again(home, tmp_path, monkeypatch, capsys):
    append = ResultWriter.append

    def interrupted(self, clip, texts, **options):
        append(self, clip, texts, **options)
        if clip.endswith("d.wav"):
            raise KeyboardInterrupt

    command = (home / "in", "--audacity", tmp_path / "labels")
    with monkeypatch.context() as patch:
        patch.setattr(ResultWriter, "append", interrupted)
        assert tag(home, *command) == 130
    (tmp_path / "labels" / "b.flac.txt").unlink()
    capsys.readouterr()
    assert tag(home, *command) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "3 of 5 recordings are done: resuming", "a.wav, d.wav and the unreadable one"
    assert errors[-2] == f"wrote the results of 4 of 5 recordings to {tmp_path}/labels/"
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == [f"labels/{name}.txt" for name in ("a.wav", "b.flac", "d.wav", "sub/e.wav")]


def test_a_run_is_not_resumed_with_a_model_that_was_trained_again(home, tmp_path, monkeypatch, capsys):
    shutil.copytree(home / "model", tmp_path / "model")
    command = ["tag", str(home / "in" / "a.wav"), "--model", str(tmp_path / "model"), "--csv", str(tmp_path / "t.csv")]
    with monkeypatch.context() as patch:
        patch.setattr(ResultWriter, "append", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main.main(command) == 130
    network = factory.from_config(MODEL, len(VOCABULARY), np.float32, nnx.Rngs(1))
    save_model(tmp_path / "model", ModelCard(MODEL, FrontendConfig(96), VOCABULARY, {}), *split_model(network))
    assert main.main(command) == 2
    assert "was started with other settings" in capsys.readouterr().err


def test_file_names_with_any_bytes_are_written_and_shown_on_one_line(home, tmp_path, capsys):
    names = ("new\nline.wav", "invalid \udcff.wav")
    (tmp_path / "in").mkdir()
    for name in names:
        shutil.copy(home / "in" / "a.wav", tmp_path / "in" / name)
    (tmp_path / "in" / "no\nsound.wav").write_text("")
    outputs = ("--csv", tmp_path / "t.csv", "--json", tmp_path / "t.json", "--audacity", tmp_path / "labels")
    assert tag(home, tmp_path / "in", *outputs) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {f"{name}.txt" for name in names}
    with open(tmp_path / "t.csv", newline="", errors="surrogateescape") as file:
        assert {row["clip"] for row in csv.DictReader(file)} == {str(tmp_path / "in" / name) for name in names}
    lines = (tmp_path / "t.json").read_text().splitlines()
    assert {os.path.basename(json.loads(line)["clip"]) for line in lines} == {*names, "no\nsound.wav"}
    assert tag(home, tmp_path / "in" / names[0]) == 0
    assert "new\\nline.wav" in capsys.readouterr().out.replace("\n", "")  # Long paths are wrapped.


def test_a_terminal_without_the_characters_of_a_table(home):
    """An encoding without block characters shows question marks; names that are not UTF-8 keep their bytes."""
    code = "import sys; from psla_jax.runtime.terminal import accept_any_text; accept_any_text(); print(sys.argv[1])"
    command = [sys.executable, "-c", code, "█ \udcff"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert subprocess.run(command, capture_output=True, env=environment, check=True).stdout == b"? \xff\n"
