"""The Spark session: found or opened, checked, and what its failures are called.

A session of ours is quiet: what the JVM writes is kept from the terminal unless it is asked for.
What a user can mend travels from a task to the driver by an accumulator, not as an exception:
Spark would try the task again, four times, and fail with a stack trace of the JVM.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar, cast

from gdmix import errors
from gdmix.config import SparkConfig
from gdmix.errors import ConfigError, EngineError, GdmixError

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Iterable[Any]])

log = logging.getLogger("gdmix")

_LEAST_JAVA, _LEAST_SPARK = 17, 4
_NO_PYSPARK = "engine 'spark' needs PySpark, which is not installed: pip install 'gdmix[spark]'"
_NO_GDMIX = (
    "Spark: tasks run a Python that has no gdmix: set PYSPARK_PYTHON to one that has, "
    "or ship the environment; see docs/spark.md"
)
_MEND_JAVA = "install it (Debian: openjdk-17-jre-headless), or set JAVA_HOME"
_DEBUG = "--debug shows what Spark says"
_REGISTRATION = 120.0  # seconds that the first executor may take
_SETTLED = 3.0  # seconds without another one after which no more are waited for

# Settings that this engine needs or that any user of it would make.
_OWN = {
    "spark.ui.showConsoleProgress": "false",
    "spark.dynamicAllocation.enabled": "false",
    "spark.python.worker.reuse": "true",
    "spark.python.daemon.module": "gdmix.engines.spark.daemon",
    # Numbers compress badly, and are read from the disk for every step.
    "spark.rdd.compress": "false",
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
    # A task has one core: the threads of numeric libraries would fight over it.
    "spark.executorEnv.OMP_NUM_THREADS": "1",
    "spark.executorEnv.OPENBLAS_NUM_THREADS": "1",
    "spark.executorEnv.MKL_NUM_THREADS": "1",
}


@contextmanager
def opened(config: SparkConfig, name: str) -> Iterator[SparkSession]:
    """Give the program's session, or open one and stop it at the end.

    Parameters
    ----------
    name
        What the cluster calls the application, where the session is opened here.

    Raises
    ------
    ConfigError
        If PySpark or Java is missing or too old, or the session is of a kind that can't be used.
    EngineError
        If Spark does not start.
    """
    require_pyspark()
    session = _of_program()
    if session is not None:
        if config.master is not None or config.conf:
            log.warning("spark.master and spark.conf: left aside, there is a Spark session already")
        yield check_session(session)
        return
    session = _start(config, name)
    try:
        yield check_session(session)
    finally:
        _quietly_stopped(session)


def require_pyspark() -> None:
    """Check that PySpark is installed, and recent enough.

    Raises
    ------
    ConfigError
        If it isn't.
    """
    try:
        import pyspark
        import pyspark.sql  # noqa: F401
    except ImportError:
        raise ConfigError(_NO_PYSPARK) from None
    # What is used of it works with pandas 3, too.
    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
    if int(pyspark.__version__.partition(".")[0]) < _LEAST_SPARK:
        raise ConfigError(
            f"engine 'spark' needs PySpark {_LEAST_SPARK} or later, "
            f"this is {pyspark.__version__}: pip install 'gdmix[spark]'"
        )


def check_session(session: Any) -> SparkSession:
    """Return a session that this engine can work with.

    Raises
    ------
    ConfigError
        If it is none, is stopped, is one of Spark Connect, or allocates executors dynamically.
    """
    require_pyspark()
    from pyspark.sql import SparkSession

    if type(session).__module__.startswith("pyspark.sql.connect"):
        raise ConfigError(
            "a Spark Connect session has no RDDs and barrier stages, which engine 'spark' needs; "
            "give a classic session: one with master local[N], spark://HOST:7077, yarn or k8s://..."
        )
    if not isinstance(session, SparkSession):
        raise ConfigError(f"a {type(session).__name__} is no Spark session")
    context = session.sparkContext
    if context._jsc is None or context._jsc.sc().isStopped():
        raise ConfigError("the Spark session is stopped")
    if context.getConf().get("spark.dynamicAllocation.enabled", "false") == "true":
        raise ConfigError(
            "spark.dynamicAllocation.enabled: a fixed effect needs all its executors at once; "
            "set it to false, and spark.executor.instances"
        )
    if str(context.master).startswith("local"):
        _run_own_python(context)
    return session


def slots(session: SparkSession) -> int:
    """Return how many tasks run at once, which is what a barrier stage may have.

    Executors register one by one: the first call waits until there are some, and no more come.

    Raises
    ------
    EngineError
        If there is none after two minutes.
    """
    context = session.sparkContext
    application = str(context.applicationId)
    if application not in _slots:
        _slots[application] = _count_slots(context)
    return _slots[application]


_slots: dict[str, int] = {}  # by application


def _count_slots(context: SparkContext) -> int:
    scala: Any = context._jsc.sc()
    profile = scala.resourceProfileManager().defaultResourceProfile()
    if str(context.master).startswith("local"):
        return int(scala.maxNumConcurrentTasks(profile))
    wanted = _cores_asked_for(context)
    found, begin = 0, time.monotonic()
    changed = begin
    while True:
        now, count = time.monotonic(), int(scala.maxNumConcurrentTasks(profile))
        if count != found:
            found, changed = count, now
        if found and (found >= wanted if wanted else now - changed > _SETTLED):
            return found
        if now - begin > _REGISTRATION:
            break
        time.sleep(0.1)
    if found:
        log.warning("Spark: %s slots instead of the %s that were asked for", found, wanted)
        return found
    raise EngineError(
        f"{context.master}: no executor came within {_REGISTRATION:.0f} s; "
        "has a worker the memory and cores that spark.executor.memory and .cores ask for?"
    )


def _cores_asked_for(context: SparkContext) -> int:
    """Return the number of tasks at once that the settings ask for; 0 where they don't say."""
    conf = context.getConf()
    per_task = int(conf.get("spark.task.cpus", "1") or 1)
    most = conf.get("spark.cores.max")
    if most:
        return int(most) // per_task
    executors = conf.get("spark.executor.instances")
    return (
        int(executors) * (int(conf.get("spark.executor.cores", "1") or 1) // per_task)
        if executors
        else 0
    )


class _Accumulator(Protocol):
    value: list[tuple[int, bytes]]

    def add(self, term: list[tuple[int, bytes]]) -> None: ...


class TaskErrors:
    """What users can mend, brought from the tasks to the driver.

    Examples
    --------
    >>> errors = TaskErrors(session)                                        # doctest: +SKIP
    >>> counts = rows.mapPartitionsWithIndex(errors.guard(count))           # doctest: +SKIP
    >>> errors.run(lambda: counts.collect())                                # doctest: +SKIP
    """

    def __init__(self, session: SparkSession) -> None:
        from pyspark.accumulators import AddingAccumulatorParam

        zero: list[tuple[int, bytes]] = []
        self._found: _Accumulator = session.sparkContext.accumulator(
            zero, AddingAccumulatorParam(zero)
        )

    def guard(self, function: Function) -> Function:
        """Return a function of a partition that ends it where a `GdmixError` is raised.

        The error is noted, `run` raises it. What it has yielded before remains.
        """
        found = self._found

        @wraps(function)
        def guarded(*arguments: Any) -> Iterator[Any]:
            _settle_in()
            _at_work.add(guarded)
            try:
                yield from function(*arguments)
            except GdmixError as error:
                found.add([(_partition(), pickle.dumps(error))])
            finally:
                _at_work.discard(guarded)

        return cast("Function", guarded)

    def run(self, action: Callable[[], T]) -> T:
        """Return what an action returns, or raise what its tasks noted.

        Raises
        ------
        GdmixError
            The one of the first partition that has one, as it was raised there. Also where the
            action failed in consequence.
        EngineError
            If it failed for any other reason.
        """
        try:
            with task_failures():
                result = action()
        except EngineError:
            self._check()
            raise
        self._check()
        return result

    def _check(self) -> None:
        found, self._found.value = self._found.value, []
        if found:
            error = pickle.loads(min(found, key=lambda entry: entry[0])[1])
            assert isinstance(error, GdmixError)
            raise error


@contextmanager
def task_failures() -> Iterator[None]:
    """Turn what Spark raises into an `EngineError` of one line."""
    from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError
    from pyspark.errors import PySparkException

    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        raise _named(str(error)) from error
    except (Py4JNetworkError, Py4JError, ConnectionError) as error:
        raise EngineError(
            f"Spark's driver is gone, out of memory? see spark.driver.memory; {_DEBUG}"
        ) from error


_TRACEBACK = "Traceback (most recent call last):"
_OURS = re.compile(r"gdmix\.errors\.(\w+): (.*)", re.DOTALL)
_JAVA_CLASS = re.compile(r"^(Exception in thread \S+ )?(?:[a-z]\w*\.)+[A-Z]\w*: ")
_LOST_TASK = re.compile(r"Lost task \S+ in stage \S+ \(TID \d+\) \((\S+) executor (\S+)\): ")


def _named(text: str) -> GdmixError:
    """Return the error that a failure of Spark stands for, given all that Spark says of it."""
    text = text.partition("\n\tat ")[0]
    _, traceback, rest = text.rpartition(_TRACEBACK)
    if traceback:
        message = "\n".join(
            line for line in rest.strip("\n").splitlines() if not line.startswith("  ")
        )
        ours = _OURS.match(message)
        if ours:  # one that no guard has met
            return getattr(errors, ours[1], EngineError)(ours[2].strip())
        if "No module named 'gdmix'" in message:
            return EngineError(_NO_GDMIX)
        return EngineError(f"Spark: a task failed: {_one_line(message)}; {_DEBUG}")
    text = re.sub(r"^An error occurred while calling \S+\n: ", "", text)
    text = text.rpartition("most recent failure: ")[2]
    text = _JAVA_CLASS.sub("", text)
    lost = _LOST_TASK.match(text)
    if lost:
        rest = _JAVA_CLASS.sub("", text[lost.end() :])
        text = f"a task failed on {lost[1]}, executor {lost[2]}: {rest}"
    return EngineError(f"Spark: {_one_line(text)}; {_DEBUG}")


def _one_line(text: str) -> str:
    text = " ".join(text.split("\n\n")[0].split()).rstrip(" .:;")
    return text if len(text) <= 300 else text[:297] + "..."


def _partition() -> int:
    from pyspark import TaskContext

    context = TaskContext.get()
    return context.partitionId() if context is not None else 0


@cache
def _settle_in() -> None:
    """Make a worker process ready for tasks, once."""
    # Messages are the driver's: here they would go to a terminal, once for each task.
    log.propagate = False
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    gc.callbacks.append(_keep)


def _keep(phase: str, info: Mapping[str, int]) -> None:
    """Leave what outlives a task, modules and kernels, out of further garbage collections.

    PySpark collects after every task, which takes longer than many a task does.
    """
    if phase == "stop" and info["generation"] == 2 and not _at_work:
        gc.freeze()


_at_work: set[Callable[..., Any]] = set()  # what this worker process does now


def _of_program() -> SparkSession | None:
    """Return the session that the program has, whoever has opened it."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    active: Any = SparkSession.getActiveSession()
    if active is None and SparkContext._active_spark_context is not None:
        active = SparkSession(SparkContext._active_spark_context)
    return active  # type: ignore[no-any-return]


def _start(config: SparkConfig, name: str) -> SparkSession:
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    remote = next(
        (v for v in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED") if v in os.environ), ""
    )
    if remote:
        raise ConfigError(
            f"{remote} is set, which asks for Spark Connect; engine 'spark' needs a classic "
            "session: unset it, and name a master"
        )
    settings = {**_OWN, "spark.app.name": name}
    if "NUMBA_CACHE_DIR" in os.environ:
        settings["spark.executorEnv.NUMBA_CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"]
    settings |= config.conf
    if config.master is not None:
        settings["spark.master"] = config.master
    gateway, output = None, None
    if SparkContext._gateway is None and "PYSPARK_GATEWAY_PORT" not in os.environ:
        check_java()
        conf = SparkConf(loadDefaults=False)
        for key, value in settings.items():
            conf.set(key, value)
        output = _Output(shown=config.log_level not in ("OFF", "ERROR"))
        try:
            gateway = launch_gateway(conf, output.popen)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise EngineError(f"Spark does not start: {output.reason()}; {_DEBUG}") from error
    try:
        with task_failures():
            session = SparkSession(_context(settings, gateway))
    except EngineError as error:
        reason = str(error).removeprefix("Spark: ")
        if "stopped SparkContext" in reason:  # what is said of a master that is out of reach
            reason = f"{config.master or 'the master'} does not answer; {_DEBUG}"
        raise EngineError(f"Spark does not start: {reason}") from error
    context = session.sparkContext
    _set_log_level(context, config.log_level)
    _run_own_python(context)
    return session


def _run_own_python(context: SparkContext) -> None:
    """Let tasks run this Python, which has this package, instead of any `python3`."""
    if "PYSPARK_PYTHON" not in os.environ:
        context.pythonExec = context.getConf().get("spark.pyspark.python") or sys.executable


def _set_log_level(context: SparkContext, level: str) -> None:
    context.setLogLevel(level)
    # A JVM that Python has started takes itself for a shell, and shells show warnings at most.
    with suppress(Exception):
        own = getattr(context._jvm, "org.apache.spark.internal.Logging$")
        getattr(getattr(own, "MODULE$"), "sparkShellThresholdLevel_$eq")(None)


def _context(settings: dict[str, str], gateway: Any) -> SparkContext:
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized(gateway=gateway)
    conf = SparkConf(_jvm=SparkContext._jvm)
    own = {key: value for key, value in settings.items() if key in _OWN}
    for key, value in settings.items():
        if key in own and conf.contains(key):
            continue  # said by spark-submit or spark-defaults.conf
        conf.set(key, value)
    return SparkContext(conf=conf)


class _Output:
    """Where the JVM writes: to the terminal, or out of sight."""

    def __init__(self, shown: bool) -> None:
        self._file: IO[bytes] | None = None if shown else tempfile.TemporaryFile()  # noqa: SIM115

    @property
    def popen(self) -> dict[str, Any]:
        """Return arguments of `subprocess.Popen`."""
        return {} if self._file is None else {"stdout": self._file, "stderr": self._file}

    def reason(self) -> str:
        """Return the line that tells why it ended."""
        if self._file is None:
            return "see above"
        self._file.seek(0)
        lines = self._file.read().decode(errors="replace").splitlines()
        telling = [
            line for line in lines if re.search(r"error|exception|unrecogni|invalid", line, re.I)
        ]
        return _one_line(_JAVA_CLASS.sub("", next(iter(telling or lines[-1:]), "Java has ended")))


def check_java() -> None:
    """Check that there is a Java that Spark runs on.

    Raises
    ------
    ConfigError
        If there is none, or it is too old.
    """
    java = _java()
    if java is None:
        raise ConfigError(
            f"Spark needs Java {_LEAST_JAVA} or later, and there is none: {_MEND_JAVA}"
        )
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60)
        said = done.stderr + done.stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None:
        raise ConfigError(f"{java}: is no Java that runs: {_one_line(said)}; {_MEND_JAVA}")
    if int(version[1]) < _LEAST_JAVA:
        raise ConfigError(
            f"Spark needs Java {_LEAST_JAVA} or later, {java} is Java {version[1]}: {_MEND_JAVA}"
        )


def _java() -> str | None:
    """Return the program that Spark would start."""
    home = os.environ.get("JAVA_HOME")
    return str(Path(home) / "bin" / "java") if home else shutil.which("java")


def _quietly_stopped(session: SparkSession) -> None:
    """Stop it; where its JVM is gone there is nothing left to stop."""
    try:
        session.stop()
    except Exception as error:
        log.debug("Spark session could not be stopped: %s", error)
