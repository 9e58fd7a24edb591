"""A teacher's scores of the training clips: values against direct computation, and files that cannot be used."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.special import expit, logit, softmax

from psla_jax.audio.decode import write_pcm16
from psla_jax.config import DataConfig, SamplingConfig
from psla_jax.config_distill import DistillConfig
from psla_jax.data import datafile, teacher
from psla_jax.data.datafile import Datafile
from psla_jax.data.teacher import TeacherError, TeacherScores
from psla_jax.data.train_source import train_source
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("/t/a", "/t/b", "/t/c"), ("A", "B", "C"))
NAMES = ["x/a.wav", "x/b.wav", "x/c.wav", "x/d.wav"]
LABELS = [("/t/a",), ("/t/b",), ("/t/c",), ("/t/a",)]
HOT = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
SCORES = np.random.default_rng(0).uniform(0.01, 0.99, (4, 3)).astype(np.float32)
HALF = {"rtol": 1e-3, "atol": 1e-7}
"""Tolerance of float16."""


@pytest.fixture
def data(tmp_path: Path) -> Datafile:
    datafile.write(tmp_path / "train.json", list(zip(NAMES, LABELS)))
    return Datafile.read(tmp_path / "train.json", VOCABULARY)


def saved(path: Path, **arrays: Any) -> DistillConfig:
    """Writes scores as `psla evaluate --save` does, with those of `arrays` instead."""
    np.savez(path, **{"clips": np.array(NAMES), "scores": SCORES, "mids": np.array(VOCABULARY.mids), **arrays})
    return DistillConfig(teacher=str(path))


def read(config: DistillConfig, data: Datafile, *, exclusive: bool = False) -> TeacherScores:
    sha256 = teacher.identity(config)["sha256"]
    directory = Path(data.source).parent / "index"
    return teacher.prepare(config, sha256, data, VOCABULARY, exclusive=exclusive, directory=directory)


def values(scores: TeacherScores) -> np.ndarray:
    return np.stack([scores[clip] for clip in range(len(scores))])


def test_scores_are_matched_by_clip_id_and_mid_in_any_order(data, tmp_path):
    """Rows and columns are shuffled, and there are another clip and another class."""
    rows, columns = [3, 0, 2, 1], [2, 0, 1]
    config = saved(
        tmp_path / "t.npz",
        clips=np.array(["/else/z.flac", *(f"/else/x/{Path(NAMES[row]).stem}.flac" for row in rows)]),
        scores=np.insert(np.insert(SCORES[rows][:, columns], 0, 7.0, axis=0), 1, 8.0, axis=1),
        mids=np.array(["/t/c", "/t/other", "/t/a", "/t/b"]),
    )
    scores = read(config, data)
    np.testing.assert_allclose(values(scores), SCORES, **HALF)
    assert scores[0].dtype == np.float32
    assert scores.notes() == [f"teacher {config.teacher}: scores of 4 of 4 training clips"]


def test_labels_stand_in_for_clips_and_classes_that_the_teacher_lacks(data, tmp_path):
    config = saved(
        tmp_path / "t.npz", clips=np.array(NAMES)[:3], scores=SCORES[:3, :2], mids=np.array(VOCABULARY.mids[:2])
    )
    scores = read(config, data)
    expected = HOT.copy()
    expected[:3, :2] = SCORES[:3, :2]
    np.testing.assert_allclose(values(scores), expected, **HALF)
    assert scores.notes()[0].endswith("scores of 3 of 4 training clips")
    assert scores.notes()[1].startswith("clips without teacher, for which labels stand in: 1, such as ")
    assert scores.notes()[2] == "classes without teacher, for which labels stand in: 1, such as /t/c"


def test_a_clip_whose_only_class_the_teacher_lacks_keeps_its_label(data, tmp_path):
    """Another distribution would have two parts that do not belong together."""
    config = saved(tmp_path / "t.npz", scores=SCORES[:, :2], mids=np.array(VOCABULARY.mids[:2]))
    expected = np.pad(SCORES[:, :2] / SCORES[:, :2].sum(axis=1, keepdims=True), ((0, 0), (0, 1)))
    expected[2] = HOT[2]
    np.testing.assert_allclose(values(read(config, data, exclusive=True)), expected, **HALF)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_temperature_divides_the_logits(data, tmp_path, temperature, logits, exclusive):
    given = np.random.default_rng(1).normal(0, 4, (4, 3)).astype(np.float32) if logits else SCORES
    config = dataclasses.replace(saved(tmp_path / "t.npz", scores=given), temperature=temperature, logits=logits)
    if exclusive:
        expected = softmax((given if logits else np.log(given)) / temperature, axis=1)
    else:
        expected = expit((given if logits else logit(given)) / temperature)
    np.testing.assert_allclose(values(read(config, data, exclusive=exclusive)), expected, **HALF)


def as_hdf5(path: Path) -> DistillConfig:
    with h5py.File(path / "t.h5", "w") as file:
        file["names"] = [name.encode() for name in NAMES]
        file["output"] = logit(SCORES).astype(np.float16)
    return DistillConfig(teacher=str(path / "t.h5"), clips=("names",), scores="output", mids=str(path / "l.csv"))


def as_npy(path: Path) -> DistillConfig:
    """As EfficientAT publishes logits: their rows are those of two HDF5 files, one after the other."""
    np.save(path / "t.npy", logit(SCORES).astype(np.float16))
    for name, part in {"one.hdf": NAMES[:1], "two.hdf": NAMES[1:]}.items():
        with h5py.File(path / name, "w") as file:
            file["audio_name"] = [text.encode() for text in part]
    names = (f"{path / 'one.hdf'}:audio_name", f"{path / 'two.hdf'}:audio_name")
    return DistillConfig(teacher=str(path / "t.npy"), clips=names, mids=str(path / "l.csv"))


def as_npy_with_a_list(path: Path) -> DistillConfig:
    (path / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return dataclasses.replace(as_npy(path), clips=(str(path / "names.txt"),))


def as_compressed_columns(path: Path) -> DistillConfig:
    config = saved(path / "plain.npz")
    np.savez_compressed(path / "t.npz", ids=np.array(NAMES), logits=np.asfortranarray(logit(SCORES)))
    return dataclasses.replace(
        config, teacher=str(path / "t.npz"), clips=("ids",), scores="logits", mids=str(path / "l.csv")
    )


@pytest.mark.parametrize("make", [as_hdf5, as_npy, as_npy_with_a_list, as_compressed_columns])
def test_published_logits_are_read_from_named_arrays_and_files(data, tmp_path, make):
    VOCABULARY.write(tmp_path / "l.csv")
    config = dataclasses.replace(make(tmp_path), logits=True)
    np.testing.assert_allclose(values(read(config, data)), SCORES, rtol=5e-3)


def test_scores_slightly_outside_their_range_are_clipped_as_in_the_loss(data, tmp_path):
    """The weights of attention heads are unconstrained."""
    config = saved(tmp_path / "t.npz", scores=np.where(SCORES > 0.5, 1.004, -0.002).astype(np.float32))
    np.testing.assert_array_equal(values(read(config, data)), SCORES > 0.5)


def test_blocks_give_the_values_of_the_whole(data, tmp_path, monkeypatch):
    monkeypatch.setattr("psla_jax.data.score_arrays.BLOCK_BYTES", 24)
    np.testing.assert_allclose(values(read(saved(tmp_path / "t.npz"), data)), SCORES, **HALF)


def test_the_converted_scores_are_found_again_until_something_changes(data, tmp_path):
    config = saved(tmp_path / "t.npz")
    first = read(config, data)
    assert read(config, data).directory == first.directory
    assert read(dataclasses.replace(config, temperature=2.0), data).directory != first.directory
    saved(tmp_path / "t.npz", scores=SCORES / 2)
    np.testing.assert_allclose(values(read(config, data)), SCORES / 2, **HALF)
    assert len(list((tmp_path / "index").iterdir())) == 3


def with_value(value: float) -> dict[str, Any]:
    return {"scores": np.where(np.arange(12).reshape(4, 3) == 7, value, SCORES)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (with_value(np.nan), "distill.teacher is .*, which has the value nan in row 2: compute the scores again"),
        (with_value(-3.5), r"the value -3.5 in row 2: use --distill.logits True if these are logits"),
        (with_value(1.5), r"the value 1.5 in row 2: use --distill.logits True"),
        ({"clips": np.array([f"{n}.wav" for n in range(4)])}, "none of the 4 training clips, such as .*a.wav"),
        ({"mids": np.array(["/u/a", "/u/b", "/u/c"])}, "none of the 3 classes, such as '/t/a', but 3 others"),
        ({"mids": np.array(["/t/a", "/t/b"])}, r"\(3,\) values per clip, and it has 2 mids"),
        ({"mids": np.array(["/t/a", "/t/b", "/t/b"])}, "lists a mid twice"),
        ({"clips": np.array(NAMES[:3])}, "4 rows of scores, but there are 3 clip ids"),
        ({"clips": np.array([*NAMES[:3], NAMES[0]])}, "clips 0 and 3 of .* are both x/a.wav: keep one"),
        ({"scores": (SCORES * 100).astype(np.int32)}, "whose scores are int32 .*: give floats"),
    ],
)
def test_scores_that_cannot_be_used_are_refused_in_one_sentence(data, tmp_path, arrays, message):
    with pytest.raises(TeacherError, match=message) as caught:
        read(saved(tmp_path / "t.npz", **arrays), data)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.glob("index/*")] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: {"logits": True}, r"whose values are all in \[0, 1\], as scores are: use --distill.logits False"),
        (lambda path: {"scores": "logits"}, "it has no array 'logits'.*: name its array of scores with distill.scores"),
        (lambda path: {"clips": ("ids",)}, "distill.clips is 'ids': .* cannot be read .*no array 'ids'"),
        (lambda path: {"mids": "classes"}, "distill.mids is 'classes'"),
        (lambda path: {"teacher": str(path / "none.npz")}, "cannot be read .No such file"),
        (lambda path: {"teacher": str(path)}, "cannot be read .Is a directory"),
    ],
)
def test_arrays_and_files_that_are_missing_are_named(data, tmp_path, change: Callable[[Path], dict], message):
    with pytest.raises(TeacherError, match=message):
        read(dataclasses.replace(saved(tmp_path / "t.npz"), **change(tmp_path)), data)


def test_hdf5_without_its_library_is_one_sentence(data, tmp_path, monkeypatch):
    VOCABULARY.write(tmp_path / "l.csv")
    config = as_hdf5(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(TeacherError, match=r"pip install psla_jax\[hdf5\]"):
        read(config, data)


# ---- in the loader


def test_the_loader_mixes_the_scores_as_it_mixes_the_labels(data, tmp_path):
    """With one class per clip, the labels of a mix are the weights of its clips."""
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_pcm16(tmp_path / name, np.random.default_rng(number).normal(0, 0.1, 900).astype(np.float32))
    scores = read(saved(tmp_path / "t.npz"), data)
    sampling = SamplingConfig(balanced=False, mixup=1.0)
    plain, taught = (
        train_source(data, DataConfig(batch_size=3), sampling, num_samples=800, epochs=5, seed=1, teacher=each)
        for each in (None, scores)
    )
    mixed = 0
    for item in range(len(taught)):
        row, same = taught[item], plain[item]
        assert {name: value for name, value in row.items() if name != "teacher"}.keys() == same.keys()
        for name in same:
            np.testing.assert_array_equal(row[name], same[name])
        if row["clip"] < 0:
            assert not row["teacher"].any()
            continue
        clip, labels = int(row["clip"]), row["labels"]
        if clip in (1, 2):  # The other classes tell the partner, except that a and d have the same class.
            partners = [p for p in range(4) if HOT[p].argmax() != HOT[clip].argmax() and labels[HOT[p].argmax()] > 0]
            weight = labels[HOT[clip].argmax()]
            if len(partners) == 1:
                expected = weight * SCORES[clip] + (1 - weight) * SCORES[partners[0]]
                np.testing.assert_allclose(row["teacher"], expected, rtol=2e-3)
                mixed += 1
    assert mixed >= 2


MEASURE = """
import pickle, sys
import numpy as np

def megabytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

pickled = open(sys.argv[1], "rb").read()
import psla_jax.data.teacher
before = megabytes("RssAnon")
scores = pickle.loads(pickled)
rows = np.random.default_rng(0).integers(len(scores), size=20_000)
total = sum(float(scores[row].sum()) for row in rows)
assert "jax" not in sys.modules
print(megabytes("RssAnon") - before, total)
"""


def test_loader_processes_share_the_scores_of_many_clips(tmp_path):
    """200,000 clips and 527 classes are 201 MiB in float16; a process that reads 20,000 of them has no copy of it."""
    clips, classes = 200_000, 527
    scores = np.lib.format.open_memmap(tmp_path / teacher.SCORES, mode="w+", dtype=np.float16, shape=(clips, classes))
    scores[:] = np.float16(0.25)
    scores.flush()
    pickled = pickle.dumps(TeacherScores(str(tmp_path)))
    assert len(pickled) < 1000
    (tmp_path / "pickled").write_bytes(pickled)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "pickled")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    growth, total = map(float, done.stdout.split())
    assert total == 20_000 * classes * 0.25
    assert growth < 20


CONVERT = """
import resource, sys
from pathlib import Path
import numpy as np
from psla_jax.config_distill import DistillConfig
from psla_jax.data import teacher
from psla_jax.data.datafile import read_open_vocabulary
from psla_jax.vocabulary.vocabulary import Vocabulary

def megabytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

folder = Path(sys.argv[1])
vocabulary = Vocabulary.read(folder / "l.csv")
data, _ = read_open_vocabulary(folder / "train.json", vocabulary.mids)
before, peaks = megabytes("RssAnon"), []
original = teacher._require_scores
def watched(*arguments):
    peaks.append(megabytes("RssAnon"))
    return original(*arguments)
teacher._require_scores = watched
config = DistillConfig(teacher=str(folder / "t.npz"), mids=str(folder / "l.csv"))
teacher.prepare(config, "x", data, vocabulary, exclusive=False, directory=folder / "index")
print(max(peaks) - before)
"""


def test_conversion_reads_a_large_file_in_blocks(tmp_path):
    """The float32 scores of 80,000 clips and 527 classes are 161 MiB; a conversion has some blocks of 16 MiB."""
    clips, vocabulary = 80_000, Vocabulary.read("audioset")
    names = [f"{clip}.wav" for clip in range(clips)]
    vocabulary.write(tmp_path / "l.csv")
    datafile.write(tmp_path / "train.json", [(name, vocabulary.mids[:1]) for name in names])
    np.savez(tmp_path / "t.npz", clips=np.array(names[::-1]), scores=np.full((clips, 527), 0.5, np.float32))
    command = [sys.executable, "-c", CONVERT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 110
