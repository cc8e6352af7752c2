"""A server process of our own: started, watched, and gone when it should be."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from pytest_llmperf.atomic import why
from pytest_llmperf.clock import Clock, seconds_between
from pytest_llmperf.engines.lease import TOKEN_VARIABLE, Holding
from pytest_llmperf.errors import EngineDiedError, EngineStartError
from pytest_llmperf.files import create
from pytest_llmperf.secret import SecretDict, concealed, secrets_of, shown

GRACE_S = 20.0
"""How long a server may take to end after SIGTERM. vLLM 0.32 on a CPU was seen to need 1 to 3 s."""
LOG_TAIL_LINES = 40
STACK_LINES = 200
"""Of the log of a server that hung: the stacks of all its threads stand at its end."""
_STARTING_S = 60.0
"""How long the guard may take until it has started the command: a Python without imports, on a busy machine."""
_DYING_S = 5.0
"""How long a process may take to be gone that was killed, or that writes its stacks before it ends."""
_POLL_S = 0.25
_USAGE = 2
"""The exit code of a program that was given options which it does not know."""
_given_out: deque[int] = deque(maxlen=64)
_GUARD = Path(__file__).with_name("guard.py")


class Progress(Protocol):
    """Told from time to time what is going on."""

    def __call__(self, step: str, detail: str = "", done: float | None = None) -> None:
        """`step`: a few words; `detail`: what changes while it lasts; `done`: how much of the whole is, from 0 to 1."""
        ...


def free_port() -> int:
    """A loopback port that nothing listens on at this moment, and none of those given out shortly before.

    A server takes seconds until it listens; meanwhile the kernel may offer its port to another one.
    """
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _given_out:
            _given_out.append(port)
            return port


def _forbid_cores(group: int) -> None:
    """Have no process of the group write a core file or hand one to a collector: a limit of 1 forbids both (Linux)."""
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                if os.getpgid(int(name)) == group:
                    _, most = resource.prlimit(int(name), resource.RLIMIT_CORE)
                    resource.prlimit(int(name), resource.RLIMIT_CORE, (min(1, most) if most >= 0 else 1, most))


class ServerProcess:
    """A command in a process group of its own, its output in a log file.

    It ends with `stop`, or when this process ends for whatever reason: a guard process holds a pipe
    to us and ends the group when the pipe closes.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], log: Path, clock: Clock, folders: Sequence[Path] = ()
    ) -> None:
        """Start `command` with `env` added to the environment. `log` gets all its output.

        `folders`: made for the server, and gone, with what is in them, when it is.
        """
        self.command = tuple(command)
        self.log = log
        self._clock = clock
        self._started_ns = clock.now_ns()
        self._added_env = SecretDict(env)
        self._secrets = secrets_of(env)
        self._folders = tuple(folders)
        self._returncode: int | None = None
        self._unlogged: str | None = None
        self._holding = Holding(f"log {log}", self._folders)  # on file before there is anything
        self._make_folders()
        faulting = {"PYTHONFAULTHANDLER": "1"}  # so that SIGABRT writes its stacks
        with self._opened_log() as stream:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(GRACE_S), *map(str, self._folders), "--", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=SecretDict({**os.environ, **faulting, **env, TOKEN_VARIABLE: self._holding.token}),
                start_new_session=True,
            )
        self.pid: int | None = None
        if not self._has_output(_STARTING_S):
            self.stop()
            raise EngineStartError(f"the server's process was not there after {_STARTING_S:g} s: {self.command_line}")
        word, number = self._read_line()
        self.pid = number if word == "pid" else None
        if word == "exit":
            self._returncode = number
        self._holding.started(self._guard.pid, self.pid)

    def _make_folders(self) -> None:
        for folder in self._folders:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                self._holding.release()
                raise EngineStartError(f"the server was not started: {why(error, folder)}") from None

    def _opened_log(self) -> IO[bytes]:
        """The log, begun; a disk that does not take it costs the log and not the night."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            stream = create(self.log, private=True)
            stream.write(f"$ {self.command_line}\n".encode())
        except OSError as error:
            self._unlogged = why(error, self.log)
            return open(os.devnull, "wb")
        return stream

    @property
    def command_line(self) -> str:
        """The command as one could type it, with the environment that was added, secrets left out."""
        added = [f"{name}={shlex.quote(shown(name, value))}" for name, value in self._added_env.items()]
        return concealed(" ".join([*added, shlex.join(self.command)]), self._secrets)

    @property
    def returncode(self) -> int | None:
        """The server's exit code, negative for a signal; None while it runs."""
        if self._returncode is None and self._has_output():
            _, self._returncode = self._read_line()
        return self._returncode

    def wait_until(self, is_ready: Callable[[], bool], timeout_s: float, progress: Progress) -> None:
        """Return when `is_ready()` says so.

        Raises `EngineStartError`, with the command, the exit code and the log's last lines, if the
        server ends first or `timeout_s` passes; in the latter case it is ended, and says where it stands.
        """
        while not is_ready():
            waited_s = seconds_between(self._started_ns, self._clock.now_ns())
            if self.returncode is not None:
                msg = f"the server ended before it was ready: {self.ending()}\n{self.report()}"
                raise EngineStartError(msg, is_final=self.returncode == _USAGE)
            if waited_s >= timeout_s:
                msg = (
                    f"the server was not ready after {timeout_s:g} s and was stopped; "
                    f"--llmperf-start-timeout sets the limit\n{self.end_hung()}"
                )
                raise EngineStartError(msg, is_final=True)
            progress("waiting for the server", f"{waited_s:.0f} s, log: {self.log}")
            self._clock.sleep(_POLL_S)
        self._note_shared()

    def check(self) -> None:
        """Raise `EngineDiedError`, with the log's last lines, if the server is not running."""
        if self.returncode is not None:
            msg = f"the server has ended: {self.ending()}\n{self.report()}"
            raise EngineDiedError(msg)

    def end_hung(self) -> str:
        """End a server that does not answer, and return what its log then says, the stacks of its Python processes too.

        Core files are kept from being written: those of an engine are as large as its memory.
        """
        if self.pid is not None and self.returncode is None:
            _forbid_cores(self.pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGABRT)
                os.killpg(self.pid, signal.SIGCONT)  # or a stopped one would not see it
            self._has_output(_DYING_S)
        report = f"command: {self.command_line}\nlast lines of {self.log}:\n{self.log_tail(STACK_LINES)}"
        self.stop()
        return report

    def stop(self) -> int:
        """End the server and all its processes; returns its exit code. Harmless when repeated."""
        self._note_shared()
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
        try:
            self._guard.wait(timeout=3 * GRACE_S)
        except subprocess.TimeoutExpired:  # a process that SIGKILL cannot end is beyond us
            self._guard.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(timeout=_DYING_S)
        if self._guard.returncode != 0 and self.pid is not None:  # killed, so the group is ours to end
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        for folder in self._folders:  # the guard does so, too, if it gets to it
            shutil.rmtree(folder, ignore_errors=True)
        self._holding.release()
        self._conceal_log()
        code = self.returncode
        if self._guard.stdout is not None:
            self._guard.stdout.close()
        return -signal.SIGKILL if code is None else code

    def ending(self) -> str:
        """How it ended, in words: `exit code 1`, `killed by SIGKILL`."""
        code = self.returncode
        if code is None:
            return "it is running"
        if code >= 0:
            return f"exit code {code}"
        named = {number.value: number.name for number in signal.Signals}  # real-time signals have no name
        return f"killed by {named.get(-code, f'signal {-code}')}"

    def report(self) -> str:
        """The command and the last lines of the log, for a person to read."""
        return f"command: {self.command_line}\nlast lines of {self.log}:\n{self.log_tail()}"

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        try:
            with self.log.open("rb") as stream:
                stream.seek(0, os.SEEK_END)
                stream.seek(max(0, stream.tell() - 400 * lines))
                text = stream.read().decode(errors="replace")
        except OSError as error:
            text = self._unlogged or f"{self.log} cannot be read: {error.strerror}"
        text = concealed(text, self._secrets).removeprefix(f"$ {self.command_line}\n")  # quoted beside the command
        return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])

    def _conceal_log(self) -> None:
        """Blank secrets that the server has written to its log; until now only its owner could read it."""
        with (
            contextlib.suppress(OSError, ValueError),  # it is gone, or empty
            self.log.open("r+b") as stream,
            mmap.mmap(stream.fileno(), 0) as content,
        ):
            for secret in self._secrets:
                _blank(content, os.fsencode(secret))

    def _note_shared(self) -> None:
        if self.pid is not None and self._guard.poll() is None:  # else the number may be another's by now
            self._holding.note_shared(self.pid)

    def _has_output(self, longest_s: float = 0.0) -> bool:
        stdout = self._guard.stdout
        if stdout is None or stdout.closed:
            return False
        poll = select.poll()  # select() knows no descriptor beyond 1023
        poll.register(stdout, select.POLLIN)
        return bool(poll.poll(longest_s * 1000))

    def _read_line(self) -> tuple[str, int]:
        """The guard's next word and number; a guard that vanished reads as a kill."""
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline().split()
        if len(line) != 2:
            return "exit", -int(signal.SIGKILL)
        return line[0].decode(), int(line[1])


def _blank(content: mmap.mmap, secret: bytes) -> None:
    place = content.find(secret)
    while place >= 0:
        content[place : place + len(secret)] = b"*" * len(secret)
        place = content.find(secret, place + len(secret))
