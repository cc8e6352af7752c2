"""`engines/process.py` and `engines/guard.py`: servers that start, die, resist and leave children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import no_progress

from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines import process
from pytest_llmperf.engines.process import ServerProcess, free_port
from pytest_llmperf.errors import EngineDiedError, EngineStartError

LIMIT_S = 10.0
PYTHON = (sys.executable, "-I", "-S", "-u", "-c")

SLEEP = "import time; print('ready'); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(60)"
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print('ready')
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-I', '-S', '-c', sys.argv[1]])
print('child', child.pid)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch):
    """Nobody waits long for a server that does not want to end."""
    monkeypatch.setattr(process, "GRACE_S", 0.5)


@pytest.fixture
def launch(tmp_path):
    """Start commands, or Python scripts given as one string; what still runs is stopped after the test."""
    servers = []

    def start(*command, env=None):
        words = [*PYTHON, command[0]] if len(command) == 1 else command
        servers.append(ServerProcess(words, env=env or {}, log=tmp_path / "logs" / "server.log", clock=RealClock()))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def launch_parent(launch, child, *, sleep_s=60.0):
    """A server with a child of its own, and the child's process id."""
    server = launch(*PYTHON, PARENT, child, str(sleep_s))
    return server, child_pid(server.log)


def eventually(condition):
    """Wait until `condition()` is true, and return what it gave."""
    deadline = time.monotonic() + LIMIT_S
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


def is_ready(server):
    return "\nready\n" in server.log.read_text()


def child_pid(log):
    """The number that `PARENT` prints."""

    def printed():
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [int(line[1]) for line in lines if len(line) == 2 and line[0] == "child"]

    return eventually(printed)[0]


def is_running(pid):
    """Whether there is such a process, and it is not just waiting to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()


class TestStart:
    """How a server is started."""

    def test_log(self, launch):
        """The log has the command first and then all that the server prints, on either stream."""
        server = launch("import sys; print('out', flush=True); print('err', file=sys.stderr)")
        eventually(lambda: server.returncode is not None)
        assert [f"$ {server.command_line}", "out", "err"] == server.log.read_text().splitlines()

    def test_environment(self, launch):
        """What is added to the environment reaches the server beside what was there."""
        server = launch("import os; print(os.environ['ADDED'], 'PATH' in os.environ)", env={"ADDED": "a b"})
        eventually(lambda: server.returncode is not None)
        assert "a b True" == server.log.read_text().splitlines()[-1]

    def test_command_line(self, launch):
        """The command line can be typed as it is, the added environment included."""
        server = launch("import os; print(os.environ['ADDED'] + '!')", env={"ADDED": "a b's"})
        eventually(lambda: server.returncode is not None)
        typed = subprocess.run(server.command_line, shell=True, capture_output=True, text=True, check=True)
        assert "a b's!\n" == typed.stdout

    def test_no_input(self, launch):
        """A server that reads its standard input finds the end of it."""
        server = launch("import sys; print(repr(sys.stdin.read()))")
        eventually(lambda: server.returncode is not None)
        assert server.log.read_text().endswith("\n''\n")

    def test_own_group(self, launch):
        """A server leads a process group of its own, which no Ctrl-C of ours reaches."""
        server = launch(SLEEP)
        assert server.pid == os.getpgid(server.pid) != os.getpgid(0)

    def test_signals(self, launch):
        """A server finds the usual handling of signals."""
        names = "SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGPIPE"
        server = launch(f"import signal; print(*[int(signal.getsignal(getattr(signal, n)) == 1) for n in {names}])")
        eventually(lambda: server.returncode is not None)
        # Python itself ignores SIGPIPE, and nothing else.
        assert "0 0 0 0 1" == server.log.read_text().splitlines()[-1]

    def test_command_does_not_exist(self, launch):
        """A command that does not exist reads as exit code 127, with the reason in the log."""
        server = launch("/nonexistent/server", "--port", "1")
        assert (None, 127, "exit code 127") == (server.pid, server.returncode, server.ending())
        assert "cannot run /nonexistent/server: [Errno 2] No such file or directory" in server.log_tail()
        assert 127 == server.stop()

    def test_command_cannot_be_run(self, launch, tmp_path):
        """So does a file that is not a program."""
        server = launch(str(tmp_path), "--port", "1")
        assert 127 == server.returncode
        assert "Permission denied" in server.log_tail()


class TestEnding:
    """What is known of a server that has ended."""

    def test_running(self, launch):
        """A server that runs has no exit code and passes the check."""
        server = launch(SLEEP)
        assert (None, "it is running") == (server.returncode, server.ending())
        assert server.check() is None

    @pytest.mark.parametrize("code", [0, 1, 77])
    def test_exit_code(self, launch, code):
        """The exit code of a server that ended by itself is kept, by `stop` too."""
        server = launch(f"raise SystemExit({code})")
        assert code == eventually(lambda: [server.returncode] if server.returncode is not None else [])[0]
        assert f"exit code {code}" == server.ending()
        assert [code, code] == [server.stop(), server.returncode]

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
    def test_killed(self, launch, number):
        """A server that a signal ended says which."""
        server = launch(SLEEP)
        eventually(lambda: is_ready(server))
        os.kill(server.pid, number)
        assert -number == eventually(lambda: server.returncode)
        assert f"killed by {number.name}" == server.ending()

    def test_check(self, launch):
        """A server that has ended fails the check, with its command, its ending and its last words."""
        server = launch("print('out of memory'); raise SystemExit(5)")
        eventually(lambda: server.returncode is not None)
        with pytest.raises(EngineDiedError) as caught:
            server.check()
        expected = f"the server has ended: exit code 5\ncommand: {server.command_line}\nlast lines of {server.log}:\n"
        assert str(caught.value).startswith(expected)
        assert str(caught.value).endswith("\n  | out of memory")

    def test_log_tail(self, launch):
        """Only the last lines are quoted, broken characters or not."""
        server = launch("import sys; sys.stdout.buffer.write(b''.join(b'%d \\xff\\n' % n for n in range(1000)))")
        eventually(lambda: server.returncode is not None)
        replaced = "\N{REPLACEMENT CHARACTER}"
        assert [f"  | {number} {replaced}" for number in range(960, 1000)] == server.log_tail().splitlines()
        assert f"  | 999 {replaced}" == server.log_tail(1)


class TestStop:
    """How a server is stopped."""

    def test_polite(self, launch):
        """A server may end in its own way after SIGTERM, and its exit code is told."""
        server = launch(POLITE)
        eventually(lambda: is_ready(server))
        assert 3 == server.stop()
        assert ("exit code 3", False) == (server.ending(), is_running(server.pid))

    def test_default(self, launch):
        """A server that does nothing about SIGTERM ends by it."""
        server = launch(SLEEP)
        assert -signal.SIGTERM == server.stop()

    @pytest.mark.slow
    def test_stubborn(self, launch):
        """A server that ignores SIGTERM is killed after the grace period."""
        server = launch(STUBBORN)
        eventually(lambda: is_ready(server))
        started = time.monotonic()
        assert -signal.SIGKILL == server.stop()
        assert 0.5 <= time.monotonic() - started
        assert not is_running(server.pid)

    def test_twice(self, launch):
        """Stopping again does nothing and says the same."""
        server = launch(SLEEP)
        assert [-signal.SIGTERM] * 2 == [server.stop(), server.stop()]
        with pytest.raises(EngineDiedError, match="killed by SIGTERM"):
            server.check()

    @pytest.mark.parametrize("child", [SLEEP, STUBBORN], ids=["default", "stubborn"])
    def test_children(self, launch, child):
        """The processes that a server has started are gone when `stop` returns."""
        server, pid = launch_parent(launch, child)
        assert is_running(pid)
        server.stop()
        assert [False, False] == [is_running(server.pid), is_running(pid)]

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="strays are found in /proc")
    def test_children_that_left_the_group(self, launch):
        """A child with a session of its own is gone, too, with the server's end."""
        server, pid = launch_parent(launch, f"import os; os.setsid(); {SLEEP}")
        eventually(lambda: os.getsid(pid) == pid)
        server.stop()
        assert not is_running(pid)

    def test_children_of_a_killed_server(self, launch):
        """A server that is killed takes its processes with it."""
        server, pid = launch_parent(launch, STUBBORN)
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not is_running(pid))
        assert -signal.SIGKILL == eventually(lambda: server.returncode)

    def test_children_left_behind(self, launch):
        """So does a server that ends by itself."""
        server, pid = launch_parent(launch, STUBBORN, sleep_s=0.0)
        eventually(lambda: not is_running(pid))
        assert 0 == server.stop()

    def test_guard_is_signalled(self, launch):
        """Signals that ask for an end, sent to the guard, change nothing."""
        server = launch(SLEEP)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(server._guard.pid, number)
        time.sleep(0.1)
        assert server.returncode is None
        assert -signal.SIGTERM == server.stop()

    def test_guard_is_killed(self, launch):
        """A server whose guard was killed is ended by `stop` all the same."""
        server, pid = launch_parent(launch, STUBBORN)
        server._guard.kill()
        server.stop()
        eventually(lambda: not is_running(server.pid) and not is_running(pid))


OWNER = """
import sys
from pathlib import Path
from pytest_llmperf.clock import RealClock
from pytest_llmperf.engines import process

process.GRACE_S = 0.5
server = process.ServerProcess(sys.argv[2:], env={}, log=Path(sys.argv[1]), clock=RealClock())
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [None, signal.SIGKILL], ids=["exit", "sigkill"])
def test_owner_ends(tmp_path, number):
    """A server and its children do not outlive the process that started them, however it ends."""
    log = tmp_path / "server.log"
    command = [*PYTHON, PARENT, STUBBORN, "60"]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(log), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        pids = [int(owner.stdout.readline()), child_pid(log)]
        assert [True, True] == [is_running(pid) for pid in pids]
        if number is None:
            owner.stdin.close()
        else:
            owner.send_signal(number)
        owner.wait(LIMIT_S)
    eventually(lambda: not any(is_running(pid) for pid in pids))


def test_secrets_are_not_shown(launch):
    """A secret in the environment reaches the server, and neither the log nor a report."""
    server = launch("import os; print(len(os.environ['HF_TOKEN']), 'characters')", env={"HF_TOKEN": "s3cret", "A": "b"})
    eventually(lambda: "6 characters" in server.log.read_text())
    assert server.command_line.startswith("HF_TOKEN='***' A=b ")
    assert "s3cret" not in server.report()


class TestWaitUntil:
    """Waiting for a server to become ready."""

    @pytest.mark.slow
    def test_ready(self, launch):
        """It returns when the server is ready, and has reported until then."""
        server = launch(f"import time; time.sleep(0.1); {SLEEP}")
        steps = []
        server.wait_until(lambda: is_ready(server), LIMIT_S, lambda step, detail="": steps.append((step, detail)))
        assert server.returncode is None
        assert ("waiting for the server", f"0 s, log: {server.log}") == steps[0]

    def test_ready_at_once(self, launch):
        """A server that is ready is not waited for, however little time there is."""
        launch(SLEEP).wait_until(lambda: True, 0.0, no_progress)

    def test_early_exit(self, launch):
        """A server that ends first fails with its command, its exit code and its last words."""
        server = launch("print('no such model'); raise SystemExit(2)")
        with pytest.raises(EngineStartError) as caught:
            server.wait_until(lambda: False, LIMIT_S, no_progress)
        assert (
            f"the server ended before it was ready: exit code 2\ncommand: {server.command_line}\n"
            f"last lines of {server.log}:\n"
        ) in str(caught.value)
        assert str(caught.value).endswith("\n  | no such model")

    def test_command_does_not_exist(self, launch):
        """A command that does not exist fails at once."""
        server = launch("/nonexistent/server", "--port", "1")
        with pytest.raises(EngineStartError, match=r"exit code 127(.|\n)*cannot run /nonexistent/server"):
            server.wait_until(lambda: False, LIMIT_S, no_progress)

    @pytest.mark.slow
    def test_timeout(self, launch):
        """A server that is not ready in time is stopped, and the option that sets the time is named."""
        server = launch(SLEEP)
        with pytest.raises(EngineStartError) as caught:
            server.wait_until(lambda: False, 0.2, no_progress)
        assert (
            "the server was not ready after 0.2 s and was stopped; --llmperf-start-timeout sets the limit\n"
            f"command: {server.command_line}\n"
        ) in str(caught.value)
        assert not is_running(server.pid)

    def test_error_while_asking(self, launch):
        """What asking raises is passed on, and the server is the caller's to stop."""

        def fail():
            raise ZeroDivisionError

        server = launch(SLEEP)
        with pytest.raises(ZeroDivisionError):
            server.wait_until(fail, LIMIT_S, no_progress)
        assert server.returncode is None


def test_ports_are_not_given_out_twice():
    """Although nothing listens on them yet."""
    ports = [free_port() for _ in range(40)]
    assert len(ports) == len(set(ports))


def test_free_port():
    """A free port can be listened on."""
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        assert listener.getsockname()[1] > 0
