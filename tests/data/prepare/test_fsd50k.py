"""Preparation of FSD50K, on a small example with the same layout and defects."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
import soxr

from psla_jax.audio import decode
from psla_jax.config import ConfigError
from psla_jax.data.datafile import Datafile
from psla_jax.data.prepare import fsd50k
from psla_jax.data.prepare.fsd50k import FSD50KError
from psla_jax.vocabulary.vocabulary import Vocabulary

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
    """Returns a small FSD50K in which 12.wav is stereo, 13.wav is a web page and 14.wav is missing."""
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


def test_datafiles_list_the_readable_clips(root):
    prepared = prepare(root)
    assert sorted(os.listdir(root / "datafiles")) == RESULTS
    assert clips(prepared.datafiles["train"]) == {"10.wav": "/m/dog,/m/animal", "12.wav": "/m/cat,/m/animal"}
    assert clips(prepared.datafiles["validation"]) == {"11.wav": "/m/cat"}
    assert clips(prepared.datafiles["evaluation"]) == {"20.wav": "/m/dog", "21.wav": "/m/cat,/m/animal"}
    assert prepared.clips == {"train": 2, "validation": 1, "evaluation": 2}
    assert prepared.resampled == 5
    vocabulary = Vocabulary.read(prepared.labels)
    assert vocabulary == Vocabulary(("/m/animal", "/m/cat", "/m/dog"), ("Animal", "Cat", "Dog_(small)"))
    data = Datafile.read(prepared.datafiles["train"], vocabulary)
    assert data.wav(0) == str(root / "FSD50K.dev_audio_16k" / "10.wav")
    expected = [1000 / 1.01 + 1000 / 2.01, 1000 / 1.01 + 1000 / 2.01]
    np.testing.assert_allclose(np.loadtxt(prepared.weights), expected)


def test_unreadable_clips_are_excluded_with_the_reason(root):
    excluded = prepare(root).excluded
    assert [os.path.basename(clip.path) for clip in excluded] == ["13.wav", "14.wav"]
    assert "cannot be read as audio" in excluded[0].reason
    assert "is missing" in excluded[1].reason
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
def test_tables_may_have_other_line_ends_or_a_byte_order_mark(root, change):
    expected = prepare(root)
    before = contents(root / "datafiles")
    for name, text in (("dev.csv", DEV), ("eval.csv", EVAL), ("vocabulary.csv", VOCABULARY)):
        write_table(root, name, change(text))
    assert prepare(root).excluded == expected.excluded
    assert contents(root / "datafiles") == before


def test_results_are_written_to_the_output_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(root))
    prepared = prepare("FSD50K", "out")
    assert sorted(os.listdir(root)) == before
    assert sorted(os.listdir(tmp_path / "out")) == ["FSD50K.dev_audio_16k", "FSD50K.eval_audio_16k", "datafiles"]
    assert os.path.isabs(prepared.datafiles["train"])
    wav = Datafile.read(prepared.datafiles["train"], Vocabulary.read(prepared.labels)).wav(0)
    assert wav == str(tmp_path / "out" / "FSD50K.dev_audio_16k" / "10.wav")


def test_another_rate_has_folders_of_its_own(root):
    prepare(root)
    before = contents(root / "datafiles")
    prepared = prepare(root, sample_rate=32_000)
    assert contents(root / "datafiles") == before
    wav = Datafile.read(prepared.datafiles["train"], Vocabulary.read(prepared.labels)).wav(0)
    assert wav == str(root / "FSD50K.dev_audio_32k" / "10.wav")
    assert os.path.dirname(prepared.datafiles["train"]) == str(root / "datafiles_32k")
    rates = [scipy.io.wavfile.read(root / f"FSD50K.dev_audio_{rate}k" / "10.wav") for rate in (16, 32)]
    assert [(rate, len(samples)) for rate, samples in rates] == [(16_000, 1600), (32_000, 3200)]
    with pytest.raises(ConfigError, match="sample_rate is 0: use 1000 to"):
        prepare(root, sample_rate=0)


def test_existing_recordings_are_not_resampled_again(root, monkeypatch):
    first = prepare(root)
    before = contents(root / "datafiles")
    written = []
    monkeypatch.setattr(decode, "write_pcm16", lambda path, *_: written.append(path))
    second = prepare(root)
    assert written == []
    assert second.resampled == 0
    assert contents(root / "datafiles") == before
    assert second.excluded == first.excluded


def test_an_empty_recording_is_resampled_again(root):
    prepare(root)
    file = root / "FSD50K.dev_audio_16k" / "11.wav"
    content = file.read_bytes()
    file.write_bytes(b"")
    assert prepare(root).resampled == 1
    assert file.read_bytes() == content


def test_a_recording_added_later_is_included(root):
    prepare(root)
    soundfile.write(root / "FSD50K.dev_audio" / "14.wav", np.zeros(4410), 44100)
    prepared = prepare(root)
    assert prepared.resampled == 1
    assert len(prepared.excluded) == 1
    assert list(clips(prepared.datafiles["validation"])) == ["11.wav", "14.wav"]


def test_the_originals_may_be_deleted_after_resampling(root):
    for name in ("13.wav", "14.wav"):
        soundfile.write(root / "FSD50K.dev_audio" / name, np.zeros(4410), 44100)
    prepare(root)
    before = contents(root / "datafiles")
    for part in ("dev", "eval"):
        os.rename(root / f"FSD50K.{part}_audio", root / f"{part}_elsewhere")
    assert prepare(root).excluded == ()
    assert contents(root / "datafiles") == before


def test_an_interrupted_run_leaves_complete_files_and_can_be_restarted(root, monkeypatch):
    write, calls = decode.write_pcm16, []

    def interrupted(path, *sound):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, *sound)

    monkeypatch.setattr(decode, "write_pcm16", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(root, workers=1)
    assert not (root / "datafiles").exists()
    made = os.listdir(root / "FSD50K.dev_audio_16k")
    assert 1 <= len(made) < 3
    assert all(scipy.io.wavfile.read(root / "FSD50K.dev_audio_16k" / name)[1].shape == (1600,) for name in made)
    monkeypatch.setattr(decode, "write_pcm16", write)
    assert prepare(root).resampled == 5 - len(made)


def test_a_full_disk_is_an_error(root, monkeypatch):
    def full(path, *_):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(decode, "write_pcm16", full)
    with pytest.raises(FSD50KError, match=r"16k.* cannot be written .No space left"):
        prepare(root)


@pytest.mark.parametrize("name", ["dev.csv", "eval.csv", "vocabulary.csv"])
def test_a_file_that_is_not_a_table_is_rejected(root, name):
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
        ("dev.csv", DEV.replace("11,", "10,"), "clip 10 is listed twice"),
        ("eval.csv", DEV, "eval.csv starts with"),
        ("eval.csv", EVAL.replace("/m/dog", "/m/wolf"), "clip 20 .* '/m/wolf'"),
        ("eval.csv", "fname,labels,mids\n", "fsd50k_eval_full would have no clip"),
        ("vocabulary.csv", "index,label,mid\n" + VOCABULARY, "line 1 .* 0,label,mid"),
        ("vocabulary.csv", VOCABULARY.replace("1,Cat", "2,Cat"), "line 2 .* 1,label,mid"),
        ("vocabulary.csv", VOCABULARY.replace("/m/cat", "/m/dog"), "class 2 has the mid '/m/dog'"),
        ("vocabulary.csv", VOCABULARY.replace(",/m/cat", ""), "line 2 "),
    ],
)
def test_malformed_tables_are_rejected(root, name, text, message):
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


def test_a_set_without_a_readable_clip_is_an_error(root):
    for name in ("20.wav", "21.wav"):
        (root / "FSD50K.eval_audio" / name).unlink()
    with pytest.raises(FSD50KError, match=r"fsd50k_eval_full would have no clip, as .*20.wav is missing"):
        prepare(root)
    assert not (root / "datafiles").exists()


def test_an_output_folder_that_cannot_be_written_is_an_error(root, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(FSD50KError, match="cannot be written"):
        prepare(root, tmp_path / "file")


@pytest.mark.parametrize("workers", [0, -1])
def test_the_number_of_workers_must_be_positive(root, workers):
    with pytest.raises(FSD50KError, match=f"workers is {workers}"):
        prepare(root, workers=workers)
