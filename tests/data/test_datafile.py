"""Datafiles as arrays, compared with the json module and plain loops."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from psla_jax.audio.segments import WHOLE
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile, DatafileError, Record
from psla_jax.runtime import streams
from psla_jax.vocabulary.ontology import Ontology
from psla_jax.vocabulary.vocabulary import Vocabulary

CLASSES = Vocabulary(("/m/a", "/m/b", "/t/c", "/t/d"), ("A", "B", "C", "D"))
ABSOLUTE = os.path.abspath(os.path.join(os.sep, "audio", "4.wav"))
RECORDS = [
    ("clips/1.wav", ["/m/a", "/m/b"]),
    ("Grüße 雨 😀.flac", []),
    ("3.wav", ["/t/c", "/m/a"]),
    (ABSOLUTE, ["/m/a"]),
    ("5.wav", []),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train.json"
    assert datafile.write(path, RECORDS) == 5
    return path


def save(folder, value):
    path = folder / "train.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_the_file_has_the_format_of_the_reference(file, tmp_path):
    expected = {"data": [{"wav": wav, "labels": ",".join(mids)} for wav, mids in RECORDS]}
    assert file.read_text(encoding="utf-8") == json.dumps(expected, indent=1)
    assert datafile.write(tmp_path / "none.json", []) == 0
    assert (tmp_path / "none.json").read_text(encoding="utf-8") == json.dumps({"data": []}, indent=1)


def test_what_is_written_is_read_back(file):
    data = Datafile.read(file, CLASSES)
    assert len(data) == 5
    assert data.num_classes == 4
    for i, (wav, mids) in enumerate(RECORDS):
        assert data.wav(i) == os.path.join(file.parent, wav)
        assert data.labels(i).tolist() == [CLASSES.index(mid) for mid in mids]
        assert data.multi_hot(i).tolist() == [float(mid in mids) for mid in CLASSES.mids]
    assert data.wav(3) == ABSOLUTE
    assert data.labels(0).dtype == np.int32
    assert data.multi_hot(0).dtype == np.float32
    assert data.class_counts().tolist() == [3, 1, 1, 0]
    assert data.class_counts().dtype == np.int64
    assert data.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert data.source == str(file)


@pytest.mark.parametrize("exclusive", [True, False])
def test_exclusive_classes_are_declared_before_or_after_the_clips(tmp_path, exclusive):
    records = [("/a.wav", ["/m/a"]), ("/b.wav", ["/m/b"])]
    datafile.write(tmp_path / "data.json", records, exclusive=exclusive)
    content = json.loads((tmp_path / "data.json").read_text())
    assert content.pop("classes", None) == ("exclusive" if exclusive else None)
    assert content == {"data": [{"wav": wav, "labels": mids[0]} for wav, mids in records]}
    read = Datafile.read(tmp_path / "data.json", CLASSES)
    shared = read.share(tmp_path / "index")
    assert [d.exclusive for d in (read, shared, pickle.loads(pickle.dumps(read)))] == [exclusive] * 3
    assert pickle.loads(pickle.dumps(shared)).exclusive == exclusive
    # JSON objects have no order: a field that was added by another program is the last one.
    fields = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "last.json").write_text(json.dumps(dict(reversed(fields.items()))))
    assert Datafile.read(tmp_path / "last.json", CLASSES).exclusive == exclusive
    assert datafile.declares_exclusive(tmp_path / "last.json") == exclusive


@pytest.mark.parametrize(
    "value",
    [{"classes": "many"}, {"classes": ["exclusive"]}, {"classes": {"classes": "exclusive"}}, {"x": "exclusive"}],
)
def test_other_values_of_classes_are_ignored(tmp_path, value):
    clips = [{"wav": "/a.wav", "labels": "/m/a"}]
    for order in ({**value, "data": clips}, {"data": clips, **value}):
        (tmp_path / "data.json").write_text(json.dumps(order))
        read = Datafile.read(tmp_path / "data.json", CLASSES)
        assert (len(read), read.exclusive) == (1, False)


def test_paths_hold_when_the_working_directory_changes(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    data = Datafile.read("train.json", CLASSES)
    monkeypatch.chdir(file.parent.parent)
    assert data.wav(0) == os.path.join(file.parent, "clips/1.wav")


def test_there_is_no_clip_beyond_the_ends(file):
    data = Datafile.read(file, CLASSES)
    for method in (data.wav, data.labels, data.multi_hot):
        for index in (-1, 5):
            with pytest.raises(IndexError, match=f"clip {index} .* 0 to 4"):
                method(index)


def test_labels_are_cleaned(tmp_path):
    path = save(tmp_path, {"data": [{"wav": "a", "labels": " /m/b, /m/a,/m/b ,"}]})
    data = Datafile.read(path, CLASSES)
    assert data.labels(0).tolist() == [1, 0]
    assert data.class_counts().tolist() == [1, 1, 0, 0]


def test_other_json_of_the_same_meaning(tmp_path):
    record = {"labels": "/m/a", "from": 0.5, "wav": "a"}
    path = save(tmp_path, {"about": {"data": [1]}, "data": [record], "more": []})
    assert Datafile.read(path, CLASSES).labels(0).tolist() == [0]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    data = Datafile.read(path, CLASSES)
    assert data.wav(0) == str(tmp_path / "a")
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "is empty"),
        ("  ", "is not JSON"),
        ("wav,labels\na.wav,/m/a\n", "is not JSON"),
        ('{"data": [{"wav": "a", "labels": ""}', "is not JSON"),
        ('{"data": [{"wav": "a", "labels": ""}]} and more', "is not JSON"),
        ({"data": []}, "has no clip"),
        ({"clips": [{"wav": "a", "labels": ""}]}, "has no clip"),
        ([{"wav": "a", "labels": ""}], "has no clip"),
        ({"data": {"wav": "a", "labels": ""}}, "has no clip"),
        ({"data": [{"wav": "a", "labels": ""}, "b.wav"]}, "clip 1 .* is 'b.wav'"),
        ({"data": [{"labels": "/m/a"}]}, "clip 0 .* has no wav"),
        ({"data": [{"wav": "", "labels": "/m/a"}]}, "clip 0 .* has '' as wav"),
        ({"data": [{"wav": "a"}]}, "clip 0 .* has no labels"),
        ({"data": [{"wav": "a", "labels": ["/m/a"]}]}, r"clip 0 .* has \['/m/a'\] as labels"),
        ({"data": [{"wav": "a", "labels": None}]}, "clip 0 .* has None as labels"),
        (
            {"data": [{"wav": "a", "labels": ""}, {"wav": "b", "labels": "/m/a,/m/x"}]},
            r"clip 1 \(b\) .* '/m/x'.*4 classes",
        ),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, value, message):
    path = save(tmp_path, value)
    with pytest.raises(DatafileError, match=message) as caught:
        Datafile.read(path, CLASSES)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(DatafileError, match=r"nowhere.json cannot be read"):
        Datafile.read(tmp_path / "nowhere.json", CLASSES)
    with pytest.raises(DatafileError, match="cannot be read"):
        Datafile.read(tmp_path, CLASSES)
    (tmp_path / "latin.json").write_bytes('{"data": [{"wav": "ä", "labels": ""}]}'.encode("latin-1"))
    with pytest.raises(DatafileError, match=r"latin.json is not JSON in UTF-8"):
        Datafile.read(tmp_path / "latin.json", CLASSES)


@pytest.mark.parametrize("record", [("", ["/m/a"]), ("a", ["/m/a,/m/b"]), ("a", [""]), ("a\udcff.wav", [])])
def test_invalid_records_are_not_written(tmp_path, record):
    path = save(tmp_path, "an older file")
    with pytest.raises(DatafileError, match="clip 1 "):
        datafile.write(path, [("b", []), record])
    assert path.read_text(encoding="utf-8") == "an older file"
    assert os.listdir(tmp_path) == ["train.json"]


def random_records(clips, seed=0):
    draw = np.random.default_rng(seed)
    for i in range(clips):
        mids = [CLASSES.mids[c] for c in draw.permutation(3)[: draw.integers(0, 4)]]
        yield f"/data/audio/unbalanced_train_segments/{i:011x}.flac", mids


def test_weights_are_the_references_sums(tmp_path):
    records = list(random_records(200))
    datafile.write(tmp_path / "a.json", records)
    data = Datafile.read(tmp_path / "a.json", CLASSES)
    counts = {mid: sum(mid in mids for _, mids in records) for mid in CLASSES.mids}
    expected = [sum(1000 / (counts[mid] + 0.01) for mid in mids) for _, mids in records]
    assert 0 in expected, "the records must include a clip without labels"
    weights = data.clip_weights()
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


@pytest.mark.parametrize("mids", [[[], [], ["/m/a"]], [["/m/a"], [], []], [[], []]], ids=["first", "last", "all"])
def test_weights_where_clips_have_no_label(tmp_path, mids):
    datafile.write(tmp_path / "a.json", [(f"{i}.wav", labels) for i, labels in enumerate(mids)])
    weights = Datafile.read(tmp_path / "a.json", CLASSES).clip_weights()
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, [1000 / 1.01 * len(labels) for labels in mids])


def test_the_weight_file(file):
    data = Datafile.read(file, CLASSES)
    path = datafile.weight_path(file)
    assert path == str(file.parent / "train_weight.csv")
    datafile.write_weights(data, path)
    np.testing.assert_array_equal(np.loadtxt(path, delimiter=","), data.clip_weights())
    datafile.write_weights(np.array([1.5, 0.0]), path)
    with open(path, encoding="utf-8") as lines:
        assert [float(line) for line in lines] == [1.5, 0.0]
    assert sorted(os.listdir(file.parent)) == ["train.json", "train_weight.csv"]


def same(a, b):
    assert len(a) == len(b)
    assert (a.num_classes, a.sha256, a.source) == (b.num_classes, b.sha256, b.source)
    for i in range(len(a)):
        assert a.wav(i) == b.wav(i)
        np.testing.assert_array_equal(a.labels(i), b.labels(i))


def test_shared_arrays_are_the_same(file, tmp_path):
    data = Datafile.read(file, CLASSES)
    shared = data.share(tmp_path / "cache")
    same(shared, data)
    assert shared.labels(1).size == 0
    with pytest.raises(ValueError, match="read-only"):
        shared.paths[0] = 0
    assert not any(name.endswith(".part") for name in os.listdir(tmp_path / "cache"))


def test_a_shared_datafile_is_pickled_as_its_path(tmp_path):
    datafile.write(tmp_path / "a.json", random_records(2000))
    data = Datafile.read(tmp_path / "a.json", CLASSES)
    shared = data.share(tmp_path / "cache")
    pickled = pickle.dumps(shared)
    assert len(pickled) < 1000 < len(pickle.dumps(data))
    same(pickle.loads(pickled), data)
    same(pickle.loads(pickle.dumps(data)), data)
    same(shared.share(tmp_path / "cache"), data)


def test_another_process_opens_it(file, tmp_path):
    shared = Datafile.read(file, CLASSES).share(tmp_path / "cache")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Datafile.wav, (shared, 2)) == shared.wav(2)
        same(pool.apply(Datafile.share, (shared, tmp_path / "cache")), shared)


def test_sharing_again_writes_nothing_and_other_data_goes_elsewhere(file, tmp_path):
    cache = tmp_path / "cache"
    data = Datafile.read(file, CLASSES)
    first = data.share(cache)
    before = {entry: entry.stat().st_mtime_ns for entry in cache.rglob("*")}
    same(Datafile.read(file, CLASSES).share(cache), first)
    assert {entry: entry.stat().st_mtime_ns for entry in cache.rglob("*")} == before

    reordered = Vocabulary(CLASSES.mids[::-1], CLASSES.names[::-1])
    assert Datafile.read(file, reordered).share(cache).labels(0).tolist() == [3, 2]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.json").write_bytes(file.read_bytes())
    assert (
        Datafile.read(tmp_path / "copy" / "train.json", CLASSES).share(cache).wav(0).startswith(str(tmp_path / "copy"))
    )
    datafile.write(file, [(f"other/{wav}", mids) for wav, mids in RECORDS])
    assert Datafile.read(file, CLASSES).share(cache).wav(0) == os.path.join(file.parent, "other/clips/1.wav")
    datafile.write(file, RECORDS[:2])
    assert len(Datafile.read(file, CLASSES).share(cache)) == 2
    same(pickle.loads(pickle.dumps(first)), data)


def test_two_processes_share_at_once(file, tmp_path, monkeypatch):
    data = Datafile.read(file, CLASSES)
    rename = os.rename

    def slower(source, target):
        monkeypatch.setattr(os, "rename", rename)
        data.share(tmp_path / "cache")
        rename(source, target)

    monkeypatch.setattr(os, "rename", slower)
    same(data.share(tmp_path / "cache"), data)
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_a_share_that_fails_leaves_nothing(file, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        Datafile.read(file, CLASSES).share(tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_reading_takes_memory_for_the_arrays_and_a_block_of_text(tmp_path):
    clips = 200_000
    path = tmp_path / "a.json"
    datafile.write(
        path, ((f"/data/audio/unbalanced_train_segments/{i:011x}.flac", CLASSES.mids[: i % 4]) for i in range(clips))
    )
    tracemalloc.start()
    try:
        data = Datafile.read(path, CLASSES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) == clips
    # Per clip: 54 bytes of path, 16 of offsets, 6 of labels; growing a buffer may copy it. As dicts: 340 to 440 bytes.
    assert peak < 160 * clips + 8 * 2**20


SEGMENTS = [
    ("a.wav", ["/m/a"]),
    Record("a.wav", ["/m/a", "/m/b"], 12.5, 15.0),
    Record("a.wav", ["/m/b"], 0.0, 0.1),
    Record("b.wav", [], 1e-7),
    ("c.wav", ["/t/c"]),
]
TIMES = [WHOLE, (12.5, 15.0), (0.0, 0.1), (1e-7, math.inf), WHOLE]


def test_a_clip_may_be_a_segment_of_its_file(tmp_path):
    path = tmp_path / "train.json"
    assert datafile.write(path, SEGMENTS) == 5
    clips = json.loads(path.read_text())["data"]
    assert clips[0] == {"wav": "a.wav", "labels": "/m/a"}
    assert clips[1] == {"wav": "a.wav", "start": 12.5, "end": 15, "labels": "/m/a,/m/b"}
    assert clips[3] == {"wav": "b.wav", "start": 1e-7, "labels": ""}
    data = Datafile.read(path, CLASSES)
    shared = data.share(tmp_path / "cache")
    for copy in (data, shared, pickle.loads(pickle.dumps(data)), pickle.loads(pickle.dumps(shared))):
        same(copy, data)
        assert [copy.time(i) for i in range(5)] == TIMES
    names = ["a.wav", "a.wav#t=12.5,15", "a.wav#t=0,0.1", "b.wav#t=0.0000001", "c.wav"]
    assert [data.clip_id(i) for i in range(5)] == [str(tmp_path / name) for name in names]
    assert [os.fspath(data.audio(i)) for i in range(5)] == [str(tmp_path / name) for name in names]
    assert data.wav(1) == str(tmp_path / "a.wav")
    with pytest.raises(IndexError, match="no clip 5"):
        data.audio(5)
    assert [(r.wav, list(r.mids), r.start, r.end) for r in datafile.records(path)] == [
        (Record(*clip).wav, list(Record(*clip).mids), *time) for clip, time in zip(SEGMENTS, TIMES)
    ]
    assert datafile.write(tmp_path / "again.json", datafile.records(path)) == 5
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_without_segments_there_are_no_times(file, tmp_path):
    data = Datafile.read(file, CLASSES)
    assert data.times is None
    assert data.share(tmp_path / "cache").times is None
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*.npy")) == [
        "label_indices.npy", "label_offsets.npy", "path_offsets.npy", "paths.npy",
    ]  # fmt: skip
    assert [data.audio(i) for i in range(5)] == [data.wav(i) for i in range(5)]
    assert data.clip_id(0) == data.wav(0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('"start": 2, "end": 3.50', (2.0, 3.5)),
        ('"start": -0.0, "end": 3e0', (0.0, 3.0)),
        ('"end": 4', (0.0, 4.0)),
        ('"start": 4', (4.0, math.inf)),
        ('"start": 0', WHOLE),
        ('"start": null, "end": null', WHOLE),
    ],
)
def test_times_are_numbers_of_which_each_is_optional(tmp_path, fields, expected):
    path = save(tmp_path, '{"data": [{"wav": "a", "labels": "", ' + fields + "}]}")
    data = Datafile.read(path, CLASSES)
    assert data.time(0) == expected
    assert str(data.time(0)[0]) == str(expected[0])  # not -0
    assert (data.times is None) == (expected == WHOLE)


@pytest.mark.parametrize(
    "fields",
    ['"start": "1", "end": 2', '"start": true', '"start": 2, "end": 2', '"start": 3, "end": 2', '"start": -1',
     '"end": 0', '"start": 1, "end": 1e999', '"start": 1e999', '"end": [1]'],
)  # fmt: skip
def test_invalid_times_are_refused(tmp_path, fields):
    path = save(tmp_path, '{"data": [{"wav": "a", "labels": "", ' + fields + "}]}")
    with pytest.raises(DatafileError, match=r"clip 0 \(a\) of .* has the .*: give JSON numbers of seconds with 0 <= s"):
        Datafile.read(path, CLASSES)


def test_invalid_times_are_not_written(tmp_path):
    for start, end in ((2.0, 2.0), (-1.0, 2.0), (math.nan, 2.0), (math.inf, math.inf)):
        with pytest.raises(DatafileError, match=r"the clip a\.wav starts at"):
            datafile.write(tmp_path / "a.json", [Record("a.wav", [], start, end)])
    assert not (tmp_path / "a.json").exists()


def test_relative_paths_that_are_only_in_the_working_directory_are_read_from_there(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    (tmp_path / "here" / "wavs").mkdir(parents=True)
    (tmp_path / "here" / "wavs" / "b.wav").touch()
    datafile.write(tmp_path / "lists" / "a.json", [("wavs/a.wav", ["x"]), ("wavs/b.wav", ["x"]), ("/c.wav", ["x"])])
    monkeypatch.chdir(tmp_path / "here")
    data = Datafile.read(tmp_path / "lists" / "a.json", Vocabulary(("x",), ("X",)))
    for same in (data, pickle.loads(pickle.dumps(data)), data.share(tmp_path / "shared")):
        assert same.root == str(tmp_path / "here")
        assert [same.wav(i) for i in (1, 2)] == [str(tmp_path / "here" / "wavs" / "b.wav"), "/c.wav"]
    (tmp_path / "lists" / "wavs").mkdir()
    (tmp_path / "lists" / "wavs" / "a.wav").touch()
    found = Datafile.read("../lists/a.json", Vocabulary(("x",), ("X",)))
    assert (found.root, found.wav(1)) == ("", str(tmp_path / "lists" / "wavs" / "b.wav"))
    assert found.share(tmp_path / "shared").root == ""
    monkeypatch.chdir(tmp_path)
    assert Datafile.read("lists/a.json", Vocabulary(("x",), ("X",))).root == ""


def test_a_datafile_may_come_from_a_pipe():
    """As in psla evaluate --data <(jq ...): it is read from a temporary copy, since a pipe can be read only once."""
    content = json.dumps({"data": [{"wav": "/a.wav", "labels": "/m/b"}]}).encode()
    read_end, write_end = os.pipe()
    os.write(write_end, content)
    os.close(write_end)
    data, mids = datafile.read_open_vocabulary(f"/dev/fd/{read_end}")
    os.close(read_end)
    assert (data.wav(0), mids, data.sha256) == ("/a.wav", ("/m/b",), hashlib.sha256(content).hexdigest())


def test_a_pipe_that_nothing_writes_to_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "PARTNER_SECONDS", 0.05)
    os.mkfifo(tmp_path / "pipe")
    for read in (datafile.read_open_vocabulary, Vocabulary.read, Ontology.read):
        with pytest.raises(ValueError, match=r"pipe cannot be read \(no program writes to this pipe\): check the path"):
            read(tmp_path / "pipe")
