"""Packed sets stand for the originals: batch by batch, bit for bit, with ids that stay."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recordings import MIDS, noise, write

from psla_jax import audio, shards
from psla_jax.audio import AudioError
from psla_jax.config import DataConfig, SamplingConfig
from psla_jax.data import datafile, pack
from psla_jax.data.check import preflight
from psla_jax.data.datafile import Datafile
from psla_jax.data.pack import PackError
from psla_jax.data.pipeline import Batch, batches, evaluation_source, train_source
from psla_jax.ontology import Vocabulary
from psla_jax.shards import ShardError

CLASSES = Vocabulary(MIDS, MIDS)
LABELS = ([0], [1, 0], [2], [], [2, 1], [0], [1], [2], [0, 1, 2], [1], [0])
CLIPS = len(LABELS)


def sixteen_bits(clip: int) -> np.ndarray:
    """Integers with a mean, so that what is removed by the pipeline shows."""
    return np.random.default_rng(clip).integers(-9000, 12_000, 2000 + 531 * clip, dtype=np.int16)


@pytest.fixture
def home(tmp_path) -> Path:
    """A set of mono recordings of 16 bits at 16 kHz, in several formats, with relative paths."""
    for clip in range(CLIPS):
        soundfile.write(tmp_path / f"clip {clip}.{'flac' if clip % 3 else 'wav'}", sixteen_bits(clip), 16_000)
    records = [
        (f"clip {clip}.{'flac' if clip % 3 else 'wav'}", [MIDS[c] for c in LABELS[clip]]) for clip in range(CLIPS)
    ]
    datafile.write(tmp_path / "train.json", records)
    return tmp_path


def packed(home: Path, name: str = "packed", **options) -> pack.Packed:
    return pack.pack(str(home / "train.json"), str(home / name), progress=False, **options)


def read(path: str | Path) -> Datafile:
    return Datafile.read(path, CLASSES)


def stream(data: Datafile, workers: int = 0) -> list[Batch]:
    """Two epochs, balanced and mixed."""
    config, sampling = DataConfig(batch_size=4), SamplingConfig(balanced=True, mixup=0.7)
    return list(batches(train_source(data, config, sampling, num_samples=5000, epochs=2, seed=3), workers=workers))


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


# ---- In training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["pcm16", "flac", "float32"])
def test_batches_are_those_of_the_files(home, format):
    made = packed(home, format=format, clips_per_shard=4)
    assert (made.clips, len(made.shards), made.kept, made.left_out) == (CLIPS, 3, 0, [])
    original, copy = read(home / "train.json"), read(made.datafile)
    wanted = stream(original)
    assert max(abs(batch["waveform"]).max() for batch in wanted) > 0.1
    assert_same(stream(copy), wanted)
    whole = [
        list(batches(evaluation_source(data, DataConfig(batch_size=4), num_samples=5000))) for data in (original, copy)
    ]
    assert_same(*whole)


def test_worker_processes_read_shards_too(home, tmp_path):
    made = packed(home, clips_per_shard=4)
    wanted = stream(read(home / "train.json"))
    assert_same(stream(read(made.datafile).share(tmp_path / "shared"), workers=2), wanted)


@pytest.mark.parametrize("channel", ["mean", "first"])
def test_floats_stereo_and_other_rates_are_exact_as_floats_alone(home, channel):
    left, right = noise(1, 1.0, 44_100), noise(2, 1.0, 44_100)
    soundfile.write(home / "clip 0.wav", np.stack([left, right], axis=1), 44_100, subtype="FLOAT")
    config, sampling = DataConfig(batch_size=4, channel=channel), SamplingConfig(balanced=False, mixup=0.5)

    def rows(data):
        return list(batches(train_source(data, config, sampling, num_samples=5000, epochs=2, seed=3)))

    wanted = rows(read(home / "train.json"))
    exact = packed(home, "exact", format="float32", channel=channel)
    assert_same(rows(read(exact.datafile)), wanted)
    assert exact.shards[0].exact == CLIPS
    rounded = packed(home, "rounded", channel=channel)
    assert rounded.shards[0].exact == CLIPS - 1
    assert f"read exactly as from their files: {CLIPS - 1} of {CLIPS} clips\n" in rounded.report()
    assert "--format float32 keeps them exactly" in rounded.report()
    assert "--format" not in exact.report()
    audio.write_pcm16(home / "clip 0.wav", audio.read(home / "clip 0.wav", channel=channel))
    assert_same(rows(read(rounded.datafile)), rows(read(home / "train.json")))


def test_ids_and_labels_stay_and_addresses_move_with_the_folder(home):
    made = packed(home, clips_per_shard=4)
    original, copy = read(home / "train.json"), read(made.datafile)
    (home / "packed").rename(home / "moved")
    moved = read(home / "moved" / "train.json")
    for clip in range(CLIPS):
        assert copy.clip_id(clip) == moved.clip_id(clip) == original.wav(clip) == original.clip_id(clip)
        np.testing.assert_array_equal(moved.labels(clip), original.labels(clip))
        np.testing.assert_array_equal(audio.read(moved.wav(clip)), audio.read(original.wav(clip)))
        assert shards.file_of(copy.wav(clip)) == str(home / "packed" / f"train-{clip // 4:05d}-of-00003.arrayrecord")


def test_a_datafile_made_from_a_packed_one_finds_its_clips(home):
    copy = read(packed(home).datafile)
    datafile.write(home / "more.json", [(copy.wav(i), [MIDS[2]]) for i in range(CLIPS)])
    more = read(home / "more.json")
    assert [more.clip_id(i) for i in range(CLIPS)] == [copy.clip_id(i) for i in range(CLIPS)]
    np.testing.assert_array_equal(audio.read(more.wav(3)), audio.read(copy.wav(3)))


@pytest.mark.parametrize("exclusive", [False, True])
def test_what_the_datafile_says_of_its_classes_stays(home, exclusive):
    datafile.write(home / "train.json", [("clip 0.wav", [MIDS[0]])], exclusive=exclusive)
    assert read(packed(home).datafile).exclusive is exclusive


def test_a_packed_set_can_be_packed_again(home):
    first = packed(home, clips_per_shard=4)
    again = pack.pack(first.datafile, str(home / "again"), format="flac", progress=False)
    assert again.size < first.size
    assert_same(stream(read(again.datafile)), stream(read(home / "train.json")))
    assert read(again.datafile).clip_id(2) == read(home / "train.json").wav(2)


def test_two_runs_write_the_same_bytes_with_any_number_of_threads(home):
    one, other = packed(home, "one", workers=1, clips_per_shard=4), packed(home, "other", workers=7, clips_per_shard=4)
    for first, second in zip(sorted((home / "one").iterdir()), sorted((home / "other").iterdir()), strict=True):
        assert first.name == second.name
        assert first.read_bytes() == second.read_bytes()
    assert one.size == other.size


# ---- Interrupted -----------------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, path: str) -> None:
    kept = audio.read

    def interrupted(asked, channel):
        if str(asked) == path:
            raise KeyboardInterrupt
        return kept(asked, channel=channel)

    monkeypatch.setattr(audio, "read", interrupted)


def test_an_interrupted_pack_goes_on_with_the_missing_shards(home, monkeypatch):
    original = read(home / "train.json")
    with monkeypatch.context() as patch:
        interrupt_at(patch, original.wav(9))
        with pytest.raises(KeyboardInterrupt):
            packed(home, clips_per_shard=4)
    there = sorted(p.name for p in (home / "packed").iterdir())
    assert there == ["train-00000-of-00003.arrayrecord", "train-00001-of-00003.arrayrecord", "train.pack.json"]
    (home / "packed" / f".{there[0]}.0123.part").write_text("what a killed start left behind")
    times = {name: (home / "packed" / name).stat().st_mtime_ns for name in there[:2]}
    made = packed(home, clips_per_shard=4)
    assert made.kept == 2
    assert "3 shards of pcm16, 2 of them kept" in made.report()
    assert {name: (home / "packed" / name).stat().st_mtime_ns for name in there[:2]} == times
    assert not list((home / "packed").glob(".*"))
    assert_same(stream(read(made.datafile)), stream(original))
    assert packed(home, clips_per_shard=4).kept == 3


def test_a_shard_that_was_deleted_is_made_again(home):
    made = packed(home, clips_per_shard=4)
    (home / "packed" / "train-00001-of-00003.arrayrecord").unlink()
    assert packed(home, clips_per_shard=4).kept == 2
    assert_same(stream(read(made.datafile)), stream(read(home / "train.json")))


# ---- What is there already -------------------------------------------------------------------------------------------


def test_another_job_is_refused_and_nothing_is_replaced(home):
    packed(home)
    before = {p.name: p.read_bytes() for p in (home / "packed").iterdir()}
    for options, what in (
        ({"format": "flac"}, "format pcm16, not flac"),
        ({"channel": "first"}, "channel mean, not first"),
        ({"clips_per_shard": 3}, "clips_per_shard 8192, not 3"),
    ):
        with pytest.raises(PackError, match=rf"packed otherwise \({what}\): name another folder, or replace"):
            packed(home, **options)
    datafile.write(home / "train.json", [("clip 0.wav", [MIDS[1]])])
    with pytest.raises(PackError, match=r"packed otherwise \(sha256"):
        packed(home)
    assert {p.name: p.read_bytes() for p in (home / "packed").iterdir()} == before
    made = packed(home, force=True, clips_per_shard=1)
    assert (made.clips, made.kept) == (1, 0)
    assert len(list((home / "packed").glob("*.arrayrecord"))) == 1


def test_files_of_others_are_refused_and_left_alone(home):
    (home / "packed").mkdir()
    (home / "packed" / "train.json").write_text("mine")
    with pytest.raises(PackError, match="has a train already that psla pack did not make"):
        packed(home)
    (home / "packed" / "train.pack.json").write_text("{}")
    with pytest.raises(PackError, match=r"train\.pack\.json cannot be used"):
        packed(home)
    assert (home / "packed" / "train.json").read_text() == "mine"
    with pytest.raises(PackError, match="holds the datafile itself: name another folder"):
        packed(home, ".", force=True)
    assert len(read(home / "train.json")) == CLIPS


def test_sets_share_a_folder(home):
    packed(home)
    datafile.write(home / "eval.json", [("clip 3.wav", [])])
    pack.pack(str(home / "eval.json"), str(home / "packed"), progress=False)
    assert len(read(home / "packed" / "eval.json")) == 1
    assert_same(stream(read(home / "packed" / "train.json")), stream(read(home / "train.json")))


# ---- Bad clips and bad shards ----------------------------------------------------------------------------------------


def spoil(home: Path) -> None:
    (home / "clip 3.wav").write_text("not audio")
    (home / "clip 4.flac").unlink()
    soundfile.write(home / "clip 6.wav", sixteen_bits(6).astype(np.float32), 16_000, subtype="FLOAT")


def test_clips_that_cannot_be_read_stop_it_or_are_left_out(home):
    spoil(home)
    with pytest.raises(PackError, match=r"clip 3\.wav cannot be read as audio .* --unreadable skip"):
        packed(home, clips_per_shard=3)
    assert (home / "packed" / "train-00000-of-00004.arrayrecord").is_file()
    assert not (home / "packed" / "train.json").exists()
    made = packed(home, clips_per_shard=3, unreadable="skip")
    assert made.kept == 1
    assert [problem.index for problem in made.left_out] == [3, 4, 6]
    assert "has a peak of 1.2e+04 times full scale" in made.left_out[2].reason
    assert sum("left out: " in line for line in made.report().splitlines()) == 3
    original, copy = read(home / "train.json"), read(made.datafile)
    kept = [clip for clip in range(CLIPS) if clip not in (3, 4, 6)]
    for number, clip in enumerate(kept):
        assert copy.clip_id(number) == original.wav(clip)
        np.testing.assert_array_equal(copy.labels(number), original.labels(clip))
        np.testing.assert_array_equal(audio.read(copy.wav(number)), audio.read(original.wav(clip)))
    again = packed(home, clips_per_shard=3, unreadable="skip")
    assert (again.kept, again.left_out) == (4, made.left_out)


def test_a_set_of_which_nothing_can_be_read(home):
    for clip in range(CLIPS):
        (home / f"clip {clip}.{'flac' if clip % 3 else 'wav'}").write_text("not audio")
    with pytest.raises(PackError, match="nothing to pack"):
        packed(home, unreadable="skip")
    assert not (home / "packed" / "train.json").exists()


def test_no_room_on_the_disk(home, monkeypatch):
    def full(path, clips):
        next(iter(clips))
        raise ShardError(f"{path} cannot be written (No space left on device): free some space.")

    before = threading.active_count()
    monkeypatch.setattr(shards, "write", full)
    with pytest.raises(ShardError, match="No space left"):
        packed(home)
    assert not (home / "packed" / "train.json").exists()
    assert threading.active_count() == before


def test_a_damaged_shard_costs_its_clips_and_names_them(home):
    made = packed(home, clips_per_shard=4)
    copy = read(made.datafile)
    damaged = home / "packed" / "train-00001-of-00003.arrayrecord"
    os.truncate(damaged, damaged.stat().st_size // 2)
    (home / "packed" / "train-00002-of-00003.arrayrecord").unlink()
    problems = preflight(copy, limit=CLIPS, channel="mean", name="training", progress=False)
    assert [problem.index for problem in problems] == list(range(4, CLIPS))
    assert problems[0].path == copy.wav(4)
    assert problems[0].reason.startswith("is in a damaged shard (")
    assert {problem.reason.split(":")[0] for problem in problems[4:]} == {"is missing"}
    with pytest.raises(AudioError, match=r"#0:.*clip 4\.flac is in a damaged shard"):
        audio.read(copy.wav(4))
    rows = [row for batch in stream(copy) for row in zip(batch["clip"], batch["valid"], batch["failed"])]
    assert {int(clip) for clip, valid, _ in rows if valid} <= {0, 1, 2, 3}
    assert {int(failed) for _, _, failed in rows if failed >= 0} <= set(range(4, CLIPS))


def test_notes_can_be_read_by_programs(home):
    packed(home, clips_per_shard=4)
    notes = json.loads((home / "packed" / "train.pack.json").read_text())
    assert notes["job"]["sha256"] == read(home / "train.json").sha256
    assert [shard["clips"] for shard in notes["shards"].values()] == [4, 4, 3]


def test_settings_that_cannot_be(home):
    with pytest.raises(PackError, match="clips_per_shard is 0"):
        packed(home, clips_per_shard=0)


def test_a_name_that_no_datafile_takes(tmp_path):
    with pytest.raises(AudioError, match="has a name that is not UTF-8: rename it"):
        pack.encode(noise().astype(np.float32), "a\udcff.wav", "pcm16")


def test_a_path_of_a_stranger_is_no_place_to_write(tmp_path):
    """Names of shards come from the datafile's name alone."""
    write(tmp_path / "a.wav", noise())
    datafile.write(tmp_path / "t.json", [(str(tmp_path / "x" / ".." / "a.wav"), [])])
    (tmp_path / "x").mkdir()
    made = pack.pack(str(tmp_path / "t.json"), str(tmp_path / "out"), progress=False)
    assert sorted(os.listdir(tmp_path / "out")) == ["t-00000-of-00001.arrayrecord", "t.json", "t.pack.json"]
    assert read(made.datafile).clip_id(0) == str(tmp_path / "x" / ".." / "a.wav")
