"""Draws docs/console.svg from a real run of the bookshop: `python docs/picture.py`."""

from __future__ import annotations

import asyncio
import io
import random
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.bookshop.db import SessionLocal, engine  # noqa: E402 - after the path is set
from examples.bookshop.models import Model  # noqa: E402
from examples.bookshop.scenes import Day, open_shop, order, restock, show_author  # noqa: E402
from examples.bookshop.views import respond  # noqa: E402
from session_tracer import instrument  # noqa: E402
from session_tracer.exporters.console import console_exporter  # noqa: E402

WIDTH = 104
THEME = TerminalTheme(
    (22, 24, 29),
    (214, 217, 222),
    [
        (22, 24, 29), (224, 108, 117), (126, 176, 105), (214, 169, 92),
        (97, 150, 214), (178, 125, 196), (86, 166, 173), (190, 194, 201),
    ],
    [
        (120, 126, 136), (240, 113, 120), (143, 196, 120), (235, 189, 107),
        (115, 170, 235), (198, 140, 217), (102, 187, 194), (240, 242, 245),
    ],
)  # fmt: skip

# Without rich's link to a font on the web: a picture in a repository stands by itself.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-ligatures: none;
}}
.{unique_id}-title {{ font-size: 17px; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve">
{matrix}
</g>
</g>
</svg>
"""


def console_output() -> str:
    """What the console exporter writes of four scenes, in colour."""
    Model.metadata.create_all(engine)
    stream = io.StringIO()
    with asyncio.Runner() as loop:
        day = Day(random.Random(1813), 1, loop)
        open_shop(day)
        exporter = console_exporter(stream=stream, width=WIDTH, colour=True)
        with instrument(SessionLocal, name="bookshop", exporter=exporter) as tracing:
            for scene in (order, restock, show_author):
                respond(lambda scene=scene: scene(day))  # type: ignore[misc] # bound at once
                tracing.flush()
    engine.dispose()
    return stream.getvalue()


def main() -> None:
    """Write the picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(console_output().strip("\n")))
    svg = console.export_svg(title="python3 tasks.py bookshop", theme=THEME, code_format=SVG)
    target = ROOT / "docs" / "console.svg"
    target.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")
    print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
