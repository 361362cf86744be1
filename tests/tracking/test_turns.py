"""Turns between threads and processes of one machine."""

from __future__ import annotations

import subprocess
import sys
import threading

import platformdirs
import pytest

from pomlflow.tracking import turns
from pomlflow.tracking.turns import turn


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path)


def test_threads_take_turns():
    inside, most, lock = [0], [0], threading.Lock()

    def run() -> None:
        with turn("key", patience=60):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_process_holds_the_turn_until_it_ends(tmp_path):
    program = f"""
import platformdirs, sys
from pathlib import Path
platformdirs.user_cache_path = lambda *_, **__: Path({str(tmp_path)!r})
from pomlflow.tracking.turns import turn
with turn("key"):
    print("inside", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    got = threading.Event()
    try:
        assert other.stdout.readline() == "inside\n"

        def run() -> None:
            with turn("key", patience=60):
                got.set()

        waiting = threading.Thread(target=run)
        waiting.start()
        assert not got.wait(0.2)
        with turn("another"):
            pass
    finally:
        other.kill()
        other.communicate()
    waiting.join(60)
    assert got.is_set()


def test_whose_patience_ends_goes_ahead_and_takes_nobodys_turn():
    """Not even as it leaves: the first still has it then."""
    went = []
    with turn("key"):
        for _ in range(2):
            with turn("key", patience=0.05):
                went.append(turns._lock("key", patience=0))
    with turn("key"):
        went.append(turns._lock("key", patience=0))
    assert went == [None, None, None]


def test_without_a_place_for_files_nobody_waits(tmp_path):
    (tmp_path / "turns").write_text("a file where the folder would be")
    with turn("key"), turn("key", patience=3600):
        assert turns._lock("key", patience=3600) is None


def test_a_user_without_a_home_waits_for_nobody(monkeypatch):
    def homeless(*_, **__):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("platformdirs.user_cache_path", homeless)
    with turn("key"), turn("key", patience=3600):
        assert turns._lock("key", patience=3600) is None
