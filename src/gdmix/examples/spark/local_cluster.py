#!/usr/bin/env python3
"""A Spark cluster of processes of this machine: a master and workers, on the loopback device.

    python local_cluster.py start --workers 2 --cores 1 --memory 2g
    gdmix train run.yaml --engine spark --set spark.master=spark://127.0.0.1:PORT
    python local_cluster.py stop

It needs what `pip install 'gdmix[spark]'` brings and Java 17 or later. Everything that the cluster
writes, the numbers of its processes too, is in one folder (``--folder``, `.spark-cluster`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

_MASTER = "org.apache.spark.deploy.master.Master"
_WORKER = "org.apache.spark.deploy.worker.Worker"
_EXECUTOR = "CoarseGrainedExecutorBackend"
_URL = re.compile(r"Starting Spark master at (spark://\S+)")
_PATIENCE = 120.0  # seconds for a process to come up
_GRACE = 15.0  # seconds for one to end by itself


class LocalCluster:
    """A master and workers.

    Parameters
    ----------
    folder
        For all that the processes write.
    workers
        How many; each runs one executor of an application.
    cores, memory
        Of each worker.

    Attributes
    ----------
    url
        What `spark.master` is to be, once it has started.
    """

    def __init__(self, folder: Path, workers: int = 2, cores: int = 1, memory: str = "2g") -> None:
        self.folder, self.url = folder.absolute(), ""
        self._workers, self._cores, self._memory = workers, cores, memory
        self._pids: list[int] = []

    def start(self) -> str:
        """Start all processes; returns the URL once all workers are known to the master."""
        if self._record.exists():
            raise SystemExit(f"{self.folder}: holds a cluster; stop it first")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._spawn("master", _MASTER, "--host", "127.0.0.1", "--port", "0")
            self.url = self._wait("master", _URL, 1)[0]
            for k in range(self._workers):
                self._spawn(
                    f"worker-{k}",
                    _WORKER,
                    *("--host", "127.0.0.1", "--port", "0", "--cores", str(self._cores)),
                    *("--memory", self._memory, "--work-dir", str(self.folder / f"work-{k}")),
                    self.url,
                )
            self._wait("master", re.compile(r"Registering worker (\S+)"), self._workers)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """End all processes, executors too, and remove the folder."""
        pids = self._pids or self._recorded()
        executors = _children(pids)
        for pid in reversed(pids):  # workers first: they end their executors
            _signal(pid, signal.SIGTERM)
        end = time.monotonic() + _GRACE
        everyone = [*pids, *executors]
        while any(_is_alive(pid) for pid in everyone) and time.monotonic() < end:
            time.sleep(0.1)
        for pid in everyone:
            if _is_alive(pid):
                _signal(pid, signal.SIGKILL)
        self._pids = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def executors(self) -> list[int]:
        """Return the processes that run tasks now: those of the applications' executors."""
        return _children(self._pids)

    def log(self, name: str) -> str:
        """Return what ``master`` or ``worker-0`` has written."""
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()

    @property
    def _record(self) -> Path:
        return self.folder / "processes.json"

    def _recorded(self) -> list[int]:
        return json.loads(self._record.read_text()) if self._record.exists() else []

    def _spawn(self, name: str, main: str, *arguments: str) -> None:
        home = _spark_home()
        environment = {
            **os.environ,
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(self.folder / "scratch"),
            "SPARK_DAEMON_MEMORY": "512m",
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [home / "bin" / "spark-class", main, "--webui-port", "0", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        self._pids.append(process.pid)
        self._record.write_text(json.dumps(self._pids))

    def _wait(self, name: str, pattern: re.Pattern[str], count: int) -> list[str]:
        """Wait until a log says something so many times."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            found = pattern.findall(self.log(name))
            if len(found) >= count:
                return found
            if not all(_is_alive(pid) for pid in self._pids):
                break
            time.sleep(0.1)
        logs = "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))
        raise SystemExit(f"the cluster does not start:\n{logs}")


def _spark_home() -> Path:
    if "SPARK_HOME" in os.environ:
        return Path(os.environ["SPARK_HOME"])
    found = importlib.util.find_spec("pyspark")
    if found is None or found.origin is None:
        raise SystemExit("needs PySpark: pip install 'gdmix[spark]'")
    return Path(found.origin).parent


def _children(pids: list[int]) -> list[int]:
    """Return the executors that these processes have started."""
    listing = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in listing.stdout.splitlines()]
    return [int(r[0]) for r in rows if len(r) == 3 and int(r[1]) in pids and _EXECUTOR in r[2]]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_alive(pid: int) -> bool:
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    except ChildProcessError:
        pass  # of another process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """Start or stop a cluster."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["start", "stop"])
    parser.add_argument("--folder", type=Path, default=Path(".spark-cluster"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cores", type=int, default=1, help="of each worker")
    parser.add_argument("--memory", default="2g", help="of each worker")
    given = parser.parse_args()
    cluster = LocalCluster(given.folder, given.workers, given.cores, given.memory)
    if given.command == "stop":
        cluster.stop()
    else:
        print(cluster.start())


if __name__ == "__main__":
    main()
