"""Names the sessions of a Celery worker by the task that they work for."""

from __future__ import annotations

from typing import Any

from celery import signals

from session_tracer.where.work import BLOCKS, Work

__all__ = ["name_tasks"]

_ID = "session_tracer.celery"


def name_tasks() -> None:
    """Name what sessions work for in a task: `task shop.import_orders`.

    Call it where the Celery application is created. It works with each pool of the worker, and with
    tasks that are called eagerly. A second call changes nothing.
    """
    signals.task_prerun.connect(_begins, weak=False, dispatch_uid=_ID)
    signals.task_postrun.connect(_ends, weak=False, dispatch_uid=_ID)


class _Task(Work):
    """One run of a task."""

    __slots__ = ("run",)

    def __init__(self, name: str, run: str) -> None:
        super().__init__(name)
        self.run = run


def _begins(task_id: str, task: Any, **_: Any) -> None:
    _Task(f"task {task.name}", task_id).__enter__()


def _ends(task_id: str, **_: Any) -> None:
    for block in reversed(BLOCKS.get()):
        if isinstance(block, _Task) and block.run == task_id:
            block.__exit__(None, None, None)
            return
