"""Packed data sets give the same batches, bit for bit, and the same clip ids as the originals."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recordings import MIDS, noise, write

from psla_jax.audio import decode, segments, shards
from psla_jax.audio.decode import AudioError
from psla_jax.audio.shards import ShardError
from psla_jax.config import ConfigError, DataConfig, SamplingConfig
from psla_jax.data import datafile, pack
from psla_jax.data.datafile import Datafile, Record
from psla_jax.data.loader import Batch, batches, evaluation_source
from psla_jax.data.pack import PackError
from psla_jax.data.train_source import train_source
from psla_jax.data.validate.preflight import find_unreadable_clips
from psla_jax.vocabulary.vocabulary import Vocabulary

CLASSES = Vocabulary(MIDS, MIDS)
LABELS = ([0], [1, 0], [2], [], [2, 1], [0], [1], [2], [0, 1, 2], [1], [0])
CLIPS = len(LABELS)


def sixteen_bits(clip: int) -> np.ndarray:
    """16-bit samples whose mean differs from 0, so that its subtraction has an effect."""
    return np.random.default_rng(clip).integers(-9000, 12_000, 2000 + 531 * clip, dtype=np.int16)


@pytest.fixture
def home(tmp_path) -> Path:
    """A data set of 16-bit mono recordings at 16 kHz in two formats, with relative paths."""
    for clip in range(CLIPS):
        soundfile.write(tmp_path / f"clip {clip}.{'flac' if clip % 3 else 'wav'}", sixteen_bits(clip), 16_000)
    records = [
        (f"clip {clip}.{'flac' if clip % 3 else 'wav'}", [MIDS[c] for c in LABELS[clip]]) for clip in range(CLIPS)
    ]
    datafile.write(tmp_path / "train.json", records)
    return tmp_path


def packed(home: Path, name: str = "packed", **options) -> pack.PackResult:
    return pack.pack(str(home / "train.json"), str(home / name), progress=False, **options)


def read(path: str | Path) -> Datafile:
    return Datafile.read(path, CLASSES)


def stream(data: Datafile, workers: int = 0) -> list[Batch]:
    """Two epochs with balanced sampling and mixup."""
    config, sampling = DataConfig(batch_size=4), SamplingConfig(balanced=True, mixup=0.7)
    return list(batches(train_source(data, config, sampling, num_samples=5000, epochs=2, seed=3), workers=workers))


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


# ---- Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["pcm16", "flac", "float32"])
def test_batches_are_those_of_the_files(home, format):
    result = packed(home, format=format, clips_per_shard=4)
    assert (result.clips, len(result.shards), result.reused, result.left_out) == (CLIPS, 3, 0, [])
    original, copy = read(home / "train.json"), read(result.datafile)
    expected = stream(original)
    assert max(abs(batch["waveform"]).max() for batch in expected) > 0.1
    assert_same(stream(copy), expected)
    whole = [
        list(batches(evaluation_source(data, DataConfig(batch_size=4), num_samples=5000))) for data in (original, copy)
    ]
    assert_same(*whole)


def test_worker_processes_read_shards_too(home, tmp_path):
    result = packed(home, clips_per_shard=4)
    expected = stream(read(home / "train.json"))
    assert_same(stream(read(result.datafile).share(tmp_path / "shared"), workers=2), expected)


@pytest.mark.parametrize("channel", ["mean", "first"])
def test_floats_stereo_and_other_rates_are_exact_as_floats_alone(home, channel):
    left, right = noise(1, 1.0, 44_100), noise(2, 1.0, 44_100)
    soundfile.write(home / "clip 0.wav", np.stack([left, right], axis=1), 44_100, subtype="FLOAT")
    config, sampling = DataConfig(batch_size=4, channel=channel), SamplingConfig(balanced=False, mixup=0.5)

    def rows(data):
        return list(batches(train_source(data, config, sampling, num_samples=5000, epochs=2, seed=3)))

    expected = rows(read(home / "train.json"))
    exact = packed(home, "exact", format="float32", channel=channel)
    assert_same(rows(read(exact.datafile)), expected)
    assert exact.shards[0].exact == CLIPS
    rounded = packed(home, "rounded", channel=channel)
    assert rounded.shards[0].exact == CLIPS - 1
    assert (
        f"samples identical to those read from the original files: {CLIPS - 1} of {CLIPS} clips\n" in rounded.report()
    )
    assert "--format float32 stores them exactly" in rounded.report()
    assert "--format" not in exact.report()
    decode.write_pcm16(home / "clip 0.wav", decode.read(home / "clip 0.wav", channel=channel))
    assert_same(rows(read(rounded.datafile)), rows(read(home / "train.json")))


def test_ids_and_labels_stay_and_addresses_move_with_the_folder(home):
    result = packed(home, clips_per_shard=4)
    original, copy = read(home / "train.json"), read(result.datafile)
    (home / "packed").rename(home / "moved")
    moved = read(home / "moved" / "train.json")
    for clip in range(CLIPS):
        assert copy.clip_id(clip) == moved.clip_id(clip) == original.wav(clip) == original.clip_id(clip)
        np.testing.assert_array_equal(moved.labels(clip), original.labels(clip))
        np.testing.assert_array_equal(decode.read(moved.wav(clip)), decode.read(original.wav(clip)))
        assert shards.storage_path(copy.wav(clip)) == str(
            home / "packed" / f"train-{clip // 4:05d}-of-00003.arrayrecord"
        )


def test_a_datafile_made_from_a_packed_one_finds_its_clips(home):
    copy = read(packed(home).datafile)
    datafile.write(home / "more.json", [(copy.wav(i), [MIDS[2]]) for i in range(CLIPS)])
    more = read(home / "more.json")
    assert [more.clip_id(i) for i in range(CLIPS)] == [copy.clip_id(i) for i in range(CLIPS)]
    np.testing.assert_array_equal(decode.read(more.wav(3)), decode.read(copy.wav(3)))


@pytest.mark.parametrize("exclusive", [False, True])
def test_exclusive_classes_stay_exclusive(home, exclusive):
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
    read_file = decode.read

    def interrupted(file, **options):
        if str(file) == path:
            raise KeyboardInterrupt
        return read_file(file, **options)

    monkeypatch.setattr(decode, "read", interrupted)


def test_an_interrupted_pack_resumes_with_the_missing_shards(home, monkeypatch):
    original = read(home / "train.json")
    with monkeypatch.context() as patch:
        interrupt_at(patch, original.wav(9))
        with pytest.raises(KeyboardInterrupt):
            packed(home, clips_per_shard=4)
    written = sorted(p.name for p in (home / "packed").iterdir())
    assert written == ["train-00000-of-00003.arrayrecord", "train-00001-of-00003.arrayrecord", "train.pack.json"]
    (home / "packed" / f".{written[0]}.0123.part").write_text("remains of a killed process")
    times = {name: (home / "packed" / name).stat().st_mtime_ns for name in written[:2]}
    result = packed(home, clips_per_shard=4)
    assert result.reused == 2
    assert "3 shards of pcm16, 2 reused" in result.report()
    assert {name: (home / "packed" / name).stat().st_mtime_ns for name in written[:2]} == times
    assert not list((home / "packed").glob(".*"))
    assert_same(stream(read(result.datafile)), stream(original))
    assert packed(home, clips_per_shard=4).reused == 3


def test_a_shard_that_was_deleted_is_made_again(home):
    result = packed(home, clips_per_shard=4)
    (home / "packed" / "train-00001-of-00003.arrayrecord").unlink()
    assert packed(home, clips_per_shard=4).reused == 2
    assert_same(stream(read(result.datafile)), stream(read(home / "train.json")))


# ---- Existing results ------------------------------------------------------------------------------------------------


def test_another_job_is_refused_and_nothing_is_replaced(home):
    packed(home)
    before = {p.name: p.read_bytes() for p in (home / "packed").iterdir()}
    for options, change in (
        ({"format": "flac"}, "format pcm16, not flac"),
        ({"channel": "first"}, "channel mean, not first"),
        ({"clips_per_shard": 3}, "clips_per_shard 8192, not 3"),
    ):
        with pytest.raises(
            PackError, match=rf"packed with other settings \({change}\): use another directory, or replace"
        ):
            packed(home, **options)
    datafile.write(home / "train.json", [("clip 0.wav", [MIDS[1]])])
    with pytest.raises(PackError, match=r"packed with other settings \(sha256"):
        packed(home)
    assert {p.name: p.read_bytes() for p in (home / "packed").iterdir()} == before
    result = packed(home, force=True, clips_per_shard=1)
    assert (result.clips, result.reused) == (1, 0)
    assert len(list((home / "packed").glob("*.arrayrecord"))) == 1


def test_files_that_psla_pack_did_not_write_are_not_replaced(home):
    (home / "packed").mkdir()
    (home / "packed" / "train.json").write_text("mine")
    with pytest.raises(PackError, match="already contains train files that psla pack did not write"):
        packed(home)
    (home / "packed" / "train.pack.json").write_text("{}")
    with pytest.raises(PackError, match=r"train\.pack\.json is not a manifest of psla pack"):
        packed(home)
    assert (home / "packed" / "train.json").read_text() == "mine"
    with pytest.raises(PackError, match="contains the datafile to pack: use another directory"):
        packed(home, ".", force=True)
    assert len(read(home / "train.json")) == CLIPS


def test_sets_share_a_folder(home):
    packed(home)
    datafile.write(home / "eval.json", [("clip 3.wav", [])])
    pack.pack(str(home / "eval.json"), str(home / "packed"), progress=False)
    assert len(read(home / "packed" / "eval.json")) == 1
    assert_same(stream(read(home / "packed" / "train.json")), stream(read(home / "train.json")))


# ---- Unreadable clips and damaged shards -----------------------------------------------------------------------------


def spoil(home: Path) -> None:
    (home / "clip 3.wav").write_text("not audio")
    (home / "clip 4.flac").unlink()
    soundfile.write(home / "clip 6.wav", sixteen_bits(6).astype(np.float32), 16_000, subtype="FLOAT")


def test_unreadable_clips_stop_the_command_or_are_skipped(home):
    spoil(home)
    with pytest.raises(PackError, match=r"clip 3\.wav cannot be read as audio .* --unreadable skip"):
        packed(home, clips_per_shard=3)
    assert (home / "packed" / "train-00000-of-00004.arrayrecord").is_file()
    assert not (home / "packed" / "train.json").exists()
    result = packed(home, clips_per_shard=3, unreadable="skip")
    assert result.reused == 1
    assert [problem.index for problem in result.left_out] == [3, 4, 6]
    assert "has a peak of 1.2e+04 times full scale" in result.left_out[2].reason
    assert sum("left out: " in line for line in result.report().splitlines()) == 3
    original, copy = read(home / "train.json"), read(result.datafile)
    readable = [clip for clip in range(CLIPS) if clip not in (3, 4, 6)]
    for number, clip in enumerate(readable):
        assert copy.clip_id(number) == original.wav(clip)
        np.testing.assert_array_equal(copy.labels(number), original.labels(clip))
        np.testing.assert_array_equal(decode.read(copy.wav(number)), decode.read(original.wav(clip)))
    again = packed(home, clips_per_shard=3, unreadable="skip")
    assert (again.reused, again.left_out) == (4, result.left_out)


def test_damaged_clips_are_packed_and_reported_also_after_an_interruption(home):
    soundfile.write(home / "clip 4.flac", np.random.default_rng(0).normal(0, 0.1, 40_000), 16_000)
    with open(home / "clip 4.flac", "r+b") as file:
        file.truncate(40_000)
    for result in (packed(home, clips_per_shard=3), packed(home, clips_per_shard=3)):
        (line,) = [line for line in result.report().splitlines() if line.startswith("damaged: ")]
        assert line.startswith(f"damaged: {home / 'clip 4.flac'} holds ")
        assert "s of the 2.50 s that its header states" in line
    assert (result.reused, result.clips) == (4, CLIPS)


def test_a_data_set_without_readable_clips(home):
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


def test_a_disk_that_is_full_at_the_first_manifest_does_not_block_the_same_command(home, monkeypatch):
    """A shard that no manifest lists was called a file that psla pack did not write."""
    write, calls = pack._Output.write_manifest, []

    def full(self, finished):
        calls.append(len(finished))
        if finished:
            raise OSError(errno.ENOSPC, "No space left on device", self.manifest)
        write(self, finished)

    with monkeypatch.context() as patch:
        patch.setattr(pack._Output, "write_manifest", full)
        with pytest.raises(OSError, match="No space left"):
            packed(home, clips_per_shard=4)
    assert calls == [0, 1]
    result = packed(home, clips_per_shard=4)
    assert (result.reused, result.clips) == (0, CLIPS)


def test_the_clips_of_a_damaged_shard_are_unreadable(home):
    result = packed(home, clips_per_shard=4)
    copy = read(result.datafile)
    damaged = home / "packed" / "train-00001-of-00003.arrayrecord"
    os.truncate(damaged, damaged.stat().st_size // 2)
    (home / "packed" / "train-00002-of-00003.arrayrecord").unlink()
    problems = find_unreadable_clips(copy, limit=CLIPS, channel="mean", name="training", progress=False)
    assert [problem.index for problem in problems] == list(range(4, CLIPS))
    assert problems[0].path == copy.wav(4)
    assert problems[0].reason.startswith("is in a damaged shard (")
    assert {problem.reason.split(":")[0] for problem in problems[4:]} == {"is missing"}
    with pytest.raises(AudioError, match=r"#0:.*clip 4\.flac is in a damaged shard"):
        decode.read(copy.wav(4))
    rows = [row for batch in stream(copy) for row in zip(batch["clip"], batch["valid"], batch["failed"])]
    assert {int(clip) for clip, valid, _ in rows if valid} <= {0, 1, 2, 3}
    assert {int(failed) for _, _, failed in rows if failed >= 0} <= set(range(4, CLIPS))


def test_the_manifest_lists_job_and_shards(home):
    packed(home, clips_per_shard=4)
    manifest = json.loads((home / "packed" / "train.pack.json").read_text())
    assert manifest["job"]["sha256"] == read(home / "train.json").sha256
    assert [shard["clips"] for shard in manifest["shards"].values()] == [4, 4, 3]


def test_shards_of_another_rate_have_the_samples_of_the_files_at_that_rate(home):
    result = packed(home, format="float32", sample_rate=32_000)
    one, other = read(home / "train.json"), read(result.datafile)
    for clip in range(CLIPS):
        expected = segments.read(one.audio(clip), sample_rate=32_000)
        assert decode.header(other.audio(clip))[1] == 32_000
        np.testing.assert_array_equal(segments.read(other.audio(clip), sample_rate=32_000), expected)
    with pytest.raises(PackError, match="sample_rate 32000, not 16000"):
        packed(home, format="float32")
    manifest = home / "packed" / "train.pack.json"
    earlier = json.loads(manifest.read_text())
    del earlier["job"]["sample_rate"]
    manifest.write_text(json.dumps(earlier))
    assert packed(home, format="float32").reused == len(result.shards)  # Earlier versions wrote no other rate.


def test_invalid_settings(home):
    with pytest.raises(ConfigError, match="sample_rate is 16: use 1000 to"):
        packed(home, sample_rate=16)
    with pytest.raises(PackError, match="clips_per_shard is 0"):
        packed(home, clips_per_shard=0)


def test_a_path_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(AudioError, match="has a name that is not UTF-8: rename it"):
        pack.encode(noise().astype(np.float32), "a\udcff.wav", "pcm16")


def test_paths_in_a_datafile_do_not_decide_where_shards_are_written(tmp_path):
    """The names of shards depend only on the name of the datafile."""
    write(tmp_path / "a.wav", noise())
    datafile.write(tmp_path / "t.json", [(str(tmp_path / "x" / ".." / "a.wav"), [])])
    (tmp_path / "x").mkdir()
    result = pack.pack(str(tmp_path / "t.json"), str(tmp_path / "out"), progress=False)
    assert sorted(os.listdir(tmp_path / "out")) == ["t-00000-of-00001.arrayrecord", "t.json", "t.pack.json"]
    assert read(result.datafile).clip_id(0) == str(tmp_path / "x" / ".." / "a.wav")


def test_of_a_segment_only_its_sound_is_packed_under_the_same_id(home):
    times = [(1, 0.03125, 0.0625), (1, 0.09375, 0.125), (2, 0.0, 0.05), (2, 0.05, math.inf)]
    names = {1: "clip 1.flac", 2: "clip 2.flac"}
    segments_of = [Record(names[clip], [MIDS[clip]], start, end) for clip, start, end in times]
    datafile.write(home / "train.json", [(names[1], [MIDS[0]]), *segments_of])
    result = packed(home, clips_per_shard=3)
    original, copy = read(home / "train.json"), read(result.datafile)
    assert copy.times is None
    assert [copy.clip_id(i) for i in range(5)] == [original.clip_id(i) for i in range(5)]
    assert copy.clip_id(1) == str(home / "clip 1.flac#t=0.03125,0.0625")
    assert sum(shard.exact for shard in result.shards) == 5
    for number, (clip, start, end) in enumerate(times, 1):
        stop = None if math.isinf(end) else round(end * 16_000)
        np.testing.assert_array_equal(
            decode.read(copy.wav(number)) * 32768, sixteen_bits(clip)[round(start * 16_000) : stop]
        )
    assert_same(stream(copy), stream(original))
    # A packed clip can be cut, too, and packed again.
    datafile.write(home / "packed" / "cut.json", [Record(copy.path(0), [MIDS[0]], 0.1, 0.11)])
    cut = read(home / "packed" / "cut.json")
    assert cut.clip_id(0) == str(home / "clip 1.flac#t=0.1,0.11")
    again = pack.pack(str(home / "packed" / "cut.json"), str(home / "again"), progress=False)
    assert read(again.datafile).clip_id(0) == cut.clip_id(0)
    np.testing.assert_array_equal(decode.read(read(again.datafile).wav(0)) * 32768, sixteen_bits(1)[1600:1760])


def test_a_segment_beyond_its_file_is_not_packed(home):
    datafile.write(home / "train.json", [("clip 1.flac", []), Record("clip 1.flac", [], 3.0, 5.0)])
    with pytest.raises(PackError, match=r"clip 1\.flac#t=3,5 is not within the recording, which lasts 0\.15"):
        packed(home)
    assert [problem.index for problem in packed(home, unreadable="skip").left_out] == [1]
