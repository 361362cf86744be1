"""Finish or drop the background tasks of a test."""

from __future__ import annotations

from typing import Any

from pomlflow.record import RenderRecord

__all__ = ["drop_pending", "finish", "waiting_publisher"]


def finish(timeout: float = 30) -> bool:
    """Run the pending tasks; return whether all are done and none was lost."""
    from pomlflow.tracking.background import worker

    pending = worker.flush(timeout)
    return not worker.take_lost() and not pending


def drop_pending() -> list[Any]:
    """Drop the tasks that can never be done, since their server does not exist; return them."""
    from pomlflow.tracking.background import worker
    from pomlflow.tracking.publish import publisher

    left = []
    while True:
        for heap in worker._heaps:
            left += [task for _, _, task in heap]
            heap.clear()
        if not worker.flush(1):
            break
    worker._outages.clear()
    worker.take_lost()
    publisher._reset()
    return left


def waiting_publisher() -> Any:
    """Make a publisher with an empty cache, as in a new process; it can wait for a version."""
    from pomlflow.tracking.publish import Publisher

    class Waiting(Publisher):
        def link(self, record: RenderRecord, trace_id: str, *, wait: float = 0, **options: Any) -> Any:
            version = super().link(record, trace_id, **options)
            if version is None and wait:
                finish(wait)
                version = super().link(record, trace_id)
            return version

        def flush(self, timeout: float) -> bool:
            return finish(timeout)

    return Waiting()
