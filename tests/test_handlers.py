"""Errors that are swallowed in every way, each told by the line that did it, or by none."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from session_tracer.where.callsite import CallSite, Locator
from session_tracer.where.except_finder import Failure, failure, handler_of
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCATOR = Locator()
ERRORS = (IntegrityError, OperationalError)


class OutOfStockError(Exception):
    """What the application raises in place of a database's error."""


class Work:
    """Fails first, and asks later who swallowed it."""

    def __init__(self) -> None:
        self.failed = Failure([], frozenset())
        self.swallowed: CallSite | None = None

    def fail(self) -> None:
        error = IntegrityError("INSERT", {}, Exception("twice"))
        self.failed = failure(error, LOCATOR.frames(sys._getframe(1)))
        raise error

    def fail_or_not(self) -> bool:
        self.fail()
        return False

    async def fail_later(self) -> None:
        await asyncio.sleep(0)
        self.fail()

    def note(self) -> None:
        """What a handler does about it: nothing."""

    def go_on(self) -> None:
        self.swallowed = handler_of(self.failed, LOCATOR.frames(sys._getframe(1)))


# In one function.


def in_the_same_function(work: Work) -> None:
    try:
        work.fail()
    except IntegrityError:  # <- caught
        work.note()
    work.go_on()


def by_a_base_class(work: Work) -> None:
    try:
        work.fail()
    except (KeyError, SQLAlchemyError) as error:  # <- caught
        del error
    work.go_on()


def by_its_name_in_a_module(work: Work) -> None:
    try:
        work.fail()
    except exc.DBAPIError:  # <- caught
        work.go_on()


def by_a_bare_except(work: Work) -> None:
    try:
        work.fail()
    except:  # noqa: E722 # <- caught
        work.go_on()


def by_the_second_handler(work: Work) -> None:
    try:
        work.fail()
    except KeyError:
        raise
    except Exception:  # <- caught
        work.go_on()


def by_a_group(work: Work) -> None:
    try:
        work.fail()
    except* IntegrityError:  # <- caught
        work.note()
    work.go_on()


def by_the_inner_of_two(work: Work) -> None:
    try:
        try:
            work.fail()
        except IntegrityError:  # <- caught
            work.note()
        work.go_on()
    except IntegrityError:
        raise AssertionError from None


def by_the_outer_of_two(work: Work) -> None:
    try:
        try:
            work.fail()
        except KeyError:
            work.note()
        finally:
            assert work.failed
    except IntegrityError:  # <- caught
        work.go_on()


def by_the_outer_for_the_inner_raises_on(work: Work) -> None:
    try:
        try:
            work.fail()
        except IntegrityError as error:
            del error
            raise
    except SQLAlchemyError:  # <- caught
        work.go_on()


def by_the_outer_for_the_inner_raises_it_by_name(work: Work) -> None:
    try:
        try:
            work.fail()
        except IntegrityError as error:
            raise error
    except IntegrityError:  # <- caught
        work.go_on()


def under_another_name(work: Work) -> None:
    try:
        try:
            work.fail()
        except IntegrityError as error:
            raise OutOfStockError from error
    except OutOfStockError:  # <- caught
        work.go_on()


def not_by_a_handlers_own_try(work: Work) -> None:
    try:
        try:
            raise KeyError
        except KeyError:
            work.fail()
    except IntegrityError:  # <- caught
        work.go_on()


def by_suppress(work: Work) -> None:
    with suppress(IntegrityError):  # <- caught
        work.fail()
    work.go_on()


def by_suppress_among_others(work: Work) -> None:
    with contextlib.nullcontext(), contextlib.suppress(KeyError, exc.SQLAlchemyError):  # <- caught
        work.fail()
    work.go_on()


# In several.


def fail_within(work: Work) -> None:
    work.fail()


def fail_and_let_it_pass(work: Work) -> None:
    try:
        fail_within(work)
    except IntegrityError:
        raise
    except Exception:
        work.go_on()


def in_the_callers_function(work: Work) -> None:
    try:
        fail_and_let_it_pass(work)
    except IntegrityError:  # <- caught
        work.note()
    work.go_on()


def swallow(work: Work) -> None:
    try:
        fail_within(work)
    except Exception:  # <- caught
        return


def in_a_function_that_has_returned(work: Work) -> None:
    try:
        swallow(work)
        work.go_on()
    except IntegrityError:
        raise AssertionError from None


def fail_or_go_on(work: Work) -> None:
    if work.failed.sites:
        work.go_on()
    else:
        work.fail()


def in_a_loop_over_a_function_that_runs_again(work: Work) -> None:
    for _ in range(2):
        try:
            fail_or_go_on(work)
        except IntegrityError:  # <- caught
            continue


def in_a_lambda(work: Work) -> None:
    try:
        (lambda: work.fail())()
    except IntegrityError:  # <- caught
        work.go_on()


def in_a_comprehension(work: Work) -> None:
    try:
        assert not [one for one in (work, work) if one.fail_or_not()]
    except IntegrityError:  # <- caught
        work.go_on()


def not_where_the_function_is_written(work: Work) -> None:
    try:

        def later() -> None:
            work.fail()

    except IntegrityError:
        raise AssertionError from None
    try:
        later()
    except IntegrityError:  # <- caught
        work.go_on()


async def in_a_coroutine(work: Work) -> None:
    try:
        await work.fail_later()
    except IntegrityError:  # <- caught
        work.note()
    work.go_on()


async def in_a_task_that_is_awaited(work: Work) -> None:
    try:
        await asyncio.create_task(work.fail_later())
    except IntegrityError:  # <- caught
        work.note()
    work.go_on()


TOLD: list[Callable[[Work], Any]] = [
    in_the_same_function,
    by_a_base_class,
    by_its_name_in_a_module,
    by_a_bare_except,
    by_the_second_handler,
    by_a_group,
    by_the_inner_of_two,
    by_the_outer_of_two,
    by_the_outer_for_the_inner_raises_on,
    by_the_outer_for_the_inner_raises_it_by_name,
    under_another_name,
    not_by_a_handlers_own_try,
    by_suppress,
    by_suppress_among_others,
    in_the_callers_function,
    in_a_loop_over_a_function_that_runs_again,
    in_a_lambda,
    in_a_comprehension,
    not_where_the_function_is_written,
    in_a_coroutine,
    in_a_task_that_is_awaited,
]


def swallowed(how: Callable[[Work], Any]) -> CallSite | None:
    work = Work()
    running = how(work)
    if running is not None:
        asyncio.run(running)
    assert work.failed.sites
    return work.swallowed


@pytest.mark.parametrize("how", TOLD)
def test_the_line_that_swallowed_it(how: Callable[[Work], Any]) -> None:
    assert swallowed(how) == marked(how, "<- caught")


def test_the_line_of_a_function_that_has_returned() -> None:
    assert swallowed(in_a_function_that_has_returned) == marked(swallow, "<- caught")


# Where the source does not tell.


@contextmanager
def forgiving() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        del error


def by_a_context_manager(work: Work) -> None:
    try:
        with forgiving():
            work.fail()
        work.go_on()
    except IntegrityError:
        raise AssertionError from None


def by_a_constant(work: Work) -> None:
    try:
        try:
            work.fail()
        except ERRORS:
            work.go_on()
    except IntegrityError:
        raise AssertionError from None


def perhaps_under_a_base_classes_name(work: Work) -> None:
    try:
        try:
            try:
                work.fail()
            except IntegrityError as error:
                raise OutOfStockError from error
        except LookupError:
            raise AssertionError from None
    except Exception:
        work.go_on()


UNTOLD: list[Callable[[Work], Any]] = [
    by_a_context_manager,
    by_a_constant,
    perhaps_under_a_base_classes_name,
]


@pytest.mark.parametrize("how", UNTOLD)
def test_where_the_source_does_not_show_it_there_is_none(how: Callable[[Work], Any]) -> None:
    assert swallowed(how) is None


NAMES = failure(IntegrityError("INSERT", {}, Exception("twice")), []).names


@pytest.mark.parametrize("source", ["", "def broken(:\n", "a = '\\0'\n", "x\n" * 3])
def test_a_file_that_cannot_be_read(source: str, tmp_path: Any) -> None:
    file = tmp_path / "app.py"
    file.write_text(source)
    for site in CallSite(str(file), 2, "f"), CallSite("<string>", 1, "f"), CallSite("gone", 1, "f"):
        assert handler_of(Failure([site], NAMES), []) is None


def test_a_file_that_is_written_anew(tmp_path: Any) -> None:
    file = tmp_path / "app.py"
    source = "try:\n    fail()\nexcept Exception:\n    pass\n"
    failed = Failure([CallSite(str(file), 2, "<module>")], NAMES)
    file.write_text(source)
    assert handler_of(failed, []) == CallSite(str(file), 3, "<module>")
    file.write_text(source.replace("Exception", "KeyError") + "# other\n")
    assert handler_of(failed, []) is None


def test_a_function_that_begins_in_the_first_line(tmp_path: Any) -> None:
    file = tmp_path / "app.py"
    file.write_text("def f():\n    try:\n        fail()\n    except Exception:\n        pass\n")
    assert handler_of(Failure([CallSite(str(file), 3, "f")], NAMES), []) == CallSite(
        str(file), 4, "f"
    )


def test_an_error_of_no_lines() -> None:
    assert failure(None, []) == Failure([], frozenset())
    assert handler_of(failure(None, []), []) is None
