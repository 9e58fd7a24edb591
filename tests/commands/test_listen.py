"""``psla listen`` as people type it: pipes, and a microphone that is made up."""

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
from tagging.conftest import KINDS, listened, louder, melody

from psla_jax import cli
from psla_jax.checkpoints import ModelCard, save_model
from psla_jax.config import FrontendConfig
from psla_jax.models import tagger
from psla_jax.tagging.programs import Network
from psla_jax.training import split_model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model that tells sounds apart, and twelve seconds of sound."""
    folder = tmp_path_factory.mktemp("home")
    kind = KINDS["attention"]
    params, rest = split_model(listened(tagger.from_config(kind, len(VOCABULARY), np.float32, nnx.Rngs(0))))
    save_model(folder / "model", ModelCard(kind, FrontendConfig(96), VOCABULARY, {}), louder(params), rest)
    sound = np.tile(melody(), 2)
    soundfile.write(folder / "sound.wav", np.stack([sound, sound], axis=1), 16_000, subtype="PCM_16")
    (folder / "bare").write_bytes(soundfile.read(folder / "sound.wav", dtype="int16")[0][:, 0].tobytes())
    return folder


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """One compilation serves all tests: there is but one model."""
    programs, compile_ = {}, Network._compiled

    def once(self: Network, size: int):
        if size not in programs:
            programs[size] = compile_(self, size)
        return programs[size]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "_compiled", once)
        yield


RULES = ["--threshold", "0.5", "--release", "0.9", "--overlap", "0.5"]


def run(home, command: str, *arguments) -> int:
    return cli.main([command, *map(str, arguments), "--model", str(home / "model"), *RULES])


@pytest.fixture
def piped(monkeypatch):
    """Makes bytes the standard input, through a real pipe."""

    def pipe(data: bytes) -> None:
        reading, writing = os.pipe()

        def write() -> None:
            with os.fdopen(writing, "wb") as file:
                file.write(data)

        threading.Thread(target=write, daemon=True).start()
        monkeypatch.setattr(sys, "stdin", os.fdopen(reading))

    return pipe


def events(lines: str) -> list[tuple]:
    """What ended, of JSON lines of listening."""
    told = [json.loads(line) for line in lines.splitlines()]
    return sorted((u["onset"], u["offset"], u["class"]) for u in told if u["kind"] == "end")


@pytest.fixture
def tagged(home, capsys) -> list[tuple]:
    """What psla tag finds in the same sound."""
    assert run(home, "tag", home / "sound.wav", "--json", "-") == 0
    found = sorted((e["onset"], e["offset"], e["class"]) for e in json.loads(capsys.readouterr().out)["events"])
    assert len(found) > 4
    return found


def test_a_pipe_tells_the_events_of_the_recording(home, tagged, piped, capsys, tmp_path):
    piped((home / "sound.wav").read_bytes())
    assert run(home, "listen", "-", "--json", tmp_path / "told.json") == 0
    said = capsys.readouterr()
    assert events((tmp_path / "told.json").read_text()) == tagged
    ends = [line for line in said.out.splitlines() if line.startswith("end ")]
    assert len(ends) == len(tagged)
    assert all(
        re.fullmatch(r"(start|end|cancel) +\d:\d\d\.\d( - \d:\d\d\.\d)? +\d\.\d{3}  .+", line)
        for line in said.out.splitlines()
    )
    first, *_, last = [line for line in said.err.splitlines() if "compiling" not in line]
    assert re.match(r"listening to standard input, 16000 Hz: a sound is told within \d\.\d s and certain within", first)
    assert last == f"heard 0:12.0, {len(tagged)} events"
    assert run(home, "listen", home / "sound.wav", "--json", "-", "--early", "False") == 0
    told = capsys.readouterr().out
    assert events(told) == tagged
    assert '"cancel"' not in told


def test_bare_samples_that_stop_inside_one(home, tagged, piped, capsys):
    piped((home / "bare").read_bytes() + b"\0")
    assert run(home, "listen", "-", "--format", "s16le", "--rate", "16000", "--json", "-") == 0
    said = capsys.readouterr()
    assert [e[2] for e in events(said.out)] == [e[2] for e in tagged]
    assert "standard input ended inside a sample: its last 1 bytes of 2 were left out." in said.err


def test_classes_and_narrow_sound(home, capsys):
    arguments = [home / "bare", "--format", "s16le", "--rate", "8000", "--json", "-", "--classes", "noise", "low_tone"]
    assert run(home, "listen", *arguments) == 0
    said = capsys.readouterr()
    assert {json.loads(line)["mid"] for line in said.out.splitlines()} <= {"/t/noise", "/t/low"}
    assert "was sampled at 8000 Hz: it has nothing above 4000 Hz" in said.err
    assert "heard 0:24.0" in said.err


def test_nothing_and_silence(home, piped, capsys):
    piped((home / "sound.wav").read_bytes()[:44])
    assert run(home, "listen", "-") == 2
    said = capsys.readouterr().err
    assert "standard input held no samples." in said
    assert "heard 0:00.0, 0 events" in said
    piped(bytes(40_000))
    assert run(home, "listen", "-", "--format", "f32le", "--rate", "16000") == 0
    assert "standard input is silent" in capsys.readouterr().err


MISTAKES = {
    "no wav": (["bad"], "begins with b'no s', which is no WAV header"),
    "missing": (["nowhere"], "nowhere cannot be read (No such file or directory)"),
    "class": (["sound.wav", "--classes", "Nose"], "did you mean 'noise'"),
    "json": (["sound.wav", "--json", "bad"], "bad is there already"),
    "no rate": (["bare", "--format", "s16le"], "add --rate"),
    "negative rate": (["bare", "--format", "s16le", "--rate", "-1"], "--rate -1"),
    "rate 1": (["bare", "--format", "s16le", "--rate", "1"], "has the sample rate 1: use 1000"),
    "rate of wav": (["sound.wav", "--rate", "16000"], "--rate means nothing for WAV"),
    "device of a pipe": (["sound.wav", "--device", "1"], "--device means nothing for a pipe"),
    "format of a microphone": (["--format", "s16le"], "--format means nothing for a microphone"),
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
    """What the made-up PortAudio raises."""


class Recorder:
    """A microphone that hears a sound all at once, then does what it is told to."""

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
        block = np.zeros((1_600, 1), np.float32)  # the same memory every time, as PortAudio does
        for i in range(0, len(self.sound), 1_600):
            block[:] = self.sound[i : i + 1_600]
            self.callback(block, 1_600, None, status)
        self.after(self)

    def close(self) -> None:
        self.finished_callback()


@pytest.fixture
def microphone(home, monkeypatch):
    """The package sounddevice with a microphone that hears the sound of the recording."""

    class Stream(Recorder):
        sound = soundfile.read(home / "sound.wav", always_2d=True, dtype="float32")[0][:, :1]

    def devices(device, kind):
        if device == 7:
            raise ValueError("No input device matching 7")
        return {"name": "Ear", "default_samplerate": 16_000.0}

    library = types.SimpleNamespace(PortAudioError=Busy, query_devices=devices, InputStream=Stream)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    return Stream


def test_a_microphone_tells_the_time_of_day_and_its_own_end(home, tagged, microphone, capsys):
    assert run(home, "listen", "--json", "-") == 1
    said = capsys.readouterr()
    assert events(said.out) == tagged
    assert re.search(r'"time": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"', said.out)
    assert "listening to the microphone 'Ear', 16000 Hz" in said.err
    assert said.err.splitlines()[-1] == "psla: the microphone 'Ear' stopped by itself: is it still plugged in?"
    assert run(home, "listen") == 1
    assert re.match(r"start +\d\d:\d\d:\d\d\.\d ", capsys.readouterr().out)


def test_ctrl_c_ends_events_and_says_what_was_heard(home, microphone, capsys, monkeypatch):
    monkeypatch.setattr(microphone, "after", staticmethod(lambda _: os.kill(os.getpid(), signal.SIGINT)))
    before = signal.getsignal(signal.SIGINT)
    assert run(home, "listen", "--json", "-") == 130
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    begun = {u["id"] for u in told if u["kind"] == "start"}
    assert begun == {u["id"] for u in told if u["kind"] in ("end", "cancel")}
    assert signal.getsignal(signal.SIGINT) is before


def test_falling_behind_is_said_and_keeps_the_clock(home, microphone, capsys, monkeypatch):
    monkeypatch.setattr(microphone, "sound", np.tile(microphone.sound, (4, 1)))
    monkeypatch.setattr(microphone, "overflow", True)
    monkeypatch.setattr(microphone, "start", microphone.record)  # 48 s before a block is taken
    assert run(home, "listen", "--json", "-") == 1
    said = capsys.readouterr()
    told = [json.loads(line) for line in said.out.splitlines()]
    (lost,) = [u for u in told if u["kind"] == "lost"]
    assert (lost["onset"], lost["offset"]) == (0.0, 40.0)
    assert all(u["onset"] >= 40.0 for u in told if u != lost)
    assert "fell behind: 40.0 s of sound before" in said.err
    assert "heard 0:48.0" in said.err
    assert "lost sound 480 times before it came here" in said.err


def test_microphones_that_are_none(home, microphone, capsys, monkeypatch):
    assert run(home, "listen", "--device", "7") == 2
    assert "there is no microphone 7 (No input device matching 7)" in capsys.readouterr().err
    assert run(home, "listen", "--rate", "11111") == 2
    assert "cannot be recorded at 11111 Hz (Invalid sample rate)" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert run(home, "listen") == 2
    said = capsys.readouterr().err
    assert "pip install sounddevice" in said
    assert said.count("\n") == 1
