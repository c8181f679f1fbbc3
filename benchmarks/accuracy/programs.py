"""The programs that every tool is run on, as tests of pytest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["GOOD_CODE", "MISUSE", "Programs", "corpus_of"]

ROOT: Final = Path(__file__).parents[2]

_PLAY_SCENES: Final = """
import gc

import pytest

from examples.misuse.db import close_shop, open_shop
from examples.misuse.scenes import SCENES


@pytest.fixture(autouse=True)
def _shop():
    open_shop()
    yield
    gc.collect()
    close_shop()


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.finding)
def test_scene(scene):
    scene.play()
    gc.collect()
"""


class Programs(NamedTuple):
    """Programs of one origin.

    Attributes:
        name: What the results call them.
        prepare: Takes an empty folder; returns the path of the tests.
        variables: The environment variables that they need.
    """

    name: str
    prepare: Callable[[Path], Path]
    variables: Mapping[str, str]


def corpus_of(peer: Path) -> Programs:
    """Return the programs of pytest-queryguard: those with a bug, and right ones.

    Args:
        peer: The unpacked source distribution. Its own file runs them as tests.
    """
    corpus = peer.resolve() / "tests" / "corpus"
    names = sorted(file.stem for file in (corpus / "scenarios").glob("[bc]*_*.py"))

    def prepare(folder: Path) -> Path:
        return Path(shutil.copy(corpus / "session_body.py", folder / "test_corpus.py"))

    variables = {"PYTHONPATH": str(peer.resolve()), "CORPUS_SCENARIOS": ",".join(names)}
    return Programs("corpus", prepare, variables)


def _scenes(folder: Path) -> Path:
    file = folder / "test_misuse.py"
    file.write_text(_PLAY_SCENES, encoding="utf-8")
    return file


# What takes a minute by default is found in half a second.
MISUSE: Final = Programs(
    "misuse",
    _scenes,
    {
        "PYTHONPATH": str(ROOT),
        "SESSION_TRACER_LEAK_AFTER_SECONDS": "0.5",
        "SESSION_TRACER_LONG_TRANSACTION_SECONDS": "0.5",
        "SESSION_TRACER_IDLE_IN_TRANSACTION_SECONDS": "0.4",
    },
)
# These run in the project, whose fixtures they use.
GOOD_CODE: Final = Programs("good code", lambda _: ROOT / "tests" / "good_code", {})
