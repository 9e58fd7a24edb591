"""``psla listen`` on the command line, with pipes and a simulated microphone."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import types

import numpy as np
import pytest
import soundfile
from flax import nnx
from sounds import VOCABULARY
from tagging.conftest import KINDS, melody, with_batch_statistics, with_larger_head

from psla_jax.cli import main
from psla_jax.config import FrontendConfig
from psla_jax.models import factory
from psla_jax.models.model_dir import ModelCard, save_model
from psla_jax.models.state import split_model
from psla_jax.tagging.network import CompiledModel


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a model whose scores depend on the audio, and twelve seconds of audio."""
    folder = tmp_path_factory.mktemp("home")
    kind = KINDS["attention"]
    network = factory.from_config(kind, len(VOCABULARY), np.float32, nnx.Rngs(0))
    params, rest = split_model(with_batch_statistics(network))
    save_model(folder / "model", ModelCard(kind, FrontendConfig(96), VOCABULARY, {}), with_larger_head(params), rest)
    sound = np.tile(melody(), 2)
    soundfile.write(folder / "sound.wav", np.stack([sound, sound], axis=1), 16_000, subtype="PCM_16")
    (folder / "bare").write_bytes(soundfile.read(folder / "sound.wav", dtype="int16")[0][:, 0].tobytes())
    return folder


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Shares the compiled programs between all tests, which use the same model."""
    programs, compile_ = {}, CompiledModel._compiled

    def once(self: CompiledModel, size: int):
        if size not in programs:
            programs[size] = compile_(self, size)
        return programs[size]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledModel, "_compiled", once)
        yield


RULES = ["--threshold", "0.535", "--release", "0.9", "--overlap", "0.5"]
"""Rounding changes no event: no score is closer than 0.003 to the threshold or to the release level."""


def run(home, command: str, *arguments) -> int:
    return main.main([command, *map(str, arguments), "--model", str(home / "model"), *RULES])


@pytest.fixture
def piped(monkeypatch):
    """Returns a function that connects standard input to a pipe with these bytes."""

    def pipe(data: bytes) -> None:
        reading, writing = os.pipe()

        def write() -> None:
            with os.fdopen(writing, "wb") as file:
                file.write(data)

        threading.Thread(target=write, daemon=True).start()
        monkeypatch.setattr(sys, "stdin", os.fdopen(reading))

    return pipe


def events(lines: str) -> list[tuple]:
    """Returns the ended events of the JSON lines of psla listen."""
    updates = map(json.loads, lines.splitlines())
    return sorted((u["onset"], u["offset"], u["class"]) for u in updates if u["kind"] == "end")


@pytest.fixture
def tagged(home, capsys) -> list[tuple]:
    """Events that psla tag detects in the same audio."""
    assert run(home, "tag", home / "sound.wav", "--json", "-") == 0
    tags = json.loads(capsys.readouterr().out)
    assert len(tags["events"]) > 4
    return sorted((e["onset"], e["offset"], e["class"]) for e in tags["events"])


def test_a_pipe_gives_the_events_of_the_recording(home, tagged, piped, capsys, tmp_path):
    piped((home / "sound.wav").read_bytes())
    assert run(home, "listen", "-", "--json", tmp_path / "updates.json") == 0
    printed = capsys.readouterr()
    assert events((tmp_path / "updates.json").read_text()) == tagged
    ends = [line for line in printed.out.splitlines() if line.startswith("end ")]
    assert len(ends) == len(tagged)
    assert all(
        re.fullmatch(r"(start|end|cancel) +\d:\d\d\.\d( - \d:\d\d\.\d)? +\d\.\d{3}  .+", line)
        for line in printed.out.splitlines()
    )
    first, *_, last = [line for line in printed.err.splitlines() if "compiling" not in line]
    assert re.match(r"listening to standard input, 16000 Hz: events are reported within \d\.\d s and final", first)
    assert last == f"0:12.0 of audio, {len(tagged)} events"
    assert run(home, "listen", home / "sound.wav", "--json", "-", "--no-early") == 0
    lines = capsys.readouterr().out
    assert events(lines) == tagged
    assert '"cancel"' not in lines


def test_json_goes_to_a_named_pipe_or_to_standard_output_by_its_name(home, tagged, capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "out").symlink_to("/dev/stdout")
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert run(home, "listen", home / "sound.wav", "--json", tmp_path / "pipe", "--no-early") == 0
    reader.join(10)
    assert events(lines[0]) == tagged
    assert "end " in capsys.readouterr().out
    assert run(home, "listen", home / "sound.wav", "--json", tmp_path / "out", "--no-early") == 0
    assert events(capsys.readouterr().out) == tagged
    assert (tmp_path / "out").is_symlink()


def test_headerless_samples_that_stop_inside_one(home, tagged, piped, capsys):
    piped((home / "bare").read_bytes() + b"\0")
    assert run(home, "listen", "-", "--format", "s16le", "--rate", "16000", "--json", "-") == 0
    printed = capsys.readouterr()
    assert [e[2] for e in events(printed.out)] == [e[2] for e in tagged]
    assert "standard input ended inside a sample: its last 1 bytes of 2 were ignored." in printed.err


def test_classes_and_narrow_sound(home, capsys):
    arguments = [home / "bare", "--format", "s16le", "--rate", "8000", "--json", "-", "--classes", "noise", "low_tone"]
    assert run(home, "listen", *arguments) == 0
    printed = capsys.readouterr()
    assert {json.loads(line)["mid"] for line in printed.out.splitlines()} <= {"/t/noise", "/t/low"}
    assert "was sampled at 8000 Hz: it has nothing above 4000 Hz" in printed.err
    assert "0:24.0 of audio" in printed.err


def test_nothing_and_silence(home, piped, capsys):
    piped((home / "sound.wav").read_bytes()[:44])
    assert run(home, "listen", "-") == 2
    printed = capsys.readouterr().err
    assert "standard input contains no samples." in printed
    assert "0:00.0 of audio, 0 events" in printed
    piped(bytes(40_000))
    assert run(home, "listen", "-", "--format", "f32le", "--rate", "16000") == 0
    assert "standard input is silent" in capsys.readouterr().err
    wave = (8000 * np.sin(np.arange(20_000))).astype("<i2")
    piped(np.stack([wave, -wave], axis=1).tobytes())
    assert run(home, "listen", "-", "--format", "s16le", "--rate", "16000", "--channels", "2") == 0
    printed = capsys.readouterr().err
    assert "standard input has channels that cancel each other" in printed
    assert "is silent" not in printed


MISTAKES = {
    "no wav": (["bad"], "begins with b'no s', which is not a WAV header"),
    "missing": (["nowhere"], "nowhere cannot be read (No such file or directory)"),
    "class": (["sound.wav", "--classes", "Nose"], "did you mean 'noise'"),
    "json": (["sound.wav", "--json", "bad"], "bad exists already"),
    "no rate": (["bare", "--format", "s16le"], "add --rate"),
    "negative rate": (["bare", "--format", "s16le", "--rate", "-1"], "--rate is -1"),
    "rate 1": (["bare", "--format", "s16le", "--rate", "1"], "has the sample rate 1: use 1000"),
    "rate of wav": (["sound.wav", "--rate", "16000"], "--rate does not apply to WAV"),
    "device of a pipe": (["sound.wav", "--device", "1"], "--device does not apply to a pipe"),
    "format of a microphone": (["--format", "s16le"], "--format does not apply to a microphone"),
    "not finite": (["bare", "--format", "f32le", "--rate", "16000"], "the block holds samples"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(home, capsys, monkeypatch, mistake):
    monkeypatch.chdir(home)
    (home / "bad").write_text("no sound")
    arguments, message = MISTAKES[mistake]
    assert run(home, "listen", *arguments) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("psla: ")
    assert message in complaint
    assert (home / "bad").read_text() == "no sound"


class Busy(Exception):
    """The error class of the simulated PortAudio."""


class Recorder:
    """A simulated microphone that delivers `sound` at once, then calls `after`."""

    after = staticmethod(lambda stream: stream.finished_callback())
    sound = np.zeros((0, 1), np.float32)
    overflow = False

    def __init__(self, samplerate, device, channels, dtype, callback, finished_callback) -> None:
        if samplerate == 11_111:
            raise Busy("Invalid sample rate")
        self.callback, self.finished_callback, self.closed = callback, finished_callback, False

    def start(self) -> None:
        threading.Thread(target=self.record, daemon=True).start()

    def record(self) -> None:
        status = types.SimpleNamespace(input_overflow=self.overflow)
        block = np.zeros((1_600, 1), np.float32)  # reused for all blocks, as in PortAudio
        for i in range(0, len(self.sound), 1_600):
            block[:] = self.sound[i : i + 1_600]
            self.callback(block, 1_600, None, status)
        self.after(self)

    def close(self) -> None:
        self.finished_callback()


@pytest.fixture
def microphone(home, monkeypatch):
    """Replaces the package sounddevice by a simulated microphone that delivers the recording."""

    class Stream(Recorder):
        sound = soundfile.read(home / "sound.wav", always_2d=True, dtype="float32")[0][:, :1]

    def devices(device, kind):
        if device == 7:
            raise ValueError("No input device matching 7")
        return {"name": "Ear", "default_samplerate": 16_000.0}

    library = types.SimpleNamespace(PortAudioError=Busy, query_devices=devices, InputStream=Stream)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    return Stream


def test_a_microphone_gives_the_time_of_day_and_reports_its_end(home, tagged, microphone, capsys):
    assert run(home, "listen", "--json", "-") == 1
    printed = capsys.readouterr()
    assert events(printed.out) == tagged
    assert re.search(r'"time": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"', printed.out)
    assert "listening to the microphone 'Ear', 16000 Hz" in printed.err
    assert printed.err.splitlines()[-1] == "psla: the microphone 'Ear' stopped recording: check that it is connected."
    assert run(home, "listen") == 1
    assert re.match(r"start +\d\d:\d\d:\d\d\.\d ", capsys.readouterr().out)


def test_ctrl_c_ends_all_events(home, microphone, capsys, monkeypatch):
    monkeypatch.setattr(microphone, "after", staticmethod(lambda _: os.kill(os.getpid(), signal.SIGINT)))
    before = signal.getsignal(signal.SIGINT)
    assert run(home, "listen", "--json", "-") == 130
    updates = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    started = {u["id"] for u in updates if u["kind"] == "start"}
    assert started == {u["id"] for u in updates if u["kind"] in ("end", "cancel")}
    assert signal.getsignal(signal.SIGINT) is before


def test_falling_behind_is_printed_and_keeps_the_clock(home, microphone, capsys, monkeypatch):
    monkeypatch.setattr(microphone, "sound", np.tile(microphone.sound, (4, 1)))
    monkeypatch.setattr(microphone, "overflow", True)
    monkeypatch.setattr(microphone, "start", microphone.record)  # 48 s are queued before the first block is taken
    assert run(home, "listen", "--json", "-") == 1
    printed = capsys.readouterr()
    updates = [json.loads(line) for line in printed.out.splitlines()]
    (lost,) = [u for u in updates if u["kind"] == "lost"]
    assert (lost["onset"], lost["offset"]) == (0.0, 40.0)
    assert all(u["onset"] >= 40.0 for u in updates if u != lost)
    assert "fell behind: 40.0 s of audio before" in printed.err
    assert "0:48.0 of audio" in printed.err
    assert "lost audio 480 times before psla received it" in printed.err


def test_unusable_microphones(home, microphone, capsys, monkeypatch):
    assert run(home, "listen", "--device", "7") == 2
    assert "there is no microphone 7 (No input device matching 7)" in capsys.readouterr().err
    assert run(home, "listen", "--rate", "11111") == 2
    assert "cannot be recorded at 11111 Hz (Invalid sample rate)" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert run(home, "listen") == 2
    printed = capsys.readouterr().err
    assert "pip install sounddevice" in printed
    assert printed.count("\n") == 1
