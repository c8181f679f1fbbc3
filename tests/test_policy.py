"""Tests which findings are reported, how severe, and which are raised."""

from __future__ import annotations

import ast
import gc
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

import session_tracer.detectors
from session_tracer import (
    DEFAULT_DETECTORS,
    CallSite,
    Exporter,
    Finding,
    Retraction,
    Settings,
    instrument,
    silence,
)
from session_tracer import facts as what
from session_tracer.model.findings import FINDING_IDS, Severity
from session_tracer.testing import capture
from session_tracer.verdicts.baseline import empty, write
from session_tracer.verdicts.policy import Policy
from tests.detectors.feeding import PlayedScope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report

HERE = CallSite(str(Path.cwd() / "shop" / "jobs" / "report.py"), 33, "totals")
ELSEWHERE = CallSite("/srv/till/report.py", 7, "<module>")


class Own:
    """A detector of an application's own."""

    facts: tuple[type[Fact], ...] = ()

    def memory(self) -> None: ...

    def judge(self, fact: Fact, report: Report, memory: None) -> Iterable[Finding]:
        return ()


def found(
    id_: str = "n-plus-one",
    site: CallSite | None = HERE,
    severity: Any = "warning",
    entity: str | None = "Author",
    attribute: str | None = "books",
) -> Finding:
    return Finding(
        id=id_,
        severity=severity,
        message="it is so",
        remedy="leave it",
        site=site,
        session_id="0123456789abcdef",
        session_name="default",
        session_site=None,
        entity=entity,
        attribute=attribute,
    )


def ruled(finding: Finding, *, silenced: frozenset[str] = frozenset(), **options: Any) -> Any:
    report = PlayedScope([]).report
    report.silenced = silenced
    return Policy(Settings(**options), DEFAULT_DETECTORS).rule(finding, report)


@pytest.mark.parametrize(
    "ignored",
    [
        "n-plus-one",
        "*",
        "n-plus-one@shop/jobs/report.py",
        "n-plus-one@shop/*",
        "n-plus-one@*/report.py",
        "n-plus-one@shop/[ij]obs/repor?.py",
        f"n-plus-one@{Path.cwd()}/shop/*",
        "*@shop/jobs/*",
        "n-plus-one:Author",
        "n-plus-one:Author.books",
        "*:Author",
        "*:Author.books",
    ],
)
def test_what_is_ignored_is_not_reported(ignored: str) -> None:
    assert ruled(found(), ignore={ignored}) is None
    assert ruled(found(), ignore=["large-flush", ignored]) is None


@pytest.mark.parametrize(
    "ignored",
    [
        "get-in-loop",
        "n-plus-one@report.py",
        "n-plus-one@jobs/*",
        "n-plus-one@shop",
        "get-in-loop@shop/*",
        "n-plus-one:Book",
        "n-plus-one:Author.letters",
        "n-plus-one:Book.books",
        "get-in-loop:Author",
    ],
)
def test_what_is_nearly_ignored_is_reported(ignored: str) -> None:
    assert ruled(found(), ignore={ignored}) == found()


def test_a_site_out_of_the_working_directory_is_ignored_by_its_whole_path() -> None:
    finding = found(site=ELSEWHERE)
    assert ruled(finding, ignore={"n-plus-one@/srv/till/*"}) is None
    assert ruled(finding, ignore={"n-plus-one@till/*"}) == finding


def test_what_has_no_site_or_no_entity_is_ignored_by_its_id_alone() -> None:
    finding = found(site=None, entity=None, attribute=None)
    assert ruled(finding, ignore={"n-plus-one@*", "n-plus-one:Author"}) == finding
    assert ruled(finding, ignore={"n-plus-one"}) is None


def test_what_is_silenced_here_or_where_the_session_was_opened_is_not_reported() -> None:
    with silence("n-plus-one", reason="a test"):
        assert ruled(found()) is None
        assert ruled(found("large-flush")) == found("large-flush")
    assert ruled(found()) == found()
    assert ruled(found(), silenced=frozenset({"n-plus-one"})) is None
    assert ruled(found(), silenced=frozenset({"large-flush"})) == found()


def test_what_the_baseline_knows_is_not_reported(tmp_path: Path) -> None:
    path = tmp_path / "known.jsonl"
    write(path, empty(path).updated([(found(), ())], lambda _: False).baseline)
    assert ruled(found(), baseline_path=str(path)) is None
    assert ruled(found("large-flush"), baseline_path=str(path)) == found("large-flush")


def test_a_severity_can_be_another_one() -> None:
    options: Any = {"severities": {"n-plus-one": "error"}}
    assert ruled(found(), **options) == found(severity="error")
    assert ruled(found("large-flush"), **options) == found("large-flush")
    unchanged = found(severity="error")
    assert ruled(unchanged, **options) is unchanged


@pytest.mark.parametrize(
    ("raise_on", "raised"),
    [
        (set(), []),
        ({"error"}, ["error"]),
        ({"warning"}, ["warning", "error"]),
        ({"info"}, ["info", "warning", "error"]),
        ({"error", "warning"}, ["warning", "error"]),
        ({"n-plus-one"}, ["info", "warning", "error"]),
        ({"large-flush"}, []),
        ({"large-flush", "error"}, ["error"]),
    ],
)
def test_a_severity_raises_what_is_as_severe_or_more(raise_on: set[str], raised: list[str]) -> None:
    policy = Policy(Settings(raise_on=raise_on), DEFAULT_DETECTORS)
    severities = ("info", "warning", "error")
    assert [one for one in severities if policy.raises(found(severity=one))] == raised


@pytest.mark.parametrize(
    ("options", "refused", "nearest"),
    [
        ({"ignore": {"n-plus-on"}}, "ignore='n-plus-on'", "n-plus-one"),
        ({"ignore": {"large-flushes@jobs/*"}}, "ignore='large-flushes'", "large-flush"),
        ({"ignore": {"get-in-loops:Author"}}, "ignore='get-in-loops'", "get-in-loop"),
        ({"severities": {"split-write": "error"}}, "severities='split-write'", "split-writes"),
        ({"raise_on": {"eror"}}, "raise_on='eror'", "error"),
        ({"raise_on": {"shared-sesion"}}, "raise_on='shared-sesion'", "shared-session"),
    ],
)
def test_a_finding_that_no_detector_reports_is_refused_with_the_nearest_one(
    options: dict[str, Any], refused: str, nearest: str
) -> None:
    before = dict(vars(Session))
    with pytest.raises(ValueError, match="Did you mean") as raised:
        instrument(sessionmaker(), exporter=Exporter(), **options)
    assert str(raised.value) == (
        f"Invalid {refused}: expected the id of a finding. Did you mean {nearest!r}?"
    )
    assert dict(vars(Session)) == before
    with pytest.raises(ValueError, match="Did you mean"):
        instrument(sessionmaker(), exporter=Exporter(), detectors=DEFAULT_DETECTORS[:1], **options)
    with instrument(
        sessionmaker(), exporter=Exporter(), detectors=[*DEFAULT_DETECTORS, Own()], **options
    ):
        pass  # who knows what it draws


def test_each_of_our_findings_can_be_named() -> None:
    ids = set(FINDING_IDS)
    with instrument(
        sessionmaker(),
        exporter=Exporter(),
        ignore={*ids, *(f"{id_}@jobs/*" for id_ in ids), "*@tests/*"},
        severities=dict.fromkeys(ids, "info"),
        raise_on={*ids, "info", "warning", "error"},
    ):
        pass


def test_a_baseline_that_is_missing_is_refused(tmp_path: Path) -> None:
    before = dict(vars(Session))
    with pytest.raises(ValueError, match=r"Invalid baseline_path. Cannot read '.*known.jsonl'"):
        instrument(sessionmaker(), exporter=Exporter(), baseline_path=str(tmp_path / "known.jsonl"))
    assert dict(vars(Session)) == before


# In the pipeline.


@dataclass
class Suspicious:
    """Finds something in every transaction, and takes it back if the transaction ends."""

    facts = (what.TransactionBegan, what.TransactionEnded, what.SessionClosed)
    broken: bool = False

    def memory(self) -> list[Finding]:
        return []

    def judge(
        self, fact: Any, report: Report, memory: list[Finding]
    ) -> Iterator[Finding | Retraction]:
        if isinstance(fact, what.TransactionBegan):
            severity: Any = "fatal" if self.broken else "warning"
            site: Any = "here" if self.broken else fact.site
            memory.append(report.finding("a-suspicion", severity, "it began", "end it", site))
            yield memory[0]
        elif isinstance(fact, what.TransactionEnded):
            yield Retraction(finding=memory[0], message="it ended")
        else:
            yield report.finding("another-one", "info", "it closed", "leave it open", fact.site)


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    yield sessionmaker(engine)
    engine.dispose()


def use(factory: sessionmaker[Session]) -> None:
    with factory() as session:
        session.execute(text("SELECT 1"))


def test_what_is_ignored_is_in_no_signal(factory: sessionmaker[Session]) -> None:
    with capture(factory, detectors=[Suspicious()], ignore={"*@*test_policy.py"}) as captured:
        use(factory)
    (summary,) = captured.sessions
    assert (captured.findings, captured.retractions, summary.findings) == ([], [], ())
    assert [event for event in captured.logs if event["event"].startswith("finding")] == []
    assert [event for span in captured.spans for event in span.events] == []
    assert "sqlalchemy.findings" not in captured.metrics


def test_what_was_not_reported_is_not_retracted(factory: sessionmaker[Session]) -> None:
    with capture(factory, detectors=[Suspicious()], ignore={"a-suspicion"}) as captured:
        use(factory)
    assert [finding.id for finding in captured.findings] == ["another-one"]
    assert captured.retractions == []


def test_another_severity_is_in_every_signal(factory: sessionmaker[Session]) -> None:
    severities: dict[str, Severity] = {"a-suspicion": "error"}
    with capture(factory, detectors=[Suspicious()], severities=severities) as captured:
        use(factory)
    said = captured.findings[0]
    assert (said.id, said.severity) == ("a-suspicion", "error")
    assert captured.sessions[0].findings[0] == said
    assert [retraction.finding for retraction in captured.retractions] == [said]
    assert [event["level"] for event in captured.logs if event["event"] == "finding"] == [
        "error",
        "info",
    ]
    counted = {
        (point.attributes["sqlalchemy.finding.id"], point.attributes["sqlalchemy.finding.severity"])
        for point in captured.metrics["sqlalchemy.findings"]
    }
    assert counted == {("a-suspicion", "error"), ("another-one", "info")}


def test_a_session_that_is_opened_in_silence_stays_silent_to_other_threads(
    factory: sessionmaker[Session],
) -> None:
    with capture(factory, detectors=[Suspicious()]) as captured:
        with silence("another-one", reason="it is a test"):
            session = factory()
        session.execute(text("SELECT 1"))
        del session
        gc.collect()
        assert len(captured.sessions) == 1
    assert [finding.id for finding in captured.findings] == ["a-suspicion"]


def test_two_tracers_of_one_session_have_each_their_own_policy(
    factory: sessionmaker[Session],
) -> None:
    detectors = [Suspicious()]
    with (
        capture(factory, detectors=detectors, ignore={"a-suspicion"}) as outer,
        capture(factory, detectors=detectors, ignore={"another-one"}) as inner,
    ):
        use(factory)
    assert [finding.id for finding in outer.findings] == ["another-one"]
    assert [finding.id for finding in inner.findings] == ["a-suspicion"]


def test_a_finding_that_cannot_be_judged_ends_with_its_detector(
    factory: sessionmaker[Session], caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"ignore": {"a-suspicion@*"}, "raise_on": {"error"}}
    with capture(factory, detectors=[Suspicious(broken=True)], **options) as captured:
        use(factory)
    assert captured.findings == []
    (failed,) = captured.metrics["session_tracer.errors"]
    assert failed.attributes["where"] == "Suspicious"
    assert "session_tracer failed in Suspicious" in caplog.text


def test_our_detectors_draw_what_is_listed_and_no_other() -> None:
    drawn = set()
    for module in Path(session_tracer.detectors.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call):
                drawn |= set(ids_of(node))
    assert sorted(drawn) == sorted(FINDING_IDS)


def ids_of(call: ast.Call) -> list[str]:
    """The id that `report.finding("...")` or `Finding(id="...")` is given."""
    match call:
        case ast.Call(func=ast.Attribute(attr="finding"), args=[ast.Constant(value=str(id_)), *_]):
            return [id_]
        case ast.Call(func=ast.Name(id="Finding")):
            return [
                keyword.value.value
                for keyword in call.keywords
                if keyword.arg == "id"
                and isinstance(keyword.value, ast.Constant)
                and isinstance(keyword.value.value, str)
            ]
    return []


def test_the_page_of_findings_explains_those_that_are_listed() -> None:
    page = (Path(__file__).parents[1] / "docs" / "findings.md").read_text()
    explained = re.findall(r"^## ([a-z]+(?:-[a-z]+)+)$", page, re.MULTILINE)
    assert sorted(set(explained) - set(FINDING_IDS)) == []
    assert len(explained) == len(set(explained))


def test_what_the_pytest_plugin_concludes_can_be_ignored_like_the_built_in_ones() -> None:
    Policy(Settings(ignore={"left-open"}), DEFAULT_DETECTORS)
