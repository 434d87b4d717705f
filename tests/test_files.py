"""Files are written whole: whatever stops the writer, the old content or the new one is there."""

import os
import signal
import time

import pytest

from nas.files import write_whole


def test_kill_9_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    texts = {letter * 2_000_000 for letter in "ab"}
    for pause in (0.002, 0.005, 0.01, 0.02, 0.04):
        child = os.fork()
        if child == 0:
            while True:
                for text in texts:
                    write_whole(path, text)
        while not path.exists():
            time.sleep(0.001)
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert path.read_text() in texts


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "front.csv"
    write_whole(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new and longer")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
