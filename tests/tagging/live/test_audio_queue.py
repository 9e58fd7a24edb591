"""Order, waiting and losses of the audio queue between two threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from psla_jax.tagging.live.audio_queue import AudioQueue


def block(value: int, size: int = 10) -> np.ndarray:
    return np.full((size, 1), value, np.float32)


def taken(queue: AudioQueue) -> list[tuple[int, int]]:
    return [(block.lost, int(block.samples[0, 0])) for block in queue.blocks(threading.Event())]


def test_one_who_may_wait_loses_nothing():
    queue = AudioQueue(25)

    def produce() -> None:
        for i in range(50):
            assert queue.put(block(i))
            assert queue.size <= 25
        queue.close()

    thread = threading.Thread(target=produce)
    thread.start()
    assert taken(queue) == [(0, i) for i in range(50)]
    thread.join()


def test_one_who_may_not_wait_loses_what_is_late_and_counts_it():
    queue = AudioQueue(25)
    for i in range(5):
        queue.put_nowait(block(i))
    queue.close()
    assert taken(queue) == [(40, 4)]


def test_a_block_beyond_the_limit_passes_alone():
    queue = AudioQueue(25)
    queue.put_nowait(block(1, 100))
    queue.put_nowait(block(2, 100))
    queue.close()
    assert taken(queue) == [(100, 2)]


def test_an_error_comes_behind_the_last_block():
    queue = AudioQueue(100)
    queue.put(block(1))
    queue.close(OSError("the cable"))
    blocks = queue.blocks(threading.Event())
    assert next(blocks).samples[0, 0] == 1
    with pytest.raises(OSError, match="the cable"):
        next(blocks)


def test_stopping_ends_both_sides():
    queue, stop = AudioQueue(15), threading.Event()
    queue.put(block(1))
    accepted: list[bool] = []
    thread = threading.Thread(target=lambda: accepted.append(queue.put(block(2))))
    thread.start()
    timer = threading.Timer(0.1, stop.set)
    timer.start()
    began = time.monotonic()
    for _ in queue.blocks(stop):
        pass
    thread.join()
    assert 0.05 < time.monotonic() - began < 20
    assert queue.put(block(3)) is False
    assert accepted == [True], "the first block was taken, so the second one fits"
