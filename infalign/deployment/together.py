"""One model, many threads: whoever waits is answered in one go with all others who wait.

A model's passes may keep something in it (some rotary embeddings do), and a CUDA graph that is
being recorded allows no other thread's work on the device: one thread works at a time. It takes
what has gathered while the one before it worked.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Ask = TypeVar("Ask")
Found = TypeVar("Found")
PATIENCE = 0.01  # seconds that a group waits to be as large as the last one
_TURN = threading.Lock()  # of all models in this process


class Together(Generic[Ask, Found]):
    """Gathers what several threads ask, and works on it one group after the other.

    Args:
        work: gives one result for each of a group.
        weight: of one ask.
        most: the weight of a group, unless a single ask has more.
    """

    def __init__(
        self,
        work: Callable[[list[Ask]], list[Found]],
        weight: Callable[[Ask], int],
        most: int,
    ) -> None:
        self._work, self._weight, self._most = work, weight, most
        self._waiting: deque[_Ticket[Ask, Found]] = deque()
        self._last = 1  # how many the last group had

    def ask(self, asks: Sequence[Ask]) -> list[Found]:
        """One result for each, in order; what the work raises is raised to all whom it meets."""
        tickets = [_Ticket[Ask, Found](ask) for ask in asks]
        self._waiting.extend(tickets)
        with _TURN:
            while not all(ticket.done for ticket in tickets):
                self._take_group()
        for ticket in tickets:
            if ticket.error is not None:
                raise ticket.error
        return [ticket.found[0] for ticket in tickets]

    def _take_group(self) -> None:
        """Work on those who have waited longest."""
        self._await_others()
        group = [self._waiting.popleft()]
        weight = self._weight(group[0].ask)
        while self._waiting and weight + self._weight(self._waiting[0].ask) <= self._most:
            group.append(self._waiting.popleft())
            weight += self._weight(group[-1].ask)
        self._last = len(group)
        try:
            for ticket, found in zip(group, self._work([t.ask for t in group]), strict=True):
                ticket.found.append(found)
        except Exception as error:
            if len(group) > 1:  # one of them may be at fault: each alone
                self._waiting.extendleft(reversed(group))
                self._alone(len(group))
                return
            group[0].error = error
        for ticket in group:
            ticket.done = True

    def _await_others(self) -> None:
        """Those who were answered together ask again at about the same time: wait for them."""
        end = time.monotonic() + PATIENCE
        while len(self._waiting) < self._last and time.monotonic() < end:
            time.sleep(PATIENCE / 10)

    def _alone(self, number: int) -> None:
        most, self._most = self._most, 0
        try:
            for _ in range(number):
                self._take_group()
        finally:
            self._most = most


class _Ticket(Generic[Ask, Found]):
    """One ask, and what became of it."""

    def __init__(self, ask: Ask) -> None:
        self.ask, self.done = ask, False
        self.found: list[Found] = []
        self.error: Exception | None = None
