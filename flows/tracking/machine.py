"""The machine while a run is at work: processor, memory, disk and GPUs, as MLflow names them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from flows.tracking.tracker import PARENT, Tracker

SECONDS = 10.0  # between two looks


@contextlib.contextmanager
def watched(tracker: Tracker) -> Iterator[None]:
    """Log the machine's numbers to the parent run as long as this lasts."""
    ending = threading.Event()
    thread = threading.Thread(target=_look, args=(tracker, ending), name="machine", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(SECONDS)


def _look(tracker: Tracker, ending: threading.Event) -> None:
    step, monitors = 0, None
    while not ending.wait(SECONDS):
        try:
            monitors = _monitors() if monitors is None else monitors
            numbers: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                numbers |= monitor.aggregate_metrics()
                monitor.clear_metrics()
        except Exception:  # of a driver, say; the run does not depend on it
            return
        tracker.sampled(PARENT, {f"system/{name}": float(v) for name, v in numbers.items()}, step)
        step += 1


def _monitors() -> list[Any]:
    """MLflow's own, those that this machine has something for."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor()]
    with contextlib.suppress(Exception):  # no GPU, or nothing that asks it
        found.append(GPUMonitor())
    return found
