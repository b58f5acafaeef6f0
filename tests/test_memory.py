"""Arrays in scratch files: the same arrays, within the limit, and nothing left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gdmix import memory
from gdmix.errors import OutputError

MB = 1 << 20


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Give 10 MB to arrays in memory; what is beyond lies in files."""
    with memory.limited(int(10 * MB / 0.3), tmp_path / "scratch"):
        yield tmp_path / "scratch"


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def test_without_a_limit_it_is_numpy() -> None:
    assert memory.limit_bytes() is None
    array = memory.zeros(10, np.int32)
    assert type(array.base) is type(None)
    assert array.dtype == np.int32
    stack = memory.Stack(np.float32)
    stack.append(np.arange(3.0))
    assert stack.finish().tolist() == [0.0, 1.0, 2.0]
    assert stack.finish().size == 0
    assert memory.recall("nothing") is None
    memory.keep("nothing", array)


def test_arrays_lie_in_memory_while_they_fit(scratch: Path) -> None:
    small = [memory.zeros(MB, np.uint8) for _ in range(9)]
    assert not scratch.exists()
    beyond = memory.zeros(2 * MB, np.uint8)
    assert len(files(scratch)) == 1
    tiny = memory.zeros(1000, np.uint8)
    assert len(files(scratch)) == 1
    del small[0]
    again = memory.empty(MB, np.uint8)  # there is room once more
    assert len(files(scratch)) == 1
    del beyond, tiny, again
    gc.collect()
    assert files(scratch) == []


def test_mapped_arrays_are_arrays(scratch: Path) -> None:
    values = np.arange(4 * MB, dtype=np.float64)
    copied = memory.copy(values)
    assert len(files(scratch)) == 1
    np.testing.assert_array_equal(copied, values)
    assert copied.flags.writeable and copied.flags.aligned and copied.flags.c_contiguous
    assert memory.full(4 * MB, 2.5).sum() == 10 * MB
    assert not memory.zeros(4 * MB).any()
    counts = np.full(4 * MB, 3, np.int32)
    assert memory.pointers(counts)[-1] == 12 * MB
    part = copied[5:9]
    del copied
    gc.collect()
    assert part.tolist() == [5.0, 6.0, 7.0, 8.0]  # a view keeps what it is a view of


def test_a_stack_goes_to_a_file_when_it_grows(scratch: Path) -> None:
    for pieces in (3, 40):
        stack = memory.Stack(np.int64)
        for k in range(pieces):
            stack.append(np.full(MB // 8, k))
        assert stack.size == pieces * MB // 8
        array = stack.finish()
        assert len(files(scratch)) == (pieces == 40)
        np.testing.assert_array_equal(array, np.repeat(np.arange(pieces), MB // 8))
        array[0] = 7
        assert array[0] == 7


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_resident_memory_stays_near_the_limit(tmp_path: Path) -> None:
    """Go over 1.2 GB of mapped arrays with 300 MB, in a process of its own."""
    program = """
import sys, time
from pathlib import Path
import numpy as np
from gdmix import memory
before = memory.resident_bytes()
limit = before + 300_000_000
with memory.limited(limit, Path(sys.argv[1])):
    arrays = [memory.zeros(50_000_000, np.float64) for _ in range(3)]
    for round in range(3):
        for array in arrays:
            for first in range(0, array.size, 1_000_000):
                array[first : first + 1_000_000] += 1.0
                assert array[first] == round + 1.0
                time.sleep(0.001)  # a busy machine lets the watcher wait
    # Not ru_maxrss: that is also of the process that started this one.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(status["VmHWM"].split()[0]) * 1024
    print((peak - before) / 300e6)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 2.5, "1.2 GB would be 4"


def test_a_full_disk_is_one_line(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError) as caught:
        memory.zeros(4 * MB)
    assert str(caught.value) == (
        f"{scratch}: rows and models beyond memory_limit can't be kept there: No space left on "
        "device; make room, name another folder as `scratch`, or raise memory_limit"
    )


def test_a_scratch_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with memory.limited(MB, tmp_path / "file"), pytest.raises(OutputError, match="kept there"):
        memory.zeros(4 * MB)


def test_what_is_kept_is_recalled(tmp_path: Path) -> None:
    limit, folder = int(10 * MB / 0.3), tmp_path / "scratch"
    big, small = np.arange(2.0 * MB), np.arange(5)
    text = pa.array(["a", None, "b"], pa.large_string())
    with memory.limited(limit, folder):
        mapped = memory.copy(big)
        value = {"whole": mapped, "view": mapped[10:20], "small": small, "text": text, "n": 3}
        memory.keep("settings", value)
        del mapped, value
        gc.collect()
    assert memory.has_kept(folder)
    with memory.limited(limit, folder):
        recalled = memory.recall("settings")
        np.testing.assert_array_equal(recalled["whole"], big)
        np.testing.assert_array_equal(recalled["view"], big[10:20])
        np.testing.assert_array_equal(recalled["small"], small)
        assert recalled["text"].equals(text)
        assert recalled["n"] == 3
        recalled["whole"][0] = 5.0
        recalled["small"][0] = 5
    with memory.limited(limit, folder):
        assert memory.recall("other settings") is None
        assert files(folder) == []


def test_nothing_is_kept_of_what_lies_in_memory(tmp_path: Path) -> None:
    with memory.limited(10**9, tmp_path / "scratch"):
        memory.keep("settings", np.zeros(MB))
    assert files(tmp_path) == []


def test_a_limit_inside_a_limit_changes_nothing(scratch: Path, tmp_path: Path) -> None:
    def other() -> None:
        with memory.limited(1, tmp_path / "other"):
            time.sleep(0.05)

    thread = threading.Thread(target=other)
    thread.start()
    with memory.limited(1, tmp_path / "other"):
        array = memory.zeros(4 * MB)
    thread.join()
    assert files(scratch) and not (tmp_path / "other").exists()
    assert memory.limit_bytes() == int(10 * MB / 0.3)
    del array


def test_default_limit() -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.default_limit() <= 0.6 * whole
