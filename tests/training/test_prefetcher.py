"""Micro-batches that are read one ahead: the same ones, and no error before its time."""

import threading

import pytest

from sdlora.data.batches import Prefetcher
from sdlora.errors import FileError

PATIENCE = 30


def test_the_next_one_is_read_before_it_is_asked_for_and_only_once():
    read, there = [], threading.Event()

    def note(number):
        read.append((number, threading.current_thread() is threading.main_thread()))
        if number == 4:
            there.set()
        return number

    batches = Prefetcher(note)
    assert batches(3) == 3
    assert there.wait(PATIENCE)
    assert batches(4) == 4
    assert batches(9) == 9  # A run that went on elsewhere.
    assert batches(10) == 10
    numbers = [number for number, _ in read]
    assert numbers[:2] == [3, 4] and numbers.count(4) == numbers.count(9) == numbers.count(10) == 1
    assert not any(here for _, here in read)


def test_what_goes_wrong_is_told_when_its_turn_comes():
    def read(number):
        if number == 2:
            raise FileError("gone")
        return number

    batches = Prefetcher(read)
    assert batches(1) == 1
    with pytest.raises(FileError, match="gone"):
        batches(2)
    assert batches(3) == 3
