from __future__ import annotations

import os

from ulid import ULID

from llmtap.core.ids import Ulids, new_ulid


def test_another_library_reads_the_time_and_the_randomness_from_it() -> None:
    randomness = bytes(range(256)) * 32
    ulids = Ulids(lambda: 1_767_225_600_123_000_000, lambda n: randomness[:n])
    for i in range(3):
        bits = 0
        for byte in randomness[16 * i : 16 * i + 16]:
            bits = bits << 5 | byte % 32
        assert str(ULID.from_bytes((1_767_225_600_123).to_bytes(6) + bits.to_bytes(10))) == ulids()


def test_extreme_bits() -> None:
    ones = Ulids(lambda: ((1 << 48) - 1) * 1_000_000, lambda n: b"\xff" * n)
    assert ones() == "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
    zeros = Ulids(lambda: 0, lambda n: bytes(n))
    assert zeros() == "0" * 26


def test_they_sort_by_time_and_never_repeat() -> None:
    now = [0]
    ulids = Ulids(lambda: now[0])
    made = []
    for _ in range(2000):
        now[0] += 1_000_000
        made.append(ulids())
    assert made == sorted(made) and len(set(made)) == 2000
    assert len({new_ulid() for _ in range(2000)}) == 2000


def test_a_forked_child_makes_ids_of_its_own() -> None:
    new_ulid()  # randomness has been fetched ahead
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, new_ulid()[10:].encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert len(theirs) == 16 and theirs != new_ulid()[10:]
