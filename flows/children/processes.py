"""Children of a run: their environment, their output, and their end.

Every child leads a process group of its own, so that all of its descendants end together. Each is
written down in `.infalign/run/` while it lives: a run that was killed leaves the notes, and the
next one ends what is still alive.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import getpass
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from infalign.processes import warm

Tell = Callable[[str], None]  # says one line to whoever watches
RETRIES = 3  # of a task of Prefect's that something outside broke
RETRY_SECONDS: list[float] = [2, 10, 30]
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
GRACE_SECONDS = 2.0  # between SIGINT and SIGKILL
PROGRESS_SECONDS = 10.0  # between two progress lines that are passed on
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_KEY|ACCESS_KEY|ACCOUNT_KEY|PRIVATE_KEY"
    r"|AUTH_STRING|CONNECTION_STRING",
    re.I,
)
_URL_PASSWORD = re.compile(r"(\w[\w+.-]*://[^\s/:@]*:)[^\s/@]+@")
_LINE_END = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)  # the last \r may be half of a \r\n


@dataclass(frozen=True)
class Finished:
    """How a child ended: its exit status (negative: a signal) and its last lines."""

    returncode: int
    lines: tuple[str, ...]


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: quiet, unbuffered, this Python first on PATH."""
    here = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return {
        **os.environ,
        **QUIET,
        "PYTHONUNBUFFERED": "1",
        "PATH": path if path.split(os.pathsep)[0] == here else here + os.pathsep + path,
        **(extra or {}),
    }


def user() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def redact(text: str) -> str:
    """The text without the values of secret environment variables and passwords in addresses."""
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET_NAME.search(name):
            sent = base64.b64encode(os.fsencode(value)).decode()  # in a header of HTTP
            text = text.replace(value, "***").replace(sent, "***")
    return _URL_PASSWORD.sub(r"\1***@", text)


async def run_child(
    command: Sequence[str],
    root: Path,
    environment: Mapping[str, str],
    tell: Tell,
    keep_open: Sequence[int] = (),
) -> Finished:
    """Run a command to its end, passing on its lines; cancelled, it takes its group with it.

    Args:
        command: program and arguments.
        root: the folder it runs in.
        environment: all of its environment.
        tell: called with each line, redacted.
        keep_open: file descriptors that it inherits (locks that outlive this process).
    """
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=root,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        pass_fds=tuple(keep_open),
    )
    assert child.stdout is not None
    last: list[str] = []
    with noted(root, child.pid, group=True):
        try:
            async for line in _lines(child.stdout):
                last = [*last[-39:], line]
                tell(line)
            returncode = await child.wait()
        finally:
            end_group(child.pid)
            with contextlib.suppress(TimeoutError):  # reap it, and close the pipe
                await asyncio.wait_for(child.communicate(), 5)
    return Finished(returncode, tuple(last))


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of a stream; of progress that overwrites itself (\\r), one every few seconds."""
    rest, shown = b"", 0.0
    while chunk := await stream.read(65536):
        rest += chunk
        while match := _LINE_END.search(rest):
            text = redact(rest[: match.start()].decode(errors="replace").rstrip())
            progress = match.group() == b"\r"
            rest = rest[match.end() :]
            if text and (not progress or time.monotonic() - shown >= PROGRESS_SECONDS):
                shown = time.monotonic() if progress else shown
                yield text
    if rest.strip():
        yield redact(rest.decode(errors="replace").strip())


@contextlib.contextmanager
def warm_process(root: Path, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """What stages need in their environment to be forks of one process (`processes.warm`).

    Args:
        root: the project's folder.
        environment: of that process: what libraries read as they are imported.
    """
    if not warm.is_possible():
        yield {}
        return
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="infalign-"))
            address = str(Path(folder) / "warm")  # not below the root: a socket's path is short
            log = stack.enter_context(open(root / ".infalign" / "warm.log", "wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "infalign.processes.warm", address],
                cwd=root,
                env=dict(environment),
                stdin=subprocess.PIPE,  # at whose end it ends
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError:  # stages are slower without it, that is all
            yield {}
            return
        stack.enter_context(process)
        stack.callback(process.kill)
        stack.enter_context(noted(root, process.pid, group=True))
        yield {warm.ADDRESS: address}


def end_group(group: int) -> None:
    """End a process group: an interrupt first, a kill after a moment of grace."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGINT)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and _alive(group):
            time.sleep(0.02)
        os.killpg(group, signal.SIGKILL)


def _alive(group: int) -> bool:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def end_tree(pid: int, grace_seconds: float = 20.0) -> None:
    """End a process and all that descends from it, whatever sessions they made for themselves.

    Everyone is asked at once; those that are still there after a while are killed. Descendants
    that appear meanwhile are taken along.
    """
    known: dict[int, psutil.Process] = {}
    deadline = time.monotonic() + grace_seconds
    with contextlib.suppress(psutil.NoSuchProcess):
        known[pid] = psutil.Process(pid)
    asked: set[int] = set()
    while living := _living(known):
        late = time.monotonic() > deadline
        for process in living:
            if late or process.pid not in asked:
                asked.add(process.pid)
                with contextlib.suppress(psutil.Error):
                    process.kill() if late else process.terminate()
        time.sleep(0.05)


def _living(known: dict[int, psutil.Process]) -> list[psutil.Process]:
    """Those that are alive of the known processes and their descendants, which become known."""
    for process in list(known.values()):
        with contextlib.suppress(psutil.Error):
            for child in process.children(recursive=True):
                known.setdefault(child.pid, child)
    found = []
    for process in known.values():
        with contextlib.suppress(psutil.Error):
            # A child of ours that ended stays a zombie until someone reaps it.
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def born(pid: int) -> str | float:
    """What tells a process from all others that had or will have its number.

    Its start in the kernel's clock, of this boot: the time of day may be set meanwhile. Where the
    kernel does not say: seconds of the epoch.

    Raises:
        psutil.NoSuchProcess: where there is none.
    """
    process = psutil.Process(pid)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return f"{boot} {words.rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return float(process.create_time())


def is_same(pid: int, started: str | float) -> bool:
    """Whether the process of a number is still the one that `born` spoke of.

    Raises:
        psutil.NoSuchProcess: where there is none.
    """
    if isinstance(started, str):
        return born(pid) == started
    return abs(psutil.Process(pid).create_time() - started) < 1


@contextlib.contextmanager
def noted(root: Path, pid: int, group: bool) -> Iterator[None]:
    """Keep a note of a child while it lives."""
    folder = root / ".infalign" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f"{pid}.json"
    with contextlib.suppress(psutil.NoSuchProcess):
        told = {"pid": pid, "started": born(pid), "group": group, "owner": os.getpid()}
        note.write_text(json.dumps(told))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def end_leftovers(root: Path) -> int:
    """End the children of a run that was killed; how many there were. Hold the run's lock."""
    ended = 0
    for note in sorted((root / ".infalign" / "run").glob("*.json")):
        with contextlib.suppress(ValueError, KeyError, psutil.Error):
            told = json.loads(note.read_text())
            if told["owner"] == os.getpid():
                continue
            # A leader that is gone may leave its group behind; a pid that was given out again
            # belongs to someone else.
            again = psutil.pid_exists(told["pid"]) and not is_same(told["pid"], told["started"])
            if not again and told["group"] and _alive(told["pid"]):
                end_group(told["pid"])
                ended += 1
            elif not again and not told["group"] and psutil.pid_exists(told["pid"]):
                os.kill(told["pid"], signal.SIGTERM)
                ended += 1
        note.unlink(missing_ok=True)
    return ended
