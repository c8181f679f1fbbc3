"""Which findings are one for the person who reads them, and how they are joined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from session_tracer import Finding
from session_tracer.exporters.finding_block import finding_block
from session_tracer.exporters.joined import joined
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


def test_an_option_that_goes_on_has_its_first_step() -> None:
    nested = (
        "select(Author).options(selectinload(Author.books).joinedload(Book.shelf)) at views.py:7"
    )
    (one,) = joined([found(), found("shelf", "Book", remedy=nested)])
    assert one.remedy == nested


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
