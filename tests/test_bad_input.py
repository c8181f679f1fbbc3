"""That what cannot work is refused at once, in words that help, with SQLAlchemy left as it was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, registry, scoped_session, sessionmaker

from session_tracer import DEFAULT_DETECTORS, Exporter, Settings, instrument, uninstrument
from session_tracer.testing import capture
from tests.library import Author
from tests.test_uninstrument import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    yield engine
    engine.dispose()


@pytest.fixture
def maker(engine: Engine) -> Iterator[Any]:
    """A factory that is checked to be as it was, and to work as it did."""
    maker = sessionmaker(engine)
    with maker() as session:
        session.execute(text("SELECT 1"))
    before = snapshot(maker, engine)
    yield maker
    assert snapshot(maker, engine) == before
    with maker() as session:
        assert session.execute(text("SELECT 1")).scalar() == 1


def _make_session() -> Session:
    return Session()


_MAKES_SESSIONS: Any = _make_session


class Rude:
    """Raises where anybody asks what it is."""

    def __repr__(self) -> str:
        raise AssertionError

    def __bool__(self) -> bool:
        raise AssertionError

    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __hash__ = None  # type: ignore[assignment] # cannot be hashed either


SUPPORTED = (
    "It takes a sessionmaker, an async_sessionmaker, a scoped_session or async_scoped_session over "
    "one of them, a Session or AsyncSession class, one live session, a Flask-SQLAlchemy SQLAlchemy "
    "object, or nothing at all for every session of the process."
)

UNSUPPORTED: dict[str, Callable[[], Any]] = {
    "an engine": lambda: create_engine("sqlite://"),
    "an async engine": lambda: create_async_engine("sqlite+aiosqlite://"),
    "a mapped class": lambda: Author,
    "a mapped object": lambda: Author(name="Ada"),
    "a function": lambda: lambda: Session(),
    "a scoped_session over a function": lambda: scoped_session(_MAKES_SESSIONS),
    "a name": lambda: "SessionLocal",
    "a number": lambda: 5,
    "a class": lambda: object,
    "a registry": registry,
    "something rude": Rude,
}


@pytest.mark.parametrize("target", UNSUPPORTED)
@pytest.mark.parametrize(
    "call", [instrument, uninstrument, lambda target: capture(target).__enter__()]
)
def test_an_unsupported_target_is_refused_by_what_is_supported(
    maker: Any, target: str, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match=re.escape(SUPPORTED)):
        call(UNSUPPORTED[target]())


def test_an_unknown_exporter_is_refused_by_those_there_are(maker: Any) -> None:
    with pytest.raises(ValueError, match=r"Unknown exporter 'consol'. Available: ") as refused:
        instrument(maker, exporter="consol")
    for name in ("console", "jsonl", "logging", "none", "otlp", "prometheus", "providers"):
        assert re.search(rf"\b{name}\b", str(refused.value))
    assert "Did you mean 'console'?" in str(refused.value)


def test_an_unknown_exporter_of_the_environment_is_refused_too(
    maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_TRACER_EXPORTER", "consol")
    with pytest.raises(ValueError, match="Unknown exporter 'consol'"):
        instrument(maker)


@pytest.mark.parametrize("exporter", [5, print, Exporter, b"console"], ids=repr)
def test_something_that_is_no_exporter_is_refused(maker: Any, exporter: Any) -> None:
    with pytest.raises(TypeError, match=r"expected the name of an exporter, .* or an Exporter"):
        instrument(maker, exporter=exporter)


PACKAGES = "the names of top-level packages"
BAD_SETTINGS: list[tuple[str, Any, str]] = [
    ("max_entities", 0, "a positive integer"),
    ("max_entities", "100", "a positive integer"),
    ("max_entities", True, "a positive integer"),
    ("statement_spans", "yes", "true or false"),
    ("statement_spans", 1, "true or false"),
    ("record_identity", None, "true or false"),
    ("site_frames", 51, "an integer from 1 to 50"),
    ("application_packages", ["shop.web"], PACKAGES),
    ("application_packages", ("shop.web",), PACKAGES),
    ("slow_session_seconds", 0, "a positive number of seconds"),
    ("slow_session_seconds", float("nan"), "a positive number of seconds"),
    ("repeat_finding_seconds", "60", "a positive number of seconds"),
    ("log_level", "trace", "one of debug, info, warning, error"),
    ("timeline_steps", 3, "an integer from 4 to 10000"),
    ("jsonl_path", "", "a non-empty string"),
    ("prometheus_port", 65536, "an integer from 0 to 65535"),
]


@pytest.mark.parametrize(("option", "value", "allowed"), BAD_SETTINGS, ids=str)
def test_a_bad_setting_is_refused_by_name_value_and_what_is_allowed(
    maker: Any, option: str, value: Any, allowed: str
) -> None:
    words = f"Invalid {option}={value!r}: expected {allowed}"
    with pytest.raises(ValueError, match=re.escape(words)):
        instrument(maker, exporter=Exporter(), **{option: value})
    with pytest.raises(ValueError, match=re.escape(words)):
        Settings(**{option: value})


BAD_VARIABLES = [
    ("SESSION_TRACER_MAX_ENTITIES", "many", "a positive integer"),
    ("SESSION_TRACER_MAX_ENTITIES", "0", "a positive integer"),
    ("SESSION_TRACER_STATEMENT_SPANS", "perhaps", "true or false"),
    ("SESSION_TRACER_SLOW_SESSION_SECONDS", "-1", "a positive number of seconds"),
    ("SESSION_TRACER_LOG_LEVEL", "loud", "one of debug, info, warning, error"),
]


@pytest.mark.parametrize(("variable", "value", "allowed"), BAD_VARIABLES)
def test_a_bad_variable_is_refused(
    maker: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=re.escape(f"expected {allowed}.")) as refused:
        instrument(maker, exporter=Exporter())
    named = variable in str(refused.value), variable.removeprefix("SESSION_TRACER_").lower()
    assert named[0] or named[1] in str(refused.value)
    assert value in str(refused.value)


def test_an_unknown_option_is_refused_by_those_there_are(maker: Any) -> None:
    words = "Unknown setting 'statement_span'. Did you mean 'statement_spans'?"
    with pytest.raises(ValueError, match=re.escape(words)):
        instrument(maker, exporter=Exporter(), statement_span=True)  # type: ignore[call-arg]


def test_a_bad_setting_is_refused_before_an_exporter_is_opened(maker: Any, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with pytest.raises(ValueError, match="max_entities"):
        instrument(maker, exporter="jsonl", jsonl_path=str(path), max_entities=0)
    assert not path.exists()


def test_a_jsonl_path_that_cannot_be_written_is_refused(maker: Any, tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "events.jsonl"
    with pytest.raises(FileNotFoundError, match="The jsonl exporter cannot write to") as refused:
        instrument(maker, exporter="jsonl", jsonl_path=str(path))
    assert str(path) in str(refused.value)
    assert "jsonl_path=..." in str(refused.value)


def test_a_folder_as_jsonl_path_is_refused(maker: Any, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="The jsonl exporter cannot write to"):
        instrument(maker, exporter="jsonl", jsonl_path=str(tmp_path))


def test_an_otlp_protocol_that_is_not_spoken_is_refused(
    maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(ValueError, match="carrier-pigeon"):
        instrument(maker, exporter="otlp")


MISSING_EXTRA = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {missing!r} or name.startswith({missing!r} + "."):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker
from session_tracer import instrument

engine = create_engine("sqlite://")
maker = sessionmaker(engine)
before = dict(maker.class_.__dict__), dict(Session.__dict__)
try:
    instrument(maker, exporter={exporter!r})
except ImportError as error:
    print(error)
assert (dict(maker.class_.__dict__), dict(Session.__dict__)) == before
with maker() as session:
    assert session.execute(text("SELECT 1")).scalar() == 1
engine.dispose()
"""


@pytest.mark.parametrize(
    ("exporter", "missing", "remedy"),
    [
        ("otlp", "opentelemetry.sdk", "pip install 'session-tracer[otlp]'"),
        ("otlp", "opentelemetry.exporter", "pip install 'session-tracer[otlp]'"),
        ("prometheus", "opentelemetry.exporter", "pip install 'session-tracer[prometheus]'"),
        ("prometheus", "prometheus_client", "pip install 'session-tracer[prometheus]'"),
    ],
)
def test_a_missing_extra_names_what_to_install(exporter: str, missing: str, remedy: str) -> None:
    program = MISSING_EXTRA.format(exporter=exporter, missing=missing)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("\n") == 1
    assert remedy in ran.stdout


class NoFacts:
    """Not a detector: it does not say what it is asked about."""


@pytest.mark.parametrize("exporter", ["console", "jsonl"])
def test_something_that_is_no_detector_is_refused_and_the_exporter_closed(
    maker: Any, exporter: str, tmp_path: Path
) -> None:
    # That no thread of the exporter is left is among what the factory is checked for.
    with pytest.raises(AttributeError, match="facts"):
        instrument(
            maker,
            exporter=exporter,
            jsonl_path=str(tmp_path / "events.jsonl"),
            detectors=[*DEFAULT_DETECTORS, NoFacts()],  # type: ignore[list-item] # the point of it
        )


def test_an_exporter_whose_provider_is_none_is_refused_and_closed(maker: Any) -> None:
    closed: list[str] = []
    exporter = Exporter(
        meter_provider="none",  # type: ignore[arg-type] # the point of it
        close=lambda: closed.append("closed"),
    )
    with pytest.raises(TypeError, match=r"Invalid Exporter\(meter_provider='none'\)"):
        instrument(maker, exporter=exporter)
    assert closed == ["closed"]


def test_after_a_refusal_the_same_call_set_right_works(maker: Any) -> None:
    with pytest.raises(ValueError, match="max_entities"):
        instrument(maker, exporter=Exporter(), max_entities=0)
    with instrument(maker, exporter=Exporter(), max_entities=1) as instrumentation:
        assert instrumentation.settings.max_entities == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes of that kind")
def test_a_file_that_may_not_be_written_is_refused(maker: Any, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    path = tmp_path / "events.jsonl"
    path.touch(mode=0o400)
    with pytest.raises(PermissionError, match="The jsonl exporter cannot write to"):
        instrument(maker, exporter="jsonl", jsonl_path=str(path))
