"""What differs between the outcomes of a suite untraced and traced."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

__all__ = ["KNOWN", "Difference", "Known", "differences", "summary"]


class Known(NamedTuple):
    """Tests whose result differs when traced, for a reason that session_tracer cannot change.

    `tests` is a pattern of test ids, in which `*` stands for anything.
    """

    tests: str
    reason: str


KNOWN: Final[tuple[Known, ...]] = ()


class Difference(NamedTuple):
    """A test that came to something else when traced; `reason` is empty where none is known."""

    test: str
    bare: str
    traced: str
    reason: str = ""


def differences(
    bare: Mapping[str, str], traced: Mapping[str, str], known: Sequence[Known] = ()
) -> list[Difference]:
    """The tests whose outcomes are not the same, in the order of their ids."""
    return [
        Difference(
            test, bare.get(test, "not run"), traced.get(test, "not run"), _reason(test, known)
        )
        for test in sorted({*bare, *traced})
        if bare.get(test) != traced.get(test)
    ]


def _reason(test: str, known: Sequence[Known]) -> str:
    """Why the test is known to differ; empty where it is not."""
    return next((one.reason for one in known if fnmatchcase(test, one.tests)), "")


def summary(outcomes: Mapping[str, str]) -> str:
    """How many tests came to what: `12597 passed, 500 skipped`."""
    counted = Counter(outcomes.values()).most_common()
    return ", ".join(f"{number} {outcome}" for outcome, number in counted) or "no test"
