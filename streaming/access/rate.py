"""Token buckets, one a caller."""

from __future__ import annotations

# Callers that a process remembers. A bucket is 200 bytes; subjects of tokens are without number.
MAX_CALLERS = 10_000


class Buckets:
    """A caller with rate r may send r requests at once (at least one), and r a second after that."""

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}

    def take(self, caller: str, rate: float, now: float) -> float:
        """Take one token; returns 0, or how many seconds are missing to the next one, with none taken.

        `now` is a monotonic clock's, in seconds.
        """
        # When the bucket will be full again says all that there is to know of it.
        full_at = max(self._full_at.get(caller, now), now)
        wait = full_at + 1 / rate - now - max(1.0, rate) / rate
        if wait > 1e-9:  # the sum above is exact to that
            return wait
        if len(self._full_at) >= MAX_CALLERS and caller not in self._full_at:
            self._forget(now)
        self._full_at[caller] = full_at + 1 / rate
        return 0.0

    def _forget(self, now: float) -> None:
        """Full buckets are as good as new ones; where none is full, the fullest half goes."""
        self._full_at = {caller: at for caller, at in self._full_at.items() if at > now}
        if len(self._full_at) >= MAX_CALLERS:
            emptiest = sorted(self._full_at, key=self._full_at.__getitem__, reverse=True)[: MAX_CALLERS // 2]
            self._full_at = {caller: self._full_at[caller] for caller in emptiest}
