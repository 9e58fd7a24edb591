"""Recordings among processes: all of them once, joined in their order, and gone on with after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from psla_jax.locks import locked
from psla_jax.tagging.folder import FolderError, Results
from psla_jax.tagging.share import WHOLE, Share

CLIPS = [f"{number}.wav" for number in range(7)]
HEADER = "clip\n"


def opened(folder: Path, share: Share, **options) -> Results:
    return Results({str(folder / "a.csv"): HEADER}, [], 1, overwrite=False, share=share, **options)


def work(folder: Path, share: Share, until: int = 99) -> None:
    """Tags a share, or the first recordings of it; every third recording has nothing in it."""
    results = opened(folder, share)
    for clip in [clip for clip in share.of(CLIPS) if clip not in results.done][:until]:
        number = int(clip[0])
        results.add(clip, {str(folder / "a.csv"): f"{clip} ä\n" * (number % 3)})
    if until < 99:
        results.close()
    else:
        results.finish()


def join(folder: Path, share: Share) -> bool:
    return share.join({str(folder / "a.csv"): HEADER}, str(folder / "a.csv"), CLIPS)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_the_last_one_joins_what_all_have_found_in_the_order_of_the_recordings(tmp_path, count):
    (tmp_path / "one").mkdir()
    work(tmp_path / "one", WHOLE)
    shares = Share(0, count).all()
    for share in shares[::-1]:
        work(tmp_path, share)
        assert join(tmp_path, share) is (share is shares[0])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "one" / "a.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "one"]


def test_an_interrupted_share_goes_on(tmp_path):
    work(tmp_path, Share(0, 2), until=2)
    work(tmp_path, Share(1, 2))
    assert not join(tmp_path, Share(1, 2))
    assert opened(tmp_path, Share(0, 2)).done == {"0.wav", "2.wav"}
    work(tmp_path, Share(0, 2))
    # Whoever is started once more can join too.
    work(tmp_path, Share(1, 2))
    assert join(tmp_path, Share(1, 2))
    assert (tmp_path / "a.csv").read_text().count("5.wav") == 2


def test_one_process_joins(tmp_path):
    for share in Share(0, 2).all():
        work(tmp_path, share)
    with locked(tmp_path / "a.csv.joining"):
        assert not join(tmp_path, Share(0, 2))
    assert join(tmp_path, Share(0, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(("begun", "then"), [(Share(0, 2), Share(0, 3)), (WHOLE, Share(1, 2)), (Share(1, 3), WHOLE)])
def test_another_number_of_processes_does_not_go_on(tmp_path, begun, then):
    work(tmp_path, begun, until=1)
    with pytest.raises(FolderError, match="was begun by another number of processes"):
        opened(tmp_path, then)


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(FolderError, match=r"a\.csv is there already"):
        opened(tmp_path, Share(0, 2))
    (tmp_path / "a.csv").unlink()
    (tmp_path / "labels").mkdir()
    own = tmp_path / "labels" / "0.txt"
    Results({}, [str(own.parent)], 1, overwrite=False, share=Share(1, 2), own=[own]).close()
    own.write_text("mine")
    with pytest.raises(FolderError, match=r"0\.txt is there already"):
        Results({}, [str(own.parent)], 1, overwrite=False, share=Share(0, 2), own=[own])
