"""A server process of our own: started, watched, and gone when it should be."""

from __future__ import annotations

import contextlib
import os
import re
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
from typing import Protocol

from pytest_llmperf.clock import Clock, seconds_between
from pytest_llmperf.engines.lease import TOKEN_VARIABLE, Holding
from pytest_llmperf.errors import EngineDiedError, EngineStartError

GRACE_S = 20.0
"""How long a server may take to end after SIGTERM. vLLM 0.32 on a CPU was seen to need 1 to 3 s."""
LOG_TAIL_LINES = 40
_POLL_S = 0.25
_given_out: deque[int] = deque(maxlen=64)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
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


def shown(name: str, value: str) -> str:
    """The value of an environment variable as it may be shown: not that of a secret."""
    return "***" if _SECRET.search(name) else value


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
        self._added_env = dict(env)
        self._folders = tuple(folders)
        self._returncode: int | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        self._holding = Holding(f"log {log}", self._folders)  # on file before there is anything
        for folder in self._folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("wb") as stream:
            stream.write(f"$ {self.command_line}\n".encode())
            stream.flush()
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(GRACE_S), *map(str, self._folders), "--", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, **env, TOKEN_VARIABLE: self._holding.token},
                start_new_session=True,
            )
        word, number = self._read_line()
        self.pid: int | None = number if word == "pid" else None
        if word == "exit":
            self._returncode = number
        self._holding.started(self._guard.pid, self.pid)

    @property
    def command_line(self) -> str:
        """The command as one could type it, with the environment that was added."""
        added = [f"{name}={shlex.quote(shown(name, value))}" for name, value in self._added_env.items()]
        return " ".join([*added, shlex.join(self.command)])

    @property
    def returncode(self) -> int | None:
        """The server's exit code, negative for a signal; None while it runs."""
        if self._returncode is None and self._has_output():
            _, self._returncode = self._read_line()
        return self._returncode

    def wait_until(self, is_ready: Callable[[], bool], timeout_s: float, progress: Progress) -> None:
        """Return when `is_ready()` says so.

        Raises `EngineStartError`, with the command, the exit code and the log's last lines, if the
        server ends first or `timeout_s` passes; in the latter case it is stopped.
        """
        while not is_ready():
            waited_s = seconds_between(self._started_ns, self._clock.now_ns())
            if self.returncode is not None:
                msg = f"the server ended before it was ready: {self.ending()}\n{self.report()}"
                raise EngineStartError(msg)
            if waited_s >= timeout_s:
                self.stop()
                msg = (
                    f"the server was not ready after {timeout_s:g} s and was stopped; "
                    f"--llmperf-start-timeout sets the limit\n{self.report()}"
                )
                raise EngineStartError(msg)
            progress("waiting for the server", f"{waited_s:.0f} s, log: {self.log}")
            self._clock.sleep(_POLL_S)
        self._note_shared()

    def check(self) -> None:
        """Raise `EngineDiedError`, with the log's last lines, if the server is not running."""
        if self.returncode is not None:
            msg = f"the server has ended: {self.ending()}\n{self.report()}"
            raise EngineDiedError(msg)

    def stop(self) -> int:
        """End the server and all its processes; returns its exit code. Harmless when repeated."""
        self._note_shared()
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
        try:
            self._guard.wait(timeout=3 * GRACE_S)
        except subprocess.TimeoutExpired:  # a process that SIGKILL cannot end is beyond us
            self._guard.kill()
            self._guard.wait()
        if self._guard.returncode != 0 and self.pid is not None:  # killed, so the group is ours to end
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        for folder in self._folders:  # the guard does so, too, if it gets to it
            shutil.rmtree(folder, ignore_errors=True)
        self._holding.release()
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
        with self.log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 400 * lines))
            text = stream.read().decode(errors="replace")
        return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])

    def _note_shared(self) -> None:
        if self.pid is not None and self._guard.poll() is None:  # else the number may be another's by now
            self._holding.note_shared(self.pid)

    def _has_output(self) -> bool:
        stdout = self._guard.stdout
        if stdout is None or stdout.closed:
            return False
        poll = select.poll()  # select() knows no descriptor beyond 1023
        poll.register(stdout, select.POLLIN)
        return bool(poll.poll(0))

    def _read_line(self) -> tuple[str, int]:
        """The guard's next word and number; a guard that vanished reads as a kill."""
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline().split()
        if len(line) != 2:
            return "exit", -int(signal.SIGKILL)
        return line[0].decode(), int(line[1])
