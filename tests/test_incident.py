"""Tests docs/incident.md: its commands answer their questions over the log of a played incident."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from examples import load
from tests.test_alerts import ALERTS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = (ROOT / "docs" / "incident.md").read_text()
SECTIONS: Final = {
    section.partition("\n")[0]: section for section in re.split(r"^## ", PAGE, flags=re.M)[1:]
}
# How an incident went; the others are about one kind of problem each.
STORY: Final = SECTIONS.pop("An incident in three steps")
# The task that draws the dashboard installs the grammars here.
GRAMMARS: Final = ROOT / "grafana" / "render"
COUNT_ERRORS: Final = """
const { parser } = require("@grafana/lezer-logql");
const isWrong = (query) => {
  let wrong = false;
  parser.parse(query).iterate({ enter: (node) => { wrong ||= node.type.isError; } });
  return wrong;
};
console.log(JSON.stringify(JSON.parse(process.argv[1]).filter(isWrong)));
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Path]:
    """The log of an incident that takes seconds, and of two mistakes that it does not make."""
    folder = tmp_path_factory.mktemp("incident")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", postgres_url)
        patch.setenv("SESSION_TRACER_EXPORTER", "jsonl")
        patch.setenv("SESSION_TRACER_JSONL_PATH", str(folder / "incident.jsonl"))
        patch.setenv("SESSION_TRACER_IDLE_IN_TRANSACTION_SECONDS", "0.2")
        patch.setenv("SESSION_TRACER_LEAK_AFTER_SECONDS", "0.6")
        patch.setenv("SHOP_POOL_SECONDS", "0.4")
        load.incident("fastapi", seconds=0.8)
        with (
            load.running("fastapi", "pending-rollback,implicit-async-io", "1.5.0") as url,
            load.client_of(url) as client,
        ):
            for _ in range(2):
                client.post("/customers", json={"email": "known@example.org"})
            load.read_author(client, random.Random(1))
        yield folder / "incident.jsonl"


# What the command of a section has to answer.
ANSWERS: Final = {
    "The pool is exhausted": (
        r"the pool had no free connection for .* m?s: \d traced sessions hold one.*\n"
        r"(?:\d  .*\n)*"  # other requests can hold one at that moment
        r"\d  examples/fastapi_app/mistakes\.py:\d+ in read_catalogue\(\)  GET /catalogue  ended\n"
    ),
    "A transaction is stuck": (
        r"[-\dT:.+]+\tidle-in-transaction\t\d+\tended"
        r"\texamples/fastapi_app/mistakes\.py:\d+ in read_catalogue\(\)\n"
    ),
    "A leak climbs": (
        r"^\d  examples/fastapi_app/mistakes\.py:\d+ in read_catalogue\(\)  GET /catalogue\n$"
    ),
    "Slow since the deployment": (
        r"1\.5\.0\t\d+\tn-plus-one\tGET /authors"
        r"\texamples/fastapi_app/mistakes\.py:\d+ in list_authors\(\)\n"
    ),
    "A storm of PendingRollbackError": (
        r"\d sqlalchemy\.exc\.IntegrityError"
        r"  failed at examples/fastapi_app/mistakes\.py:\d+ in sign_up\(\)"
        r"  swallowed at examples/fastapi_app/mistakes\.py:\d+ in sign_up\(\)\n"
    ),
    "A load that fails": (
        r"Author\.books  GET /authors/\{author_id\}  examples/fastapi_app/mistakes\.py:\d+ .*\n"
        r"  .*selectinload\(Author\.books\)"
    ),
    "Nothing is seen": r"\d+ finding\n +\d+ finding\.retracted\n(?s:.*) +\d+ session\.closed\n",
}


@pytest.mark.skipif(
    shutil.which("jq") is None, reason="no `jq` on the PATH; most systems have it as a package"
)
@pytest.mark.timeout(300)  # four servers start, one after the other
def test_each_command_answers_over_the_log_of_an_incident(log: Path) -> None:
    # One test, because the incident takes its time.
    for section, text in SECTIONS.items():
        (command,) = re.findall(r"^```sh\n(.*?)```", text, re.M | re.S)
        done = subprocess.run(
            ["sh", "-c", command], cwd=log.parent, capture_output=True, text=True, check=True
        )
        assert done.stderr == "", section
        assert re.search(ANSWERS[section], done.stdout, re.MULTILINE), f"{section}: {done.stdout}"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert {event["service_version"] for event in events} == {"1.4.0", "1.5.0", "1.5.1"}
    assert {event["service"] for event in events} == {"shop"}


def wrong_queries(queries: list[str]) -> list[str]:
    """The queries that Grafana's grammar of LogQL refuses."""
    done = subprocess.run(
        ["node", "-e", COUNT_ERRORS, json.dumps(queries)],
        cwd=GRAMMARS,
        capture_output=True,
        text=True,
        check=True,
    )
    answer: list[str] = json.loads(done.stdout)
    return answer


@pytest.mark.skipif(
    not (GRAMMARS / "node_modules" / "@grafana" / "lezer-logql").exists(),
    reason="no grammar of LogQL in grafana/render; `python3 tasks.py pictures` installs it",
)
def test_each_command_has_a_twin_in_logql() -> None:
    twins = [
        query
        for section in SECTIONS.values()
        for query in re.findall(r"^```logql\n(.*?)```", section, re.M | re.S)
    ]
    assert len(twins) == len(SECTIONS)
    assert wrong_queries(twins) == []
    assert wrong_queries([twins[0].replace("|", "||")]) != []


def test_each_alert_leads_to_the_section_that_names_it() -> None:
    for rule in ALERTS:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/incident.md"
        (section,) = [text for title, text in SECTIONS.items() if anchor_of(title) == anchor]
        assert rule["alert"] in section


def test_the_story_names_alerts_and_panels_that_exist() -> None:
    named = set(re.findall(r"`(SQLAlchemy\w+)`", STORY))
    assert named
    assert named <= {rule["alert"] for rule in ALERTS}
    assert panels_in(STORY) <= titles_of_panels()


def anchor_of(title: str) -> str:
    return title.lower().replace(" ", "-")


def titles_of_panels() -> set[str]:
    dashboard = json.loads((ROOT / "grafana" / "dashboards" / "session-tracer.json").read_text())
    rows = dashboard["panels"]
    return {panel["title"] for row in rows for panel in (row, *row.get("panels", ()))}


def panels_in(text: str) -> set[str]:
    return {" ".join(title.split()) for title in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", text)}


def test_each_section_has_its_alert_a_panel_and_what_to_do() -> None:
    for section in SECTIONS.values():
        for part in ("**Symptom.**", "**Alert**", "**Panel**", "**Command.**"):
            assert part in section
        panels = panels_in(section.partition("**Panel**")[2].partition("\n\n")[0])
        assert panels
        assert panels <= titles_of_panels()
