"""What is kept for the next start: found again, within a limit, and never in the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from psla_jax import cache


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """A directory in which things are kept during the test."""
    cache.keep(tmp_path)
    yield tmp_path / "things"
    cache.keep(None)


def store(name: str, size: int, age: float = 0.0) -> None:
    """Keeps a file of that size as if that had been `age` seconds after the year 2001 began."""
    cache.store("things", name, lambda file: file.write(b"x" * size))
    directory = cache.kept("things")
    if age and directory is not None and (directory / name).exists():
        os.utime(directory / name, (978307200 + age, 978307200 + age))


def names(directory: Path) -> list[str]:
    return sorted(x.name for x in directory.iterdir())


def test_what_was_stored_is_found(kept: Path) -> None:
    assert cache.find("things", "a") is None
    store("a", 3)
    found = cache.find("things", "a")
    assert found is not None
    assert found.read_bytes() == b"xxx"


def test_what_was_not_used_for_longest_goes_beyond_the_limit(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT", 30)
    for number, name in enumerate("abc"):
        store(name, 10, age=1.0 + number)
    assert cache.find("things", "a")  # and so was used last
    store("d", 10)
    assert names(kept) == ["a", "c", "d"]


def test_a_file_beyond_the_limit_is_kept_alone(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT", 30)
    store("a", 10, age=1.0)
    store("b", 50)
    assert names(kept) == ["b"]


def test_what_fails_while_it_is_written_leaves_nothing(kept: Path) -> None:
    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    store("a", 3)
    cache.store("things", "a", full)
    cache.store("things", "b", full)
    assert names(kept) == ["a"]
    assert (kept / "a").read_bytes() == b"xxx"


def test_nothing_is_kept_unless_somebody_says_where(tmp_path: Path) -> None:
    store("a", 3)
    assert cache.find("things", "a") is None
    assert list(tmp_path.iterdir()) == []


def test_the_users_cache_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    assert cache.cache_directory() == tmp_path
    monkeypatch.delenv("PSLA_CACHE")
    assert cache.cache_directory().name == "psla_jax"
