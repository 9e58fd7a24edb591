"""The user's cache: content is found again, verified, limited in number, and private; failures never raise."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from psla_jax.runtime import cache


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "psla"))
    return tmp_path / "psla" / "things"


class Counter:
    """Makes content, and counts how often."""

    def __init__(self, content: bytes = b"xxx") -> None:
        self.content, self.calls = content, 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.content


def test_content_is_made_once_per_key() -> None:
    make = Counter()
    assert [cache.cached("things", key, make) for key in ("a", "a", "b")] == [b"xxx"] * 3
    assert make.calls == 2


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 40])
def test_damaged_content_is_made_again(directory: Path, damage: bytes) -> None:
    cache.cached("things", "a", Counter(b"old"))
    (file,) = directory.iterdir()
    file.write_bytes(damage)
    assert cache.cached("things", "a", Counter(b"new")) == b"new"
    assert cache.cached("things", "a", Counter(b"newer")) == b"new"


def test_the_least_recently_used_files_are_deleted(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_FILES", 3)
    for age, key in enumerate("abc"):
        cache.cached("things", key, Counter())
        for file in directory.iterdir():
            if file.stat().st_mtime > 978307300:
                os.utime(file, (978307200 + age, 978307200 + age))
    cache.cached("things", "a", Counter())  # "a" is now the most recently used one.
    cache.cached("things", "d", Counter())
    counters = {key: Counter() for key in "acd"}
    for key, make in counters.items():
        cache.cached("things", key, make)
    assert {key: make.calls for key, make in counters.items()} == {"a": 0, "c": 0, "d": 0}
    assert len(list(directory.iterdir())) == 3


def test_a_cache_that_cannot_be_written_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "psla").write_text("a file where the directory should be")
    make = Counter()
    assert [cache.cached("things", "a", make) for _ in range(2)] == [b"xxx"] * 2
    assert make.calls == 2


def test_only_the_owner_can_access_the_directory(directory: Path) -> None:
    cache.cached("things", "a", Counter())
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_cache_directory_can_be_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_directory() == tmp_path / "psla"
    monkeypatch.delenv("PSLA_CACHE")
    assert cache.cache_directory().name == "psla_jax"


def test_the_source_digest_depends_on_every_source_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "a.py").write_text("one")
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "runtime" / "cache.py"))
    digests = []
    for text in ("one", "two", "one"):
        (tmp_path / "a.py").write_text(text)
        cache.source_digest.cache_clear()
        digests.append(cache.source_digest())
    cache.source_digest.cache_clear()
    assert digests[0] == digests[2] != digests[1]


def test_without_a_writable_cache_files_are_in_a_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts: list[Path] = []

    def make(path: Path) -> Path:
        attempts.append(path)
        if len(attempts) == 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    first, second = cache.in_cache(make, "things", "a"), cache.in_cache(make, "things", "a")
    assert first == second == attempts[1]
    assert attempts == [cache.cache_directory() / "things" / "a", first, first], "the cache is tried once"
    assert first.name == "a"
    assert first.exists()
    text = f"{attempts[0]} cannot be written (No space left on device); PSLA_CACHE can name another directory"
    assert capsys.readouterr().err == f"the cache is not used: {text}\n"
