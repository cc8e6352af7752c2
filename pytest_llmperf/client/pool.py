"""The connections of one client: which there are, which are idle or carry an exchange, what each is watched for."""

from __future__ import annotations

from pytest_llmperf.client.connection import Connection
from pytest_llmperf.client.lookout import READ, WRITE, Lookout
from pytest_llmperf.records import ClientStats


class Pool:
    """Keep-alive connections. Each is watched by the lookout from when it is taken in until it is discarded."""

    def __init__(self, lookout: Lookout, stats: ClientStats) -> None:
        self.all: set[Connection] = set()
        self.active: set[Connection] = set()
        """Those that carry an exchange, or are being made for one."""
        self._idle: list[Connection] = []
        self._lookout = lookout
        self._stats = stats

    def take_in(self, connection: Connection) -> Connection:
        """One that is being made."""
        self.all.add(connection)
        self.watch(connection, WRITE)
        return connection

    def rest(self, connection: Connection) -> None:
        """It carries nothing, and may be used again."""
        self.active.discard(connection)
        self._idle.append(connection)

    def wake(self) -> Connection | None:
        """One that is idle; None if there is none. The last one that was used, as the others are likelier closed."""
        return self._idle.pop() if self._idle else None

    def discard(self, connection: Connection) -> None:
        """Watch it no more, and close it."""
        self.all.discard(connection)
        self.active.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.events:
            self._lookout.forget(connection.socket.raw, streaming=connection.streaming)
            connection.events = 0
        self._close(connection)

    def close(self) -> None:
        """Close them all."""
        for connection in self.all:
            self._close(connection)
        self.all.clear()
        self.active.clear()
        self._idle.clear()
        self._lookout.close()

    def watch(self, connection: Connection, events: int) -> None:
        """Watch it for these events."""
        if connection.events == events:
            return
        if connection.events:
            self._lookout.change(connection.socket.raw, events, connection, streaming=connection.streaming)
        else:
            self._lookout.watch(connection.socket.raw, events, connection)
        connection.events = events

    def move(self, connection: Connection, *, streaming: bool) -> None:
        """Watch it among those that stream, which need not be looked at before others, or not."""
        if connection.streaming != streaming:
            connection.streaming = streaming
            self._lookout.move(connection.socket.raw, connection.events, connection, streaming=streaming)

    def is_reusable(self, connection: Connection) -> bool:
        """Whether nothing of the exchange that it carried is left unsent or has gone wrong."""
        return connection.events == READ and connection.send_error is None

    def _close(self, connection: Connection) -> None:
        """The last moment to ask the kernel how the connection went."""
        retransmitted, out_of_order = connection.socket.disturbances()
        if retransmitted or out_of_order:
            self._stats.retransmitted += retransmitted
            self._stats.out_of_order += out_of_order
            self._stats.disturbed_connections += 1
        connection.socket.close()
