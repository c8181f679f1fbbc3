"""That a session that a test leaves open, in a transaction, is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

LEAVES = """
LEFT = []

@pytest.fixture
def left_by_a_fixture(SessionLocal):
    session = SessionLocal()  # opened by a fixture
    session.connection()  # begun by a fixture
    LEFT.append(session)

def test_leaves_it(SessionLocal):
    session = SessionLocal()  # opened by a test
    first(SessionLocal)
    LEFT.append(session)
    session.connection()  # begun by a test

def test_its_fixture_leaves_it(left_by_a_fixture):
    pass
"""

ENDS = """
KEPT = []

@pytest.fixture(scope="module")
def shared_in_use(SessionLocal):
    with SessionLocal() as session:
        session.connection()
        yield session

@pytest.fixture(scope="class")
def of_a_class(SessionLocal):
    with SessionLocal() as session:
        session.connection()
        yield session

@pytest.fixture
def closed_by_its_fixture(SessionLocal):
    with SessionLocal() as session:
        yield session

@pytest.fixture
def closer():
    opened = []
    yield opened.append
    for session in opened:
        session.close()

def test_of_the_module(shared_in_use):
    shared_in_use.connection()

class TestOfTheClass:
    def test_one(self, of_a_class):
        of_a_class.connection()

    def test_two(self, of_a_class):
        of_a_class.connection()

def test_a_fixture_closes_it(closed_by_its_fixture, closer, SessionLocal):
    closed_by_its_fixture.connection()
    session = SessionLocal()
    closer(session)
    session.connection()

def test_it_is_in_no_transaction(SessionLocal):
    KEPT.append(SessionLocal())
    KEPT.append(SessionLocal())
    commit(KEPT[-1])

def test_it_closes_it(SessionLocal):
    first(SessionLocal)
"""


def test_it_is_reported_with_where_it_was_opened(suites: Suites) -> None:
    run = suites.run_source(LEAVES, "--session-tracer=error")
    assert set(run.outcomes.values()) == {"passed"}
    assert run.summary == [
        (
            f"left-open   {suites.at('# opened by a fixture')}   "
            "1 test (test_library.py::test_its_fixture_leaves_it, teardown)"
        ),
        (
            "    a session was still open after its test, in a transaction begun at "
            f"{suites.at('# begun by a fixture')} in left_by_a_fixture()"
        ),
        "    write with SessionLocal() as session:",
        '    allow @pytest.mark.session_allow("left-open@test_library.py", reason="...")',
        (
            f"left-open   {suites.at('# opened by a test')}   "
            "1 test (test_library.py::test_leaves_it, teardown)"
        ),
        (
            "    a session was still open after its test, in a transaction begun at "
            f"{suites.at('# begun by a test')} in test_leaves_it()"
        ),
        "    write with SessionLocal() as session:",
        '    allow @pytest.mark.session_allow("left-open@test_library.py", reason="...")',
        "2 findings in 4 sessions",
    ]


def test_a_session_that_is_bound_to_a_connection_is_not_left_open(suites: Suites) -> None:
    run = suites.run_source(
        """
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

KEPT = []

def test_binds_one_to_another_ones(session):
    KEPT.append(Session(bind=session.connection()))
    KEPT[-1].scalars(select(Author)).all()

def test_binds_one_to_a_connection(SessionLocal):
    with SessionLocal.kw["bind"].connect() as connection:
        KEPT.append(Session(bind=connection))
        KEPT[-1].scalars(select(Author)).all()

def test_binds_one_to_an_engine(SessionLocal):
    KEPT.append(Session(bind=SessionLocal.kw["bind"]))
    KEPT[-1].scalars(select(Author)).all()

def test_binds_one_to_a_connection_and_an_engine(session):
    KEPT.append(create_engine("sqlite://", poolclass=StaticPool))
    KEPT.append(Session(binds={Author: session.connection(), Book: KEPT[-1]}))
    KEPT[-1].scalars(select(Author)).all()
    KEPT[-1].connection(bind_arguments={"mapper": Book})
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_binds_one_to_another_ones": "passed",
        "test_binds_one_to_a_connection": "passed",
        "test_binds_one_to_an_engine": "teardown error",
        "test_binds_one_to_a_connection_and_an_engine": "teardown error",
    }


def test_it_is_at_the_line_that_first_used_what_a_generator_opened(suites: Suites) -> None:
    run = suites.run_source(
        """
KEPT = []

def get_db(SessionLocal):
    yield SessionLocal()

def test_leaves_it(SessionLocal):
    KEPT.append(get_db(SessionLocal))
    session = next(KEPT[-1])
    session.connection()  # used first
""",
        "--session-tracer=report",
    )
    assert run.summary[0].startswith(f"left-open   {suites.at('# used first')}   ")


HUB: Final = """
from sqlalchemy import select
from sqlalchemy.orm import Session, scoped_session

KEPT = []

class Hub:
    current = None

    def __init__(self, maker):
        self.maker = maker

    def start(self):
        self.session = self.maker()  # opened
        self.session.connection()

    def look(self):
        self.session.execute(select(1))

class Registered(Hub):
    def __init__(self, maker):
        self.maker = scoped_session(maker)

    def end(self):
        self.session.close()

def forget(maker):
    hub = Hub(maker)
    hub.itself = hub
    hub.start()

def leak(maker):
    KEPT.append(maker())  # leaked
    KEPT[-1].connection()

def get_db(maker):
    session = maker()
    try:
        yield session
    finally:
        session.close()

def ask(maker):
    KEPT.append(get_db(maker))
    next(KEPT[-1]).connection()  # asked
"""


def test_what_the_application_opens_for_the_tests_is_at_their_line(suites: Suites) -> None:
    (suites.folder / "hub.py").write_text(HUB)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from hub import Hub, ask, forget, leak
from tests.stories.findings.due import look_ahead

@pytest.fixture
def hub(SessionLocal):
    hub = Hub(SessionLocal)
    hub.start()  # for the fixture
    hub.session.scalars(select(Author)).all()
    return hub

@pytest.fixture
def quiet_hub(SessionLocal):
    hub = Hub(SessionLocal)
    hub.start()  # for the quiet fixture
    return hub

def test_has_a_hub(hub):
    hub.look()
    look_ahead(3600)

def test_has_a_hub_that_only_the_application_uses(quiet_hub):
    quiet_hub.look()

def test_starts_a_hub(SessionLocal):
    hub = Hub(SessionLocal)
    hub.itself = hub
    hub.start()  # for the test
    hub.look()
    hub.session.scalars(select(Author)).all()

def test_stops_its_hub(hub):
    hub.session.close()

def test_of_code_that_leaks(SessionLocal):
    with SessionLocal() as session:
        session.scalars(select(Author)).all()
    leak(SessionLocal)

def test_of_code_that_forgets_a_generator(SessionLocal):
    ask(SessionLocal)

def test_of_code_that_forgets_what_has_the_session(SessionLocal):
    forget(SessionLocal)
""",
        "--session-tracer=report",
    )
    found = [line.split()[:2] for line in run.summary if line.startswith("left-open")]
    assert (
        sorted(found)
        == [
            ["left-open", "hub.py:14"],  # by forget()
            ["left-open", f"hub.py:{HUB[: HUB.index('# leaked')].count(chr(10)) + 1}"],
            ["left-open", f"hub.py:{HUB[: HUB.index('# asked')].count(chr(10)) + 1}"],
            ["left-open", suites.at("# for the fixture")],
            ["left-open", suites.at("# for the quiet fixture")],
            ["left-open", suites.at("# for the test")],
        ]
    )
    assert [line for line in run.summary if line.startswith("    write")] == [
        *["    write with SessionLocal() as session:"] * 3,
        *["    write session.close()  # at the end of the test or its fixture"] * 3,
    ]
    assert run.summary[-1].startswith("6 findings")


def test_what_other_objects_keep_for_longer_than_a_test_is_left_to_them(suites: Suites) -> None:
    (suites.folder / "hub.py").write_text(HUB)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
import hub
from hub import Hub, Registered
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import StaticPool

class Container:
    pass

@pytest.fixture(scope="module")
def shared_hub(SessionLocal):
    return Hub(SessionLocal)

@pytest.fixture(scope="class")
def registered(SessionLocal):
    container = Container()
    container.parts = {"hub": Registered(SessionLocal)}
    yield container

def test_of_a_wider_fixture(shared_hub):
    shared_hub.start()
    shared_hub.look()

def test_of_the_application(SessionLocal):
    Hub.current = Hub(SessionLocal)
    Hub.current.start()

def test_of_a_registry_that_is_gone(SessionLocal):
    registered = Registered(SessionLocal)
    registered.start()
    hub.KEPT.append(registered.session.query(Author))
    del registered.maker, registered.session

def test_of_a_module(SessionLocal):
    hub.session = SessionLocal()
    hub.session.connection()

class TestRegistered:
    def test_opens_it(self, registered):
        registered.parts["hub"].start()

    @pytest.mark.parametrize("_", range(4))
    def test_uses_it_again(self, registered, _):
        registered.parts["hub"].end()
        registered.parts["hub"].look()

@pytest.mark.asyncio(loop_scope="module")
class TestAsync:
    async def test_opens_it(self):
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        Hub.current = Hub(async_sessionmaker(engine))
        Hub.current.session = Hub.current.maker()
        await Hub.current.session.execute(select(1))

    async def test_closes_it(self):
        await Hub.current.session.close()
        await Hub.current.maker.kw["bind"].dispose()
""",
        "--session-tracer=report",
    )
    assert set(run.outcomes.values()) == {"passed"}
    assert run.summary == []


def test_a_session_that_a_registry_keeps_is_left_to_the_registry_to_remove(suites: Suites) -> None:
    run = suites.run_source(
        """
from sqlalchemy.orm import scoped_session

@pytest.fixture
def registry(SessionLocal):
    return scoped_session(SessionLocal)

def test_leaves_it(registry):
    registry.connection()

def test_leaves_what_it_has_taken_from_it(registry):
    registry().connection()

def test_removes_it(registry):
    registry.connection()
    registry.remove()
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_leaves_it": "teardown error",
        "test_leaves_what_it_has_taken_from_it": "teardown error",
        "test_removes_it": "passed",
    }
    shown = run.reports["test_leaves_it"]["teardown"].longreprtext
    assert "Session.remove()  # at the end of the test or its fixture" in shown
    assert "with SessionLocal()" not in shown


def test_it_fails_the_teardown_where_warnings_do(suites: Suites) -> None:
    run = suites.run_source(LEAVES, "--session-tracer=warning")
    assert run.outcomes == {
        "test_leaves_it": "teardown error",
        "test_its_fixture_leaves_it": "teardown error",
    }
    shown = run.reports["test_leaves_it"]["teardown"].longreprtext
    assert shown.startswith(f"session finding: left-open ({suites.at('# opened by a test')})\n")


def test_a_session_that_is_closed_is_not_left_open(suites: Suites) -> None:
    run = suites.run_source(ENDS, "--session-tracer=info")
    assert set(run.outcomes.values()) == {"passed"}
    assert run.summary == []


def test_a_session_that_was_left_open_is_not_reported_as_collected_too(suites: Suites) -> None:
    run = suites.run_source(
        """
import gc

def test_leaves_it(SessionLocal):
    session = SessionLocal()
    session.connection()
    session.itself = session

def test_collects():
    gc.collect()
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {"test_leaves_it": "teardown error", "test_collects": "passed"}
    assert [line.split()[0] for line in run.summary if not line.startswith(" ")] == [
        "left-open",
        "1",
    ]


def test_what_a_failed_test_could_not_close_is_not_reported(suites: Suites) -> None:
    run = suites.run_source(
        """
import gc
from tests.stories.findings.due import look_ahead

KEPT = []

@pytest.fixture
def broken(SessionLocal):
    session = SessionLocal()
    session.connection()
    raise LookupError

def test_fails(SessionLocal):
    session = SessionLocal()
    session.connection()
    assert session is None

def test_whose_fixture_fails(broken): ...

@pytest.mark.xfail
def test_is_expected_to_fail(SessionLocal):
    session = SessionLocal()
    session.connection()
    assert session is None

def test_later(SessionLocal):
    look_ahead(3600)

def test_leaves_it(SessionLocal):
    session = SessionLocal()
    session.connection()  # left
    KEPT.append(session)

def test_later_again():
    look_ahead(3600)
    KEPT.clear()
    gc.collect()
""",
        "--session-tracer=report",
    )
    assert set(run.outcomes.values()) == {"failed", "setup error", "xfailed", "passed"}
    assert [line.split()[0] for line in run.summary if not line.startswith(" ")] == [
        "left-open",
        "1",
    ]
    assert "test_leaves_it" in run.summary[0]


def test_nothing_is_reported_without_an_option(suites: Suites) -> None:
    run = suites.run_source(
        LEAVES.replace("def test_leaves_it(", "def test_leaves_it(session_trace, ")
    )
    assert set(run.outcomes.values()) == {"passed"}
    assert run.summary == []
