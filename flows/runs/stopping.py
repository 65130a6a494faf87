"""How a run is stopped from outside: by a signal, or by someone who cancels it in Prefect."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.states import Cancelled

CANCEL_POLL_SECONDS = 3.0


@contextlib.contextmanager
def ends_on_signals(body: asyncio.Task[Any]) -> Iterator[None]:
    """Cancel the flow on SIGTERM and SIGHUP, as asyncio does on Ctrl-C."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {}
    try:
        for number in signals:
            before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, body.cancel)
    except (ValueError, RuntimeError):
        before = {}  # not in the main thread: whoever owns it sees to the signals
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


async def watch_cancelling(flow_run_id: str, body: asyncio.Task[Any]) -> None:
    """Cancel the flow when someone asks for it in Prefect."""
    run_id = UUID(flow_run_id)
    while True:
        await asyncio.sleep(CANCEL_POLL_SECONDS)
        with contextlib.suppress(Exception):  # Prefect's outage is no reason to stop
            async with get_client() as client:
                state = (await client.read_flow_run(run_id)).state
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    if state.is_cancelling():
                        await client.set_flow_run_state(
                            run_id,
                            Cancelled(message="Every stage was ended."),
                            force=True,
                        )
                    body.cancel()
                    return
