"""What draws conclusions: one family of findings a module."""

from __future__ import annotations

from typing import Final

from session_tracer.detectors.connections import NestedSessions, PoolExhausted
from session_tracer.detectors.detached import DetachedLazyLoad
from session_tracer.detectors.endings import AbandonedSession, DiscardedChanges, ReusedAfterClose
from session_tracer.detectors.flushes import (
    AutoflushStorm,
    FailedFlush,
    LargeFlush,
    PendingRollback,
    UnchangedDirty,
)
from session_tracer.detectors.implicit import ImplicitAsyncIO
from session_tracer.detectors.lasting import IdleOrLongTransaction, LeakedSession
from session_tracer.detectors.loading import (
    GetInLoop,
    NPlusOne,
    RepeatedSelect,
)
from session_tracer.detectors.protocol import Detector, Suspecting
from session_tracer.detectors.reloads import RefreshAfterWrite, ReloadAfterCommit
from session_tracer.detectors.sharing import (
    ConcurrentUse,
    CrossedSessions,
    ForeignLoop,
    SharedSession,
)
from session_tracer.detectors.single_rows import RowByRowWrites
from session_tracer.detectors.sizes import LargeIdentityMap, LargeResult
from session_tracer.detectors.transactions import (
    CancelledTransaction,
    CommitInLoop,
    SavepointChurn,
    SplitWrites,
)

__all__ = [
    "DEFAULT_DETECTORS",
    "AbandonedSession",
    "AutoflushStorm",
    "CancelledTransaction",
    "CommitInLoop",
    "ConcurrentUse",
    "CrossedSessions",
    "DetachedLazyLoad",
    "Detector",
    "DiscardedChanges",
    "FailedFlush",
    "ForeignLoop",
    "GetInLoop",
    "IdleOrLongTransaction",
    "ImplicitAsyncIO",
    "LargeFlush",
    "LargeIdentityMap",
    "LargeResult",
    "LeakedSession",
    "NPlusOne",
    "NestedSessions",
    "PendingRollback",
    "PoolExhausted",
    "RefreshAfterWrite",
    "ReloadAfterCommit",
    "RepeatedSelect",
    "ReusedAfterClose",
    "RowByRowWrites",
    "SavepointChurn",
    "SharedSession",
    "SplitWrites",
    "UnchangedDirty",
]

DEFAULT_DETECTORS: Final[tuple[Suspecting, ...]] = (
    # Before what a session that leaks is not said to be as well.
    LeakedSession(),
    IdleOrLongTransaction(),
    AbandonedSession(),
    DiscardedChanges(),
    ReusedAfterClose(),
    CommitInLoop(),
    SplitWrites(),
    NestedSessions(),
    PoolExhausted(),
    SavepointChurn(),
    CancelledTransaction(),
    DetachedLazyLoad(),
    ImplicitAsyncIO(),
    CrossedSessions(),
    ConcurrentUse(),
    ForeignLoop(),
    SharedSession(),
    FailedFlush(),
    PendingRollback(),
    AutoflushStorm(),
    LargeFlush(),
    UnchangedDirty(),
    RowByRowWrites(),
    NPlusOne(),
    GetInLoop(),
    RepeatedSelect(),
    ReloadAfterCommit(),
    RefreshAfterWrite(),
    LargeIdentityMap(),
    LargeResult(),
)
