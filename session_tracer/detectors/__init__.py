"""Detectors: each finds one kind of mistake in a session scope; one family a module."""

from __future__ import annotations

from typing import Final

from session_tracer.detectors import (
    boundaries,
    connections,
    endings,
    flushes,
    lasting,
    loading,
    refused,
    reloads,
    rows,
    selects,
    sharing,
    single_rows,
    sizes,
    transactions,
)
from session_tracer.detectors.protocol import Detector, Suspecting

__all__ = ["DEFAULT_DETECTORS", "Detector"]

DEFAULT_DETECTORS: Final[tuple[Suspecting, ...]] = (
    # Before the detector of idle and long transactions, which a leaked session is not reported for.
    lasting.LeakedSession(),
    lasting.IdleOrLongTransaction(),
    endings.AbandonedSession(),
    endings.DiscardedChanges(),
    endings.ReusedAfterClose(),
    transactions.CommitInLoop(),
    transactions.SplitWrites(),
    transactions.SessionPerItem(),
    connections.NestedSessions(),
    connections.PoolExhausted(),
    transactions.SavepointChurn(),
    transactions.CancelledTransaction(),
    boundaries.RefusedTransaction(),
    boundaries.InterruptedStream(),
    refused.DetachedLazyLoad(),
    refused.ImplicitAsyncIO(),
    sharing.CrossedSessions(),
    sharing.ConcurrentUse(),
    sharing.ForeignLoop(),
    sharing.BlockedEventLoop(),
    sharing.SharedSession(),
    flushes.FailedFlush(),
    flushes.PendingRollback(),
    flushes.AutoflushStorm(),
    flushes.LargeFlush(),
    flushes.UnchangedDirty(),
    single_rows.RowByRowWrites(),
    rows.LostLink(),
    loading.NPlusOne(),
    loading.GetInLoop(),
    selects.RepeatedSelects(),
    reloads.ReloadAfterCommit(),
    reloads.RefreshAfterWrite(),
    reloads.RefreshInLoop(),
    sizes.LargeIdentityMap(),
    sizes.LargeResult(),
    rows.StaleLock(),
    rows.RowGoneAway(),
)
