"""Which findings are one for the person who reads them, and how they are joined."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from session_tracer import CallSite, Finding
from session_tracer.exporters.finding_block import finding_block
from session_tracer.exporters.joined import TOGETHER, groups, join, remedies
from session_tracer.model.totals import Tally, Total
from tests.detectors.feeding import at
from tests.library import Author, authors, keep
from tests.stories.findings.reading import tell
from tests.stories.findings.remedies import pasted, to_write

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from tests.twins import Twin

LINE, OTHER, LOOP = at(9), at(12), str(at(8))


def found(attribute: str = "books", entity: str = "Author", **values: Any) -> Finding:
    values = {
        "id": "n-plus-one",
        "severity": "warning",
        "message": f"{entity}.{attribute} was lazily loaded",
        "remedy": f"select({entity}).options(selectinload({entity}.{attribute})) at views.py:7",
        "site": LINE,
        "session_id": "1",
        "session_name": "default",
        "session_site": None,
        "entity": entity,
        "attribute": attribute,
        **values,
    }
    return Finding(**values)


def joined(findings: list[Finding]) -> list[Finding]:
    return [join(group) for group in groups(findings, lambda one: one)]


def test_several_attributes_of_one_line_are_one_finding() -> None:
    options = [f"selectinload(Author.{name})" for name in ("books", "awards", "letters")]
    both = joined([found(), found("awards"), found("letters")])
    assert [(one.message, one.remedy, one.attribute) for one in both] == [
        (
            "Author.books was lazily loaded; also Author.awards, Author.letters",
            f"select(Author).options({', '.join(options)}) at views.py:7",
            None,
        )
    ]


def test_several_lines_of_one_loop_are_one_finding() -> None:
    looped: dict[str, Any] = {"evidence": {"loop": LOOP}}
    (one,) = joined([found(**looped), found("awards", site=OTHER, **looped)])
    assert one.message.endswith(f"; also Author.awards at {OTHER.path}:12")


def test_what_one_line_does_in_two_loops_has_to_be_changed_in_both() -> None:
    looped: dict[str, Any] = {"evidence": {"loop": LOOP}}
    elsewhere: dict[str, Any] = {"evidence": {"loop": str(at(3))}, "session_id": "2"}
    letters, awards = joined(
        [found("letters", **elsewhere), found("awards", site=OTHER, **looped), found(**looped)]
    )
    assert letters.message == "Author.letters was lazily loaded"
    assert awards.message.startswith("Author.awards was lazily loaded; also Author.books at ")


def test_the_line_of_one_and_the_loop_of_another_join_them() -> None:
    looped: dict[str, Any] = {"evidence": {"loop": LOOP}}
    (one,) = joined(
        [
            found("letters", session_id="2", **looped),
            found("awards", site=OTHER, **looped),
            found(**looped),
        ]
    )
    assert (
        one.message
        == f"Author.letters was lazily loaded; also Author.awards at {OTHER.path}:12, Author.books"
    )


def test_an_option_that_goes_on_has_its_first_step() -> None:
    nested = (
        "select(Author).options(selectinload(Author.books).joinedload(Book.shelf)) at views.py:7"
    )
    (one,) = joined([found(), found("shelf", "Book", remedy=nested)])
    assert one.remedy == nested


def test_one_select_of_each_class_is_one_remedy() -> None:
    queries = [
        found("", entity, id="query-in-loop", remedy=f"run one SELECT of {entity} with a join")
        for entity in ("Author", "Book", "Shelf")
    ]
    (one,) = joined(queries)
    assert one.remedy == "run one SELECT of each of Author, Book, Shelf with a join"
    assert TOGETHER not in one.evidence
    assert remedies([*queries, found()]) == [found().remedy, one.remedy]


def test_remedies_that_are_no_option_of_one_statement_stand_below_one_another() -> None:
    (one,) = joined([found(), found("shelf", "Book")])
    text = "\n".join(line.plain for line in finding_block(one, 100))
    written, further = (
        f"{label}  select({entity}).options(selectinload({entity}.{attribute})) at views.py:7"
        for label, entity, attribute in (("write", "Author", "books"), ("and", "Book", "shelf"))
    )
    spaced = " ".join(text.split())
    assert " ".join(written.split()) + " " + " ".join(further.split()) in spaced


def test_their_totals_are_added_up() -> None:
    tallies = [Tally(), Tally()]
    for tally in tallies:
        tally.add(1_000_000)
    one, other = (Total("SELECT", tally) for tally in tallies)
    (both,) = joined([found(total=one), found("awards", total=other)])
    assert both.total is not None
    assert (both.total.count, both.total.ms, both.total.noun) == (2, 2.0, "SELECT")


def committed(site: CallSite = LINE, loop: str = LOOP, **values: Any) -> Finding:
    values = {"id": "commit-in-loop", "message": "a line committed", "remedy": "commit()", **values}
    return found(attribute="", site=site, evidence={"loop": loop}, **values)


def refreshed(commit: CallSite = LINE, loop: str = LOOP, **values: Any) -> Finding:
    evidence = {"loop": loop, "committed_at": str(commit)}
    values = {
        "id": "refresh-after-write",
        "severity": "info",
        "remedy": "remove refresh()",
        **values,
    }
    return found(attribute="", site=OTHER, evidence=evidence, **values)


@pytest.mark.parametrize("loops", [(LOOP, LOOP), (str(LINE), str(OTHER))], ids=["helper", "itself"])
@pytest.mark.parametrize("order", [1, -1])
def test_what_is_refreshed_after_a_commit_in_a_loop_is_the_commits(
    loops: tuple[str, str], order: int
) -> None:
    both = [refreshed(loop=loops[1]), committed(loop=loops[0])][::order]
    (one,) = joined(both)
    assert (one.id, one.severity, one.remedy) == ("commit-in-loop", "warning", "commit()")
    assert one.message == f"a line committed; also refresh-after-write of Author at {OTHER.path}:12"
    assert one.evidence[TOGETHER] == ["remove refresh()"]


def test_the_commits_of_a_loop_are_added_up_without_what_follows_from_them() -> None:
    tallies = [Tally(), Tally(), Tally()]
    for tally in tallies:
        tally.add(1_000_000)
    commit, other, select_ = map(Total, ("commit", "commit", "SELECT"), tallies)
    findings = [refreshed(total=select_), committed(total=commit), committed(at(30), total=other)]
    (one,) = joined(findings)
    assert one.total is not None
    assert (one.total.count, one.total.noun) == (2, "commit")
    named = f"Author at {LINE.path}:30, refresh-after-write of Author at {LINE.path}:12"
    assert one.message == f"a line committed; also {named}"


def test_what_is_reloaded_after_each_commit_of_a_loop_is_the_commits() -> None:
    reloaded = refreshed(id="reload-after-commit", severity="warning", remedy="select()")
    (one,) = joined([reloaded, committed()])
    assert (one.id, one.remedy, one.evidence[TOGETHER]) == (
        "commit-in-loop",
        "commit()",
        ["select()"],
    )


def test_lines_of_a_loop_that_one_session_of_many_has_run() -> None:
    seen = [committed(), replace(committed(at(30)), session_id="2")]
    sessions = {LINE: ["1", "2", "3"], at(30): ["2"]}
    assert len(groups(seen, lambda one: one)) == 2
    assert len(groups(seen, lambda one: one, lambda one: sessions[one.site or LINE])) == 1
    assert len(groups(seen, lambda one: one, lambda one: [str(one.site)])) == 2


def test_options_that_come_before_an_attribute_is_read_are_one_remedy() -> None:
    place = "before Author.books is read"
    both = [found(remedy=f"select(Author).options({n}) {place}", attribute=n) for n in ("a", "b")]
    assert remedies(both) == [f"select(Author).options(a, b) {place}"]


def test_what_no_commit_in_a_loop_has_made_necessary() -> None:
    flushed = replace(refreshed(), evidence={"loop": LOOP, "flushed_at": str(LINE)})
    elsewhere = CallSite(LINE.file, 8, "elsewhere")
    apart = [
        committed(),
        flushed,
        replace(refreshed(commit=at(40)), site=at(41), session_id="2"),
        replace(refreshed(loop=str(elsewhere)), site=at(42)),
        replace(refreshed(work="GET /authors"), site=at(43)),
    ]
    assert len(joined(apart)) == len(apart)


def test_what_is_not_one_mistake() -> None:
    apart = [
        found(),
        found(site=OTHER),
        found("awards", work="GET /authors"),
        found("letters", site=at(20), evidence={"loop": LOOP}),
        found("letters", site=at(21), evidence={"loop": LOOP}, session_id="2"),
        found("awards", id="get-in-loop"),
        found(site=None),
        found("awards", site=None),
        found(id="large-flush"),
        found("awards", id="large-flush"),
    ]
    assert joined(apart) == apart


def keep_each(session: Session) -> None:
    for number in range(12):
        author = Author(name=f"new {number}")
        session.add(author)
        session.commit()
        session.refresh(author)


def keep_all(session: Session) -> None:
    session.add_all([Author(name=f"kept {number}") for number in range(12)])
    session.commit()


def test_one_commit_after_the_loop_cures_both(twin: Twin) -> None:
    async def story() -> None:
        told = await tell(twin, keep_each)
        assert [one.id for one in told.findings] == ["refresh-after-write", "commit-in-loop"]
        (one,) = joined(told.findings)
        assert (one.id, one.count) == ("commit-in-loop", 10)
        assert (await tell(twin, keep_all)).findings == []

    twin.run(story)


def read_all(session: Session, *options: Any) -> None:
    for author in session.scalars(select(Author).options(*options)).all():
        assert (author.biography, len(author.books)) == ("", 1)  # two attributes


def test_the_joined_remedy_cures(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        told = await tell(twin, read_all)
        assert [one.attribute for one in told.findings] == ["biography", "books"]
        (one,) = joined(told.findings)
        options = pasted(to_write(one))._with_options
        assert (await tell(twin, lambda session: read_all(session, *options))).findings == []

    twin.run(story)
