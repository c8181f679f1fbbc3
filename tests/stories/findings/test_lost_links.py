"""Stories of links to objects that are not in the session, and of links that are written."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import ForeignKey, select
from sqlalchemy.exc import SAWarning
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from session_tracer.testing import Captured, capture
from tests.good_code.silence import assert_silent
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.twins import Twin


class Base(DeclarativeBase):
    """Of tables of its own."""


class Update(Base):
    """Has builds, of which one is chosen; the choice adds nothing to the session."""

    __tablename__ = "updates"

    id: Mapped[int] = mapped_column(primary_key=True)
    builds: Mapped[list[Build]] = relationship(
        back_populates="update", foreign_keys="Build.update_id"
    )


class Build(Base):
    """Belongs to an update, and has a reviewer."""

    __tablename__ = "builds"

    id: Mapped[int] = mapped_column(primary_key=True)
    update_id: Mapped[int | None] = mapped_column(ForeignKey("updates.id"))
    reviewer_id: Mapped[int | None] = mapped_column(ForeignKey("reviewers.id"))
    update: Mapped[Update | None] = relationship(back_populates="builds")
    reviewer: Mapped[Reviewer | None] = relationship(cascade="merge")


class Reviewer(Base):
    """Knows nothing of builds."""

    __tablename__ = "reviewers"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(autouse=True)
def _warnings_are_shown() -> Iterator[None]:
    """What SQLAlchemy warns of is no error here, as in an application."""
    with warnings.catch_warnings(record=True):
        warnings.filterwarnings("always", "Object of type", SAWarning)
        yield


async def keep_builds(twin: Twin) -> None:
    async with twin.session() as session:
        session.add_all([Build(), Build()])
        await session.commit()


async def traced(twin: Twin, work: Callable[[Any], Awaitable[object]]) -> Captured:
    async with twin.session() as session:
        await session.run_sync(lambda plain: Base.metadata.create_all(plain.connection()))
        await session.commit()
    await keep_builds(twin)
    with capture(twin.factory, ignore={"discarded-changes"}) as captured:
        async with twin.session() as session:  # <- opened
            await work(session)
    return captured


async def build_of(session: Any) -> Any:
    return (await session.scalars(select(Build).order_by(Build.id).limit(1))).one()


async def links(twin: Twin) -> tuple[int | None, int | None]:
    """What is written of the first build's links."""
    async with twin.session() as session:
        build = await build_of(session)
        return build.update_id, build.reviewer_id


# What is lost.


async def link_a_new_update(session: Any) -> None:
    build = await build_of(session)
    update = Update(builds=[build])
    (await session.scalars(select(Update))).all()  # <- flushed
    await session.commit()
    del update


async def link_a_new_update_and_commit(session: Any) -> None:
    build = await build_of(session)
    update = Update(builds=[build])
    await session.commit()  # <- flushed
    del update


async def link_a_new_update_and_read_on(session: Any) -> None:
    build = await build_of(session)
    update = Update(builds=[build])
    await session.commit()  # <- flushed
    await session.refresh(build)
    KEPT.append(update)


async def collect_a_new_build(session: Any) -> None:
    update = Update()
    session.add(update)
    await session.flush()
    build = Build(update=update)
    await session.flush()  # <- flushed
    await session.commit()
    del build


async def choose_a_new_reviewer(session: Any) -> None:
    build = await build_of(session)
    build.reviewer = Reviewer()
    await session.flush()  # <- flushed
    await session.commit()


async def add_the_reviewer_too_late(session: Any) -> None:
    build = await build_of(session)
    reviewer = build.reviewer = Reviewer()
    await session.flush()  # <- flushed
    session.add(reviewer)
    await session.commit()


KEPT: list[Update] = []
LOST: dict[str, tuple[Any, str, str, str, list[str]]] = {
    "at a query": (link_a_new_update, "Update", "Build", "update", []),
    "at the commit": (link_a_new_update_and_commit, "Update", "Build", "update", []),
    "and its session is closed in a later transaction": (
        link_a_new_update_and_read_on,
        "Update",
        "Build",
        "update",
        [],
    ),
    "in a collection": (collect_a_new_build, "Build", "Update", "builds", []),
    "without a cascade": (
        choose_a_new_reviewer,
        "Reviewer",
        "Build",
        "reviewer",
        ['relationship(cascade="save-update, merge") for Build.reviewer'],
    ),
    "of one side, and added too late": (
        add_the_reviewer_too_late,
        "Reviewer",
        "Build",
        "reviewer",
        ['relationship(cascade="save-update, merge") for Build.reviewer'],
    ),
}


@pytest.mark.parametrize(
    ("work", "missing", "holder", "attribute", "others"), LOST.values(), ids=LOST
)
def test_a_link_that_is_committed_without_its_object_is_reported(
    twin: Twin, work: Any, missing: str, holder: str, attribute: str, others: list[str]
) -> None:
    async def story() -> None:
        captured = await traced(twin, work)
        flushed = marked(work, "<- flushed")
        unsaved = f"leave the link out, if the {missing} is not to be saved"
        assert_found(
            captured,
            Due(
                id="lost-link",
                site=flushed,
                opened=marked(traced, "<- opened"),
                remedy=f"session.add({missing.lower()}) "
                + ("where it is linked" if work is link_a_new_update else f"before {flushed}"),
                entity=holder,
                attribute=attribute,
                evidence={"missing": missing, "alternatives": [*others, unsaved]},
            ),
        )
        (finding,) = captured.findings
        assert finding.severity == "warning"
        assert finding.message == (
            f"the {missing} object was not in the session, "
            f"so its link in {holder}.{attribute} was not written"
        )
        assert await links(twin) == (None, None)

    twin.run(story)


async def take_out_what_is_not_there(session: Any) -> None:
    update = Update(builds=[Build(), Build()])
    session.add(update)
    await session.commit()
    await session.refresh(update, ["builds"])
    build = update.builds[0]
    session.expunge(build)
    update.builds.remove(build)
    await session.commit()  # <- flushed


def test_a_build_that_is_taken_out_after_it_was_expunged_is_reported(twin: Twin) -> None:
    async def story() -> None:
        captured = await traced(twin, take_out_what_is_not_there)
        (finding,) = captured.findings
        assert finding.message == (
            "the Build object was not in the session, "
            "so its removal from Update.builds was not written"
        )
        assert finding.site == marked(take_out_what_is_not_there, "<- flushed")

    twin.run(story)


# The remedies, and links that are written after all.


async def add_the_update(session: Any) -> None:
    build = await build_of(session)
    update = Update(builds=[build])
    session.add(update)
    (await session.scalars(select(Update))).all()
    await session.commit()


async def add_the_update_after_the_warning(session: Any) -> None:
    build = await build_of(session)
    update = Update(builds=[build])
    (await session.scalars(select(Update))).all()
    session.add(update)
    await session.commit()


async def add_the_update_after_a_commit(session: Any) -> None:
    build = await build_of(session)
    update = Update(builds=[build])
    for _ in range(3):
        (await session.scalars(select(Update))).all()
        await session.commit()
        await session.refresh(build)
    session.add(update)
    await session.commit()
    del update


async def add_the_update_and_the_reviewer(session: Any) -> None:
    build = await build_of(session)
    update, reviewer = Update(builds=[build]), Reviewer()
    build.reviewer = reviewer
    session.add_all([update, reviewer])
    await session.commit()


@pytest.mark.parametrize(
    ("work", "written"),
    [
        (add_the_update, (1, None)),
        (add_the_update_after_the_warning, (1, None)),
        (add_the_update_after_a_commit, (1, None)),
        (add_the_update_and_the_reviewer, (1, 1)),
    ],
    ids=lambda work: getattr(work, "__name__", None),
)
def test_a_link_that_is_written_is_not_reported(
    twin: Twin, work: Any, written: tuple[int | None, int | None]
) -> None:
    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=1)
        assert await links(twin) == written

    twin.run(story)


async def roll_it_all_back(session: Any) -> None:
    build = await build_of(session)
    update = Update(builds=[build])
    await session.flush()
    await session.rollback()
    del update


async def close_without_a_commit(session: Any) -> None:
    build = await build_of(session)
    update = Update(builds=[build])
    (await session.scalars(select(Update))).all()
    del update


async def take_out_what_was_never_written(session: Any) -> None:
    update = Update()
    session.add(update)
    await session.commit()
    await session.refresh(update, ["builds"])
    build = Build()
    update.builds.append(build)
    session.expunge(build)
    update.builds.remove(build)
    await session.commit()


@pytest.mark.parametrize(
    "work",
    [roll_it_all_back, close_without_a_commit, take_out_what_was_never_written],
    ids=lambda work: work.__name__,
)
def test_where_no_link_is_lost_nothing_is_reported(twin: Twin, work: Any) -> None:
    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=1)

    twin.run(story)


async def link_and_look_at_several_lines(session: Any) -> None:
    first, second = (await session.scalars(select(Build).order_by(Build.id))).all()
    updates = [Update(builds=[first])]
    (await session.scalars(select(Update))).all()  # <- flushed
    updates.append(Update(builds=[second]))
    (await session.scalars(select(Update))).all()
    await session.commit()
    del updates


def test_a_link_that_several_lines_have_left_out_is_reported_once(twin: Twin) -> None:
    async def story() -> None:
        captured = await traced(twin, link_and_look_at_several_lines)
        assert [(finding.id, finding.site) for finding in captured.findings] == [
            ("lost-link", marked(link_and_look_at_several_lines, "<- flushed"))
        ]

    twin.run(story)


# The application's own warnings.


@pytest.mark.parametrize(
    ("ignored", "is_expected"),
    [
        ({"message": "Object of type .* not in session"}, True),
        ({"category": SAWarning}, True),
        ({"message": "Object of type", "module": ".*"}, True),
        ({"message": "Object of type", "module": "elsewhere"}, False),
        ({"message": "Another warning"}, False),
        ({"category": RuntimeWarning}, False),
        ({}, False),
    ],
    ids=str,
)
def test_what_the_application_does_not_want_to_be_warned_of_is_expected(
    twin: Twin, ignored: dict[str, Any], is_expected: bool
) -> None:
    async def story() -> None:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", **ignored)
            captured = await traced(twin, link_a_new_update)
        assert [finding.id for finding in captured.findings] == (
            [] if is_expected else ["lost-link"]
        )

    twin.run(story)


def test_the_warning_is_the_applications_as_before(twin: Twin) -> None:
    async def story() -> None:
        shown: list[list[tuple[Any, ...]]] = []
        for is_traced in (False, True):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if is_traced:
                    await traced(twin, link_a_new_update_and_commit)
                else:
                    await keep_builds(twin)
                    async with twin.session() as session:
                        await link_a_new_update_and_commit(session)
            shown.append([(w.category, str(w.message), w.filename, w.lineno) for w in caught])
        untraced, while_traced = shown
        assert while_traced == untraced
        assert len(untraced) == 1

    async def prepared() -> None:
        async with twin.session() as session:
            await session.run_sync(lambda plain: Base.metadata.create_all(plain.connection()))
            await session.commit()
        await story()

    twin.run(prepared)


def test_a_warning_that_is_an_error_is_raised_and_no_link_is_committed(twin: Twin) -> None:
    async def work(session: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build = await build_of(session)
            update = Update(builds=[build])
            with pytest.raises(SAWarning, match="not in session"):
                await session.flush()
            await session.rollback()
            del update

    async def story() -> None:
        captured = await traced(twin, work)
        assert [finding.id for finding in captured.findings if finding.id == "lost-link"] == []

    twin.run(story)
