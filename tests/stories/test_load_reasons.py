"""Stories of why a load was needed: the attribute, the class it is of, and where it all began."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import immediateload, selectinload

from session_tracer.facts import AttributeLoaded, StatementExecuted
from session_tracer.testing import capture
from tests.library import keep
from tests.stories.findings.mappings import (
    Badge,
    Company,
    Employee,
    Engineer,
    Manager,
    Office,
    Part,
    Plant,
    Truck,
    Vehicle,
    tables,
)
from tests.stories.lines import line

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from tests.twins import Twin


def staff() -> list[Any]:
    badges = [Badge()]
    return [
        Company(staff=[Manager(office=Office(plants=[Plant()])), Engineer(badges=badges)]),
        Truck(load=1, axles=2),
        Part(parts=[Part(parts=[Part()])]),
    ]


async def loads(twin: Twin, work: Callable[[Session], object]) -> list[AttributeLoaded]:
    """What is loaded for the attributes of single objects."""
    async with tables(twin):
        await keep(twin, *staff())
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.run_sync(work)
    return [fact for fact in captured.facts if isinstance(fact, AttributeLoaded)]


def read_columns_of_subclasses(session: Session) -> None:
    manager = session.scalars(select(Employee).where(Employee.kind == "manager")).one()
    assert isinstance(manager, Manager)
    assert manager.budget == 0
    truck = session.scalars(select(Vehicle)).one()
    assert isinstance(truck, Truck)
    assert truck.load == 1


def test_columns_that_a_select_of_the_base_class_leaves_out(twin: Twin) -> None:
    async def story() -> None:
        captured = await loads(twin, read_columns_of_subclasses)
        assert [
            (fact.kind, fact.entity, fact.attribute, fact.left_out, fact.expired_by)
            for fact in captured
        ] == [
            ("deferred", "Manager", "budget, office_id", True, ""),
            ("deferred", "Truck", "axles, load", True, ""),
        ]

    twin.run(story)


def read_expired_columns(session: Session) -> None:
    manager = session.scalars(select(Employee).where(Employee.kind == "manager")).one()
    assert isinstance(manager, Manager)
    session.commit()
    assert manager.budget == 0


def test_columns_that_a_commit_expired_are_not_left_out(twin: Twin) -> None:
    async def story() -> None:
        captured = await loads(twin, read_expired_columns)
        assert {(fact.kind, fact.left_out, fact.expired_by) for fact in captured} == {
            ("expired", False, "commit")
        }

    twin.run(story)


def read_what_they_share(session: Session) -> None:
    for employee in session.scalars(select(Employee).order_by(Employee.id)):
        assert len(employee.badges) < 2
        assert employee.diary == ""


def test_what_is_mapped_on_the_base_class_is_named_by_it(twin: Twin) -> None:
    async def story() -> None:
        captured = await loads(twin, read_what_they_share)
        assert [(fact.kind, fact.entity, fact.attribute) for fact in captured] == [
            ("relationship", "Employee", "badges"),
            ("deferred", "Employee", "diary"),
        ] * 2
        assert len({fact.parent for fact in captured}) == 2

    twin.run(story)


def read_three_relationships(session: Session) -> None:
    company = session.scalars(select(Company)).one()
    manager, *_ = company.staff
    assert isinstance(manager, Manager)
    office = manager.office
    assert office is not None
    assert len(office.plants) == 1
    session.expire_all()
    session.scalars(select(Office)).all()
    assert len(office.plants) == 1


def test_where_an_object_was_loaded_and_where_that_began(twin: Twin) -> None:
    async def story() -> None:
        captured = await loads(twin, read_three_relationships)
        captured = [fact for fact in captured if fact.kind == "relationship"]
        selected = "company = session.scalars(select(Company)).one()"
        of_staff, of_office = "manager, *_ = company.staff", "office = manager.office"
        assert [
            (fact.attribute, line(fact.loaded_site), line(fact.root_site)) for fact in captured
        ] == [
            ("staff", selected, selected),
            ("office", of_staff, selected),
            ("plants", of_office, selected),
            ("plants", of_office, selected),
        ]
        assert {fact.root for fact in captured} == {"Company"}

    twin.run(story)


def read_deep(session: Session) -> None:
    part = session.scalars(select(Part).where(Part.whole_id.is_(None))).one()
    while part.parts:
        part = part.parts[0]


def test_a_relationship_to_itself_begins_where_the_first_was_selected(twin: Twin) -> None:
    async def story() -> None:
        captured = await loads(twin, read_deep)
        selected = "part = session.scalars(select(Part).where(Part.whole_id.is_(None))).one()"
        assert [line(fact.root_site) for fact in captured] == [selected] * 3
        again = "selectinload(Part.parts, recursion_depth=-1)"
        assert [fact.options for fact in captured] == ["selectinload(Part.parts)", again, again]

    twin.run(story)


@pytest.mark.parametrize("eagerly", [immediateload, selectinload])
def test_what_is_loaded_with_its_object_is_for_no_single_one(twin: Twin, eagerly: Any) -> None:
    query = select(Employee).options(eagerly(Employee.badges))

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *staff())
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    await session.run_sync(lambda plain: plain.scalars(query).all())
        executed = [fact for fact in captured.facts if isinstance(fact, StatementExecuted)]
        assert {fact.eager for fact in executed[1:]} == {"Employee.badges"}
        assert not [fact for fact in captured.facts if isinstance(fact, AttributeLoaded)]

    twin.run(story)
