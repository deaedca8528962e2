"""The store over which Horovod's ranks tell each other their addresses: values by scope and key.

As in horovod.runner.http.http_server: a rank deletes its own number in a scope when it is connected, and once all have done so
the scope is emptied.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from launch.surroundings import Surroundings


class Store:
    """`scope_sizes` is how many ranks take part in which scope; in all others a key is deleted at once."""

    def __init__(self, scope_sizes: Mapping[str, int]) -> None:
        self._scope_sizes = scope_sizes
        self._values: dict[str, dict[str, bytes]] = {}
        self._connected: dict[str, set[str]] = {}
        self._changed = threading.Condition()

    def get(self, scope: str, key: str, hold_seconds: float = 0.0) -> bytes | None:
        """A value, as soon as it is there, at the latest after so long; None where it is not."""
        with self._changed:
            self._changed.wait_for(lambda: key in self._values.get(scope, {}), hold_seconds)
            return self._values.get(scope, {}).get(key)

    def put(self, scope: str, key: str, value: bytes) -> None:
        with self._changed:
            self._values.setdefault(scope, {})[key] = value
            self._changed.notify_all()

    def delete(self, scope: str, key: str) -> None:
        with self._changed:
            size = self._scope_sizes.get(scope)
            if size is None:
                self._values.get(scope, {}).pop(key, None)
                return
            connected = self._connected.setdefault(scope, set())
            connected.add(key)
            if len(connected) >= size:
                self._values.pop(scope, None)
                connected.clear()


def horovod_scopes(surroundings: Surroundings) -> dict[str, int]:
    """The scopes of Horovod's three communicators: all ranks, those of a host, and those of one number on all hosts."""
    hosts = {f"local_{host}": surroundings.ranks_per_worker for host in surroundings.peers}
    numbers = {f"cross_{number}": surroundings.num_workers for number in range(surroundings.ranks_per_worker)}
    return {"global": surroundings.num_ranks, **hosts, **numbers}
