"""Shards and addresses: round trips, and detection of damage."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from psla_jax.audio import shards
from psla_jax.audio.shards import Address, ShardError

CLIPS = [(f"/data/clip {i}.wav", os.urandom(20_000 + i)) for i in range(12)]


@pytest.fixture
def shard(tmp_path) -> str:
    path = str(tmp_path / "a-00000-of-00001.arrayrecord")
    assert shards.write(path, iter(CLIPS)) == len(CLIPS)
    return path


def address(shard: str, record: int, clip_id: str = "") -> Address:
    return Address(shard, record, clip_id or CLIPS[record][0])


@pytest.mark.parametrize(
    "clip", ["/data/a.wav", "a.wav", "C:\\data\\a b.wav", "x#3:y.wav", "né\udcff.wav", "two\nlines"]
)
@pytest.mark.parametrize("shard", ["s-00001-of-00002.arrayrecord", "/far/away/s.arrayrecord", "C:\\s.arrayrecord"])
def test_an_address_survives_a_round_trip(shard, clip):
    text = str(Address(shard, 17, clip))
    assert shards.parse_address(text) == Address(shard, 17, clip)
    assert shards.clip_id(text) == clip
    assert shards.storage_path(text) == shard


@pytest.mark.parametrize(
    "path", ["/data/a.wav", "a.arrayrecord", "a.arrayrecord#", "a.arrayrecord#x:b", "a#3:b.wav", ""]
)
def test_other_paths_are_no_addresses(path):
    assert shards.parse_address(path) is None
    assert shards.clip_id(path) == path
    assert shards.storage_path(path) == path


def test_records_are_read_in_any_order_by_concurrent_threads(shard):
    indices = [i % len(CLIPS) for i in range(300)]
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda i: shards.read(address(shard, i)), indices))
    assert records == [CLIPS[i][1] for i in indices]


def test_a_name_that_is_not_utf8_is_preserved(tmp_path):
    path = str(tmp_path / "a.arrayrecord")
    shards.write(path, [("/data/\udcff.wav", b"sound")])
    assert shards.read(Address(path, 0, "/data/\udcff.wav")) == b"sound"


def test_a_record_of_another_clip_is_refused(shard):
    with pytest.raises(ShardError, match="is another clip in its shard: use the datafile that was written with"):
        shards.read(address(shard, 3, CLIPS[4][0]))
    with pytest.raises(ShardError, match=r"damaged shard \(it has 12 records"):
        shards.read(address(shard, 12, CLIPS[0][0]))


def test_a_missing_file_or_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(ShardError, match="is in a shard that is missing: "):
        shards.read(address(str(tmp_path / "b.arrayrecord"), 0))
    for content in (b"", b"text " * 40_000, bytes(200_000)):
        (tmp_path / "b.arrayrecord").write_bytes(content)
        with pytest.raises(ShardError, match=r"is in a damaged shard .*: copy the shard again"):
            shards.read(address(str(tmp_path / "b.arrayrecord"), 0))
    (tmp_path / "c.arrayrecord").mkdir()
    with pytest.raises(ShardError, match="damaged"):
        shards.read(address(str(tmp_path / "c.arrayrecord"), 0))


@pytest.mark.parametrize("position", [0.0, 0.1, 0.37, 0.5, 0.8, 0.99])
def test_a_flipped_bit_is_detected(shard, position):
    content = bytearray(Path(shard).read_bytes())
    content[int(position * 12 * 20_000) + 200] ^= 1
    Path(shard).write_bytes(content)
    errors = 0
    for record, (_, sound) in enumerate(CLIPS):
        try:
            assert shards.read(address(shard, record)) == sound
        except ShardError:
            errors += 1
    assert errors >= 1


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_a_truncated_shard_is_damaged(shard, share):
    os.truncate(shard, int(share * os.path.getsize(shard)))
    with pytest.raises(ShardError, match="is in a damaged shard"):
        shards.read(address(shard, 0))


def test_a_replaced_shard_is_reopened(shard):
    assert shards.read(address(shard, 0)) == CLIPS[0][1]
    shards.write(shard, [(CLIPS[0][0], b"another sound")])
    assert shards.read(address(shard, 0)) == b"another sound"


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def clips():
        yield CLIPS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(str(tmp_path / "a.arrayrecord"), clips())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"a\.arrayrecord cannot be written .*: free some space, or use another"):
        shards.write(str(tmp_path / "nowhere" / "a.arrayrecord"), CLIPS)


def test_exceptions_from_the_clips_are_not_converted(tmp_path):
    class OwnError(RuntimeError):
        pass

    def clips():
        yield CLIPS[0]
        raise OwnError

    with pytest.raises(OwnError):
        shards.write(str(tmp_path / "a.arrayrecord"), clips())
