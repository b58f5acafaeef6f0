"""Where large arrays live: in memory while they fit, beyond it in scratch files.

Inside `limited`, an array that is asked for here lies in memory as long as these arrays together
take a share of the limit. Beyond it an array is a file that is mapped into memory. The kernels
see no difference. The system brings a mapped page in when it is touched; a watcher unmaps them
all when the process comes near its limit. Unmapped pages stay in the system's page cache as long
as that has room, so that going over them again costs little on a machine with more memory.

Outside `limited` all of this is plain numpy.
"""

from __future__ import annotations

import mmap
import os
import pickle
import secrets
import shutil
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gdmix.errors import OutputError

_SMALLEST_MAPPED = 1 << 20
_HELD_SHARE = 0.3  # of the limit: arrays in memory
_RESIDENT_SHARE = 0.8  # of the limit: where mapped pages are let go
_WATCH_SECONDS = 0.02
_WATCH_CLOSELY_SECONDS = 0.002  # pages that the system has can be mapped at many GB a second
_KEPT = "kept.pickle"
_ALIGNMENT = 64


class _Scratch:
    """The arrays of one `limited` block."""

    def __init__(self, limit: int, folder: Path) -> None:
        self.limit, self.folder = limit, folder
        self._held = 0
        self._mapped: dict[int, tuple[int, int, Path]] = {}  # number -> address, size, file
        self._numbers = count()
        self._mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._kept: set[Path] = set()
        # Arrays end at any moment, also while this thread holds the lock.
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def in_use(self) -> bool:
        """Whether any array is in a file."""
        return bool(self._mapped)

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes may lie in memory."""
        return self._held + size <= _HELD_SHARE * self.limit

    def hold(self, array: NDArray[Any]) -> NDArray[Any]:
        """Count an array in memory as long as it lives."""
        self._count(array.nbytes)
        weakref.finalize(array, self._count, -array.nbytes).atexit = False
        return array

    def _count(self, size: int) -> None:
        with self._lock:
            self._held += size

    def map_new(self, n: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array of zeros in a file of its own."""
        size = n * dtype.itemsize
        with self.new_file() as file, self.errors():
            # Reserved now: a full disk is an error here, not a fatal signal at a later write.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                os.ftruncate(file.fileno(), size)
            return np.frombuffer(self.map_file(Path(file.name)), dtype, n)

    def new_file(self) -> IO[bytes]:
        """Open a new file."""
        with self.errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            return open(self.folder / secrets.token_hex(8), "x+b")

    def map_file(self, path: Path) -> mmap.mmap:
        """Map a file, which is removed when nothing refers to the mapping any more."""
        with self.errors(), path.open("r+b") as file:
            mapping = mmap.mmap(file.fileno(), 0)
        address = np.frombuffer(mapping, np.uint8, 1).ctypes.data
        with self._lock:
            # The address is no key: it may be another mapping's before this one is forgotten.
            number = next(self._numbers)
            self._mapped[number] = (address, len(mapping), path)
            self._mappings.add(mapping)
            self._watch_from_now()
        weakref.finalize(mapping, self._forget, number).atexit = False
        return mapping

    def _forget(self, number: int) -> None:
        with self._lock:
            _, _, path = self._mapped.pop(number)
            if path not in self._kept:
                path.unlink(missing_ok=True)

    def keep(self, name: str, value: object) -> None:
        """Write a value down; the files its arrays are in then stay."""
        places: list[tuple[str, int, int]] = []
        blob = self.new_file()

        def out_of_band(buffer: pickle.PickleBuffer) -> None:
            raw = buffer.raw()
            address = np.frombuffer(raw, np.uint8).ctypes.data if raw.nbytes else 0
            for start, size, path in self._mapped.values():
                if start <= address < start + size:
                    places.append((path.name, address - start, raw.nbytes))
                    self._kept.add(path)
                    return
            blob.write(b"\0" * (-blob.tell() % _ALIGNMENT))
            places.append((Path(blob.name).name, blob.tell(), raw.nbytes))
            blob.write(raw)

        with self._lock, self.errors():
            with blob:
                body = pickle.dumps(value, protocol=5, buffer_callback=out_of_band)
                blob.write(b"\0")  # an empty file can't be mapped
            partial = self.folder / f"{_KEPT}.partial"
            partial.write_bytes(pickle.dumps((name, places, body)))
            partial.replace(self.folder / _KEPT)

    def recall(self, name: str) -> Any:
        """Return what `keep` wrote down under this name; otherwise clear the folder."""
        try:
            known, places, body = pickle.loads((self.folder / _KEPT).read_bytes())
        except FileNotFoundError:
            known = None
        if known != name:
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        self._kept.update(self.folder / file for file, _, _ in places)
        views = {file: memoryview(self.map_file(self.folder / file)) for file, _, _ in places}
        return pickle.loads(body, buffers=[views[f][a : a + n] for f, a, n in places])

    def close(self) -> None:
        """Stop watching; arrays that live on stay as they are."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the system refuses into an error that a user can mend."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"{self.folder}: rows and models beyond memory_limit can't be kept there: "
                f"{reason}; make room, name another folder as `scratch`, or raise memory_limit"
            ) from None

    def _watch_from_now(self) -> None:
        can_watch = resident_bytes() is not None and hasattr(mmap, "MADV_DONTNEED")
        if self._watcher is None and can_watch:
            self._watcher = threading.Thread(target=self._watch, name="gdmix-memory", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        floor = 0.0
        pause = _WATCH_SECONDS
        while not self._stop.wait(pause):
            resident = resident_bytes() or 0
            near = resident > 0.5 * _RESIDENT_SHARE * self.limit
            pause = _WATCH_CLOSELY_SECONDS if near else _WATCH_SECONDS
            # Memory that is not ours to unmap must not make this a busy loop.
            if resident > max(_RESIDENT_SHARE * self.limit, floor + 0.02 * self.limit):
                with self._lock:
                    mappings = list(self._mappings)
                while mappings:  # emptied: a mapping that is held here could not end
                    mappings.pop().madvise(mmap.MADV_DONTNEED)
                floor = resident_bytes() or 0


_current: _Scratch | None = None


@contextmanager
def limited(limit: int | None, folder: Path) -> Iterator[None]:
    """Keep large arrays near `limit` bytes of memory, the rest in files in `folder`.

    There is one limit per process: a block inside another, in whatever thread, changes nothing.

    Parameters
    ----------
    limit
        Bytes; None: a share of what the system lets this process have.
    folder
        Made when it is first needed. What `keep` wrote there stays if the process is killed;
        the caller removes the folder.
    """
    global _current
    if _current is not None:
        yield
        return
    _current = _Scratch(limit or default_limit(), folder)
    try:
        yield
    finally:
        _current.close()
        _current = None


def empty(n: int, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """Return an array of n entries, not initialised.

    Raises
    ------
    OutputError
        If it needs a scratch file and there is no room for one.
    """
    return _new(n, dtype, np.empty)


def zeros(n: int, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """Return an array of n zeros; raises as `empty` does."""
    return _new(n, dtype, np.zeros)  # a new file reads as zeros too


def full(n: int, value: float, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """Return an array of n equal entries; raises as `empty` does."""
    result = empty(n, dtype)
    result.fill(value)
    return result


def copy(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy; raises as `empty` does."""
    result = empty(array.size, array.dtype)
    np.copyto(result, array)
    return result


def concatenate(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """Return arrays of one type end to end; raises as `empty` does."""
    result = empty(sum(a.size for a in arrays), arrays[0].dtype)
    np.concatenate(arrays, out=result)
    return result


def pointers(counts: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return ``[0, counts[0], counts[0] + counts[1], ...]``; raises as `empty` does."""
    result = zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    return result


def _new(n: int, dtype: DTypeLike, make: Any) -> NDArray[Any]:
    kind = np.dtype(dtype)
    size = n * kind.itemsize
    if _current is None or size < _SMALLEST_MAPPED:
        return np.asarray(make(n, kind))
    return _current.hold(make(n, kind)) if _current.fits(size) else _current.map_new(n, kind)


class Stack:
    """An array that grows at its end, in memory while it fits.

    Parameters
    ----------
    dtype
        Of its entries.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.size = 0
        self._dtype = np.dtype(dtype)
        self._scratch = _current
        self._parts: list[NDArray[Any]] = []
        self._file: IO[bytes] | None = None

    def append(self, part: NDArray[Any]) -> None:
        """Add entries at the end.

        Raises
        ------
        OutputError
            If it needs a scratch file and there is no room for it.
        """
        self.size += part.size
        part = np.array(part, self._dtype)  # a copy: a view would keep all it is a view of
        scratch = self._scratch
        self._parts.append(part if scratch is None else scratch.hold(part))
        # Once more: its parts and the whole are there at the same time.
        if scratch is not None and not scratch.fits(self.size * self._dtype.itemsize):
            with scratch.errors():
                self._file = self._file or scratch.new_file()
                for waiting in self._parts:
                    self._file.write(waiting.data)
            self._parts = []

    def finish(self) -> NDArray[Any]:
        """Return the array; the stack is then empty."""
        parts, file, size = self._parts, self._file, self.size
        self._parts, self._file, self.size = [], None, 0
        if file is None:
            return concatenate(parts) if parts else np.empty(0, self._dtype)
        assert self._scratch is not None
        with self._scratch.errors(), file:
            for part in parts:
                file.write(part.data)
        return np.frombuffer(self._scratch.map_file(Path(file.name)), self._dtype, size)


def limit_bytes() -> int | None:
    """Return the limit that holds here, in bytes; None without one."""
    return None if _current is None else _current.limit


def keep(name: str, value: object) -> None:
    """Write a value down for `recall`, if any of its arrays may be in files.

    Parameters
    ----------
    name
        Of all that the value depends on: another name is another value.
    """
    if _current is not None and _current.in_use:
        _current.keep(name, value)


def recall(name: str) -> Any:
    """Return what an earlier process kept under this name in the same folder, or None."""
    return None if _current is None else _current.recall(name)


def has_kept(folder: Path) -> bool:
    """Whether `recall` would find anything in a folder."""
    return (folder / _KEPT).is_file()


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None where the system doesn't tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return None


def default_limit() -> int:
    """Return six tenths of the memory that the machine, or the control group, has."""
    known = []
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            known.append(int(text))
    known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return int(0.6 * min(known))
