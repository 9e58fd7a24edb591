"""The preparation of FSD50K, on a small one with its layout and its faults."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
import soxr

from psla_jax import audio
from psla_jax.data import fsd50k
from psla_jax.data.datafile import Datafile
from psla_jax.data.fsd50k import FSD50KError
from psla_jax.ontology import Vocabulary

DEV = """fname,labels,mids,split
10,"Dog,Animal","/m/dog,/m/animal",train
11,Cat,/m/cat,val
12,"Cat,Animal","/m/cat,/m/animal",train
13,Dog,/m/dog,train
14,Dog,/m/dog,val
"""
EVAL = 'fname,labels,mids\n20,Dog,/m/dog\n21,"Cat,Animal","/m/cat,/m/animal"\n'
VOCABULARY = "0,Animal,/m/animal\n1,Cat,/m/cat\n2,Dog_(small),/m/dog\n"
RESULTS = [
    "class_labels_indices.csv",
    "fsd50k_eval_full.json",
    "fsd50k_tr_full.json",
    "fsd50k_tr_full_weight.csv",
    "fsd50k_val_full.json",
]


@pytest.fixture
def root(tmp_path):
    """12 is stereo, 13 is a web page, 14 is missing."""
    folder = tmp_path / "FSD50K"
    for name in ("FSD50K.dev_audio", "FSD50K.eval_audio", "FSD50K.ground_truth"):
        (folder / name).mkdir(parents=True)
    for number in (10, 11, 12, 20, 21):
        part = "dev" if number < 20 else "eval"
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, (4410, 2 if number == 12 else 1))
        soundfile.write(folder / f"FSD50K.{part}_audio" / f"{number}.wav", samples, 44100)
    (folder / "FSD50K.dev_audio" / "13.wav").write_text("<html>", encoding="utf-8")
    (folder / "FSD50K.dev_audio" / "99.wav").write_text("in no table", encoding="utf-8")
    for name, text in (("dev.csv", DEV), ("eval.csv", EVAL), ("vocabulary.csv", VOCABULARY)):
        write_table(folder, name, text)
    return folder


def write_table(root, name, text):
    (root / "FSD50K.ground_truth" / name).write_bytes(text.encode())


def prepare(root, out=None, **more):
    return fsd50k.prepare(root, out, progress=False, **more)


def clips(path):
    with open(path, encoding="utf-8") as file:
        return {os.path.basename(clip["wav"]): clip["labels"] for clip in json.load(file)["data"]}


def contents(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def test_datafiles_list_what_can_be_read(root):
    prepared = prepare(root)
    assert sorted(os.listdir(root / "datafiles")) == RESULTS
    assert clips(prepared.train) == {"10.wav": "/m/dog,/m/animal", "12.wav": "/m/cat,/m/animal"}
    assert clips(prepared.validation) == {"11.wav": "/m/cat"}
    assert clips(prepared.evaluation) == {"20.wav": "/m/dog", "21.wav": "/m/cat,/m/animal"}
    assert (prepared.train_clips, prepared.validation_clips, prepared.evaluation_clips, prepared.resampled) == (
        2,
        1,
        2,
        5,
    )
    vocabulary = Vocabulary.read(prepared.labels)
    assert vocabulary == Vocabulary(("/m/animal", "/m/cat", "/m/dog"), ("Animal", "Cat", "Dog_(small)"))
    data = Datafile.read(prepared.train, vocabulary)
    assert data.wav(0) == str(root / "FSD50K.dev_audio_16k" / "10.wav")
    expected = [1000 / 1.01 + 1000 / 2.01, 1000 / 1.01 + 1000 / 2.01]
    np.testing.assert_allclose(np.loadtxt(prepared.weights), expected)


def test_what_cannot_be_read_is_left_out_with_its_reason(root):
    left_out = prepare(root).left_out
    assert [os.path.basename(clip.path) for clip in left_out] == ["13.wav", "14.wav"]
    assert "cannot be read as audio" in left_out[0].reason
    assert "is missing" in left_out[1].reason
    assert sorted(os.listdir(root / "FSD50K.dev_audio_16k")) == ["10.wav", "11.wav", "12.wav"]


@pytest.mark.parametrize("channel", ["mean", "first"])
def test_audio_is_resampled(root, channel):
    prepare(root, channel=channel)
    samples, rate = soundfile.read(root / "FSD50K.dev_audio" / "12.wav")
    expected = soxr.resample(samples.mean(axis=1) if channel == "mean" else samples[:, 0], rate, 16000)
    written_rate, pcm = scipy.io.wavfile.read(root / "FSD50K.dev_audio_16k" / "12.wav")
    assert written_rate == 16000
    assert pcm.dtype == np.int16
    assert pcm.shape == (1600,)
    np.testing.assert_allclose(pcm / 32768, expected, atol=2**-15)


@pytest.mark.parametrize(
    "change", [lambda t: t.replace("\n", "\r\n"), lambda t: "\ufeff" + t, lambda t: t.rstrip("\n")]
)
def test_tables_are_read_however_they_were_saved(root, change):
    expected = prepare(root)
    before = contents(root / "datafiles")
    for name, text in (("dev.csv", DEV), ("eval.csv", EVAL), ("vocabulary.csv", VOCABULARY)):
        write_table(root, name, change(text))
    assert prepare(root).left_out == expected.left_out
    assert contents(root / "datafiles") == before


def test_results_go_where_they_are_asked_for(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(root))
    prepared = prepare("FSD50K", "out")
    assert sorted(os.listdir(root)) == before
    assert sorted(os.listdir(tmp_path / "out")) == ["FSD50K.dev_audio_16k", "FSD50K.eval_audio_16k", "datafiles"]
    assert os.path.isabs(prepared.train)
    wav = Datafile.read(prepared.train, Vocabulary.read(prepared.labels)).wav(0)
    assert wav == str(tmp_path / "out" / "FSD50K.dev_audio_16k" / "10.wav")


def test_a_finished_recording_is_not_made_again(root, monkeypatch):
    first = prepare(root)
    before = contents(root / "datafiles")
    read = []
    monkeypatch.setattr(audio, "write_pcm16", lambda path, waveform: read.append(path))
    second = prepare(root)
    assert read == []
    assert second.resampled == 0
    assert contents(root / "datafiles") == before
    assert second.left_out == first.left_out


def test_an_empty_recording_of_a_power_cut_is_made_again(root):
    prepare(root)
    half = root / "FSD50K.dev_audio_16k" / "11.wav"
    whole = half.read_bytes()
    half.write_bytes(b"")
    assert prepare(root).resampled == 1
    assert half.read_bytes() == whole


def test_a_recording_that_comes_later_is_taken_in(root):
    prepare(root)
    soundfile.write(root / "FSD50K.dev_audio" / "14.wav", np.zeros(4410), 44100)
    prepared = prepare(root)
    assert prepared.resampled == 1
    assert len(prepared.left_out) == 1
    assert list(clips(prepared.validation)) == ["11.wav", "14.wav"]


def test_the_originals_can_go_once_all_is_made(root):
    for name in ("13.wav", "14.wav"):
        soundfile.write(root / "FSD50K.dev_audio" / name, np.zeros(4410), 44100)
    prepare(root)
    before = contents(root / "datafiles")
    for part in ("dev", "eval"):
        os.rename(root / f"FSD50K.{part}_audio", root / f"{part}_elsewhere")
    assert prepare(root).left_out == ()
    assert contents(root / "datafiles") == before


def test_an_interrupted_run_leaves_whole_files_and_goes_on(root, monkeypatch):
    write, calls = audio.write_pcm16, []

    def interrupted(path, waveform):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, waveform)

    monkeypatch.setattr(audio, "write_pcm16", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(root, workers=1)
    assert not (root / "datafiles").exists()
    made = os.listdir(root / "FSD50K.dev_audio_16k")
    assert 1 <= len(made) < 3
    assert all(scipy.io.wavfile.read(root / "FSD50K.dev_audio_16k" / name)[1].shape == (1600,) for name in made)
    monkeypatch.setattr(audio, "write_pcm16", write)
    assert prepare(root).resampled == 5 - len(made)


def test_a_full_disk_ends_it(root, monkeypatch):
    def full(path, waveform):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(audio, "write_pcm16", full)
    with pytest.raises(FSD50KError, match=r"16k.* cannot be written .No space left"):
        prepare(root)


@pytest.mark.parametrize("name", ["dev.csv", "eval.csv", "vocabulary.csv"])
def test_a_table_that_is_no_table_is_refused(root, name):
    path = root / "FSD50K.ground_truth" / name
    for data, message in (
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\xff\xfe1", "not a CSV file"),
        (b"PK\x03\x04", "not"),
    ):
        path.write_bytes(data)
        with pytest.raises(FSD50KError, match=f"{name} .*{message}"):
            prepare(root)
    path.unlink()
    with pytest.raises(FSD50KError, match=f"{name} cannot be read"):
        prepare(root)
    assert not (root / "FSD50K.dev_audio_16k").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dev.csv", EVAL, "dev.csv starts with 'fname,labels,mids'"),
        ("dev.csv", DEV.replace("val\n", "test\n"), "line 3 .*test"),
        ("dev.csv", DEV.replace(",val\n", "\n"), "line 3 "),
        ("dev.csv", DEV.replace("/m/cat,/m/animal", "/m/cat,/m/wolf"), "clip 12 .* '/m/wolf'"),
        ("dev.csv", DEV.replace("11,", "10,"), "clip 10 stands twice"),
        ("eval.csv", DEV, "eval.csv starts with"),
        ("eval.csv", EVAL.replace("/m/dog", "/m/wolf"), "clip 20 .* '/m/wolf'"),
        ("eval.csv", "fname,labels,mids\n", "fsd50k_eval_full would have no clip"),
        ("vocabulary.csv", "index,label,mid\n" + VOCABULARY, "line 1 .* 0,label,mid"),
        ("vocabulary.csv", VOCABULARY.replace("1,Cat", "2,Cat"), "line 2 .* 1,label,mid"),
        ("vocabulary.csv", VOCABULARY.replace("/m/cat", "/m/dog"), "class 2 has the mid '/m/dog'"),
        ("vocabulary.csv", VOCABULARY.replace(",/m/cat", ""), "line 2 "),
    ],
)
def test_tables_of_another_form_are_refused(root, name, text, message):
    write_table(root, name, text)
    with pytest.raises(FSD50KError, match=message):
        prepare(root)


def test_missing_folders_are_named(root):
    with pytest.raises(FSD50KError, match=r"vocabulary.csv cannot be read .*zenodo"):
        prepare(root / "nowhere")
    os.rename(root / "FSD50K.eval_audio", root / "elsewhere")
    with pytest.raises(FSD50KError, match=r"no folder FSD50K.eval_audio: .*zenodo"):
        prepare(root)
    assert not (root / "FSD50K.dev_audio_16k").exists()


def test_no_readable_clip_at_all(root):
    for name in ("20.wav", "21.wav"):
        (root / "FSD50K.eval_audio" / name).unlink()
    with pytest.raises(FSD50KError, match=r"fsd50k_eval_full would have no clip, as .*20.wav is missing"):
        prepare(root)
    assert not (root / "datafiles").exists()


def test_a_target_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(FSD50KError, match="cannot be written"):
        prepare(root, tmp_path / "file")


@pytest.mark.parametrize("workers", [0, -1])
def test_no_worker_does_no_work(root, workers):
    with pytest.raises(FSD50KError, match=f"workers is {workers}"):
        prepare(root, workers=workers)
