"""The command: SQLAlchemy's own tests for the installed SQLAlchemy, untraced and then traced."""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.suites.comparing import KNOWN, differences, summary
from tests.suites.outcomes import Outcomes
from tests.suites.suite import Run, SuiteFailed, run, source
from tests.suites.tracing import Account

# What uses sessions; the rest is about what lies below them.
TESTS: Final = ("test/orm", "test/ext")
_MOST_SHOWN: Final = 20


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 if a test has another result when traced, or if session_tracer failed."""
    installed = version("sqlalchemy")
    try:
        tree = source(installed, Path(sys.prefix))
        chosen = [*arguments, *(() if _names_tests(arguments, tree) else TESTS)]
        say(f"The tests of SQLAlchemy {installed}: pytest {' '.join(chosen)}")
        bare = run(tree, chosen, traced=False)
        say(f"  untraced: {summary(bare.outcomes.of_tests)} ({bare.seconds:.0f} s)")
        traced = run(tree, chosen, traced=True)
        say(f"  traced:   {summary(traced.outcomes.of_tests)} ({traced.seconds:.0f} s)")
    except SuiteFailed as failure:
        say(str(failure))
        return 1
    problems = verdict(bare.outcomes, traced)
    say("\n".join(problems) or "Nothing differs.")
    return 1 if problems else 0


def _names_tests(arguments: Sequence[str], tree: Path) -> bool:
    return any((tree / one.partition("::")[0]).exists() for one in arguments)


def verdict(bare: Outcomes, traced: Run) -> list[str]:
    """The problems, one a line; known differences are printed and are no problem."""
    problems: list[str] = []
    for test, before, after, reason in differences(bare.of_tests, traced.outcomes.of_tests, KNOWN):
        if reason:
            say(f"  known difference: {test}: {before}, and {after} when traced; {reason}")
            continue
        problems.append(f"{test}: {before}, and {after} when traced")
        if len(problems) <= _MOST_SHOWN and test in traced.outcomes.shown:
            problems[-1] += f"\n{traced.outcomes.shown[test]}"
    return problems + ([] if traced.account is None else audit(traced.account))


def audit(account: Account) -> list[str]:
    """What is wrong with the tracing itself, one a line."""
    say(
        f"  of its sessions were told {account.scopes} scopes, {account.spans} spans and "
        f"{account.findings} findings; session_tracer.errors is {sum(account.errors.values())}"
    )
    problems = [] if account.scopes else ["no session was traced: these tests prove nothing"]
    problems += [f"session_tracer.errors: {n} in {where}" for where, n in account.errors.items()]
    problems += [f"another context was left after {test}" for test in account.left]
    return problems + account.said


def say(line: str) -> None:
    """Writes a line at once: a run takes minutes."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
