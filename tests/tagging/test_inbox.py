"""A queue of sound between two threads: order, waiting, and what is lost."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from psla_jax.tagging.inbox import Inbox


def block(value: int, size: int = 10) -> np.ndarray:
    return np.full((size, 1), value, np.float32)


def taken(inbox: Inbox) -> list[tuple[int, int]]:
    return [(heard.lost, int(heard.block[0, 0])) for heard in inbox.blocks(threading.Event())]


def test_one_who_may_wait_loses_nothing():
    inbox = Inbox(25)

    def hear() -> None:
        for i in range(50):
            assert inbox.put(block(i))
            assert inbox.held <= 25
        inbox.end()

    thread = threading.Thread(target=hear)
    thread.start()
    assert taken(inbox) == [(0, i) for i in range(50)]
    thread.join()


def test_one_who_may_not_wait_loses_what_is_late_and_counts_it():
    inbox = Inbox(25)
    for i in range(5):
        inbox.offer(block(i))
    inbox.end()
    assert taken(inbox) == [(40, 4)]


def test_a_block_beyond_the_limit_passes_alone():
    inbox = Inbox(25)
    inbox.offer(block(1, 100))
    inbox.offer(block(2, 100))
    inbox.end()
    assert taken(inbox) == [(100, 2)]


def test_an_error_comes_behind_the_last_block():
    inbox = Inbox(100)
    inbox.put(block(1))
    inbox.end(OSError("the cable"))
    found = inbox.blocks(threading.Event())
    assert next(found).block[0, 0] == 1
    with pytest.raises(OSError, match="the cable"):
        next(found)


def test_stopping_ends_both_sides():
    inbox, stop = Inbox(15), threading.Event()
    inbox.put(block(1))
    refused: list[bool] = []
    thread = threading.Thread(target=lambda: refused.append(inbox.put(block(2))))
    thread.start()
    timer = threading.Timer(0.1, stop.set)
    timer.start()
    began = time.monotonic()
    for _ in inbox.blocks(stop):
        pass
    thread.join()
    assert 0.05 < time.monotonic() - began < 20
    assert inbox.put(block(3)) is False
    assert refused == [True], "there was room for the second one"
