"""Keeps a server's processes from outliving their owner. Run as a script, never imported.

    python guard.py GRACE_SECONDS [FOLDER...] -- COMMAND...

The owner holds the write end of this process's standard input. When that closes, because the owner
stopped the server or because it died in whatever way, SIGKILL included, the server's process group
gets SIGTERM, and SIGKILL after GRACE_SECONDS. When the server ends by itself, what is left of its
group gets the same and a shorter time: Python's resource tracker removes shared memory after the
others have gone. Each FOLDER is removed in the end. Standard output carries two lines back: `pid N`
and, as soon as it is known, `exit CODE`, where CODE is as in `subprocess` (negative: a signal).
Everything the server prints goes to this process's standard error, which the owner points at the
log file.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

_POLL_S = 0.05
_ORPHANS_GRACE_S = 3.0
_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Guard one server; see the module."""
    end = sys.argv.index("--")
    grace_s, folders, command = float(sys.argv[1]), sys.argv[2:end], sys.argv[end + 1 :]
    # Handlers, not SIG_IGN: an ignored signal would stay ignored in the server.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    child_ended, signal_pipe = os.pipe()
    os.set_blocking(signal_pipe, False)
    signal.set_wakeup_fd(signal_pipe, warn_on_full_buffer=False)
    become_subreaper()
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error}\n")
        remove(folders)
        tell("exit 127")
        return 0
    tell(f"pid {server.pid}")
    Guard(server.pid, child_ended, grace_s).run()
    remove(folders)
    os._exit(0)  # nothing to clean up, and Popen would wait for a child that is reaped already


def become_subreaper() -> None:
    """On Linux, adopt orphans of the server, so that the dead among them are reaped here.

    Elsewhere process 1 reaps them. Where that is a container's own command it may never do so,
    and a zombie keeps its process group in existence.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def remove(folders: list[str]) -> None:
    """Remove folders with all that is in them."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def tell(line: str) -> None:
    """Write a line to the owner, who may be gone; that is why we are still here."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())


class Guard:
    """Watches one process group from its start to its end."""

    def __init__(self, group: int, child_ended: int, grace_s: float) -> None:
        self.group = group
        self.child_ended = child_ended
        self.grace_s = grace_s
        self.server_runs = True

    def run(self) -> None:
        self.wait_for_end()
        grace_s = self.grace_s if self.server_runs else min(self.grace_s, _ORPHANS_GRACE_S)
        if self.signal(signal.SIGTERM):
            self.wait_until_gone(grace_s)
        self.signal(signal.SIGKILL)
        self.wait_until_gone(self.grace_s)
        self.end_strays()

    def end_strays(self) -> None:
        """Kill what has left the group and was orphaned, so that it is our child now (Linux)."""
        deadline = time.monotonic() + self.grace_s
        while (strays := children()) and time.monotonic() < deadline:
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.reap()
            time.sleep(_POLL_S)

    def wait_for_end(self) -> None:
        """Return when the server has ended or the owner has let go."""
        while self.server_runs:
            readable, _, _ = select.select([0, self.child_ended], [], [])
            if self.child_ended in readable:
                os.read(self.child_ended, 4096)
                self.reap()
            if 0 in readable and not os.read(0, 4096):
                return

    def wait_until_gone(self, grace_s: float) -> None:
        """Return when no process of the group is left, or after the grace period."""
        deadline = time.monotonic() + grace_s
        while self.signal(0) and time.monotonic() < deadline:
            self.reap()
            time.sleep(_POLL_S)

    def reap(self) -> None:
        """Take leave of every dead child; tell the owner when it is the server itself."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.group:
                self.server_runs = False
                tell(f"exit {os.waitstatus_to_exitcode(status)}")

    def signal(self, number: int) -> bool:
        """Send a signal to the group; False if it has no process any more."""
        try:
            os.killpg(self.group, number)
        except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
            return False
        return True


def children() -> list[int]:
    """Children of this process, zombies left out; nothing where there is no /proc."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as stream:
                # The command, in parentheses, may hold anything; state and parent follow it.
                state, parent = stream.read().rpartition(")")[2].split()[:2]
                if int(parent) == os.getpid() and state != "Z":
                    found.append(int(name))
    return found


if __name__ == "__main__":
    sys.exit(main())
