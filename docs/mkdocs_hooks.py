"""Adds to the documentation site what is not a file of docs/; mkdocs.yml names this module."""

from __future__ import annotations

import ast
import posixpath
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Pages from outside of docs/, by their name on the site.
OUTSIDE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "dashboard.md": "grafana/README.md",
    "examples.md": "examples/README.md",
    "security.md": "SECURITY.md",
}
REFERENCE = "api.md"

# Links and pictures; not those to an address or to a heading of the same page.
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
PUBLIC_MODULE = re.compile(r"^\| `(session_tracer[\w.]*)` \| (.+) \|$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the address from the package's metadata, the one place that has it."""
    config.site_url = PROJECT.get("urls", {}).get("Documentation")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/, and the reference."""
    for name, path in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, REFERENCE, content=reference()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Make links lead to pages of the site, and nested lists what Python-Markdown reads as such."""
    name = page.file.src_uri
    folder = posixpath.dirname(OUTSIDE.get(name, f"docs/{name}"))
    pieces = FENCE.split(markdown)
    pieces[::2] = [
        LINK.sub(lambda link: to_the_site(link, folder), re.sub("(?m)^  - ", "    - ", piece))
        for piece in pieces[::2]
    ]
    return "".join(pieces)


def to_the_site(link: re.Match[str], folder: str) -> str:
    """The link, whose page is in this folder of the repository, as the site has it."""
    mark, text, target, anchor = link[1], link[2], link[3], link[4] or ""
    path = posixpath.normpath(posixpath.join(folder, target))
    names = {outside: name for name, outside in OUTSIDE.items()}
    if path in names or path.startswith("docs/"):
        return f"{mark}[{text}]({names.get(path, path.removeprefix('docs/'))}{anchor})"
    if not (ROOT / path).exists():
        return link[0]  # the strict build fails
    source = PROJECT.get("urls", {}).get("Source")
    if source:
        return f"{mark}[{text}]({source.rstrip('/')}/blob/main/{path})"
    # The files of the repository have no address yet.
    return text if path in text else f"{text} (`{path}`)"


def reference() -> str:
    """The page with every public name, in the order of the architecture page."""
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    section = architecture.partition("\n## Public modules\n")[2].partition("\n## ")[0]
    page = ["# Python reference", "", "Every name that is public, and what it takes and returns."]
    for module, purpose in PUBLIC_MODULE.findall(section):
        page += ["", f"## `{module}`", "", purpose[0].upper() + purpose[1:] + "."]
        for name in public_names(module):
            page += ["", f"::: {name}"]
    return "\n".join(page) + "\n"


def public_names(module: str) -> list[str]:
    """The names that the module exports; of the exporters, those of each that is named."""
    if module == "session_tracer.exporters":
        named = PROJECT["entry-points"]["session_tracer_exporter"].values()
        return [name for entry in named for name in public_names(entry.partition(":")[0])]
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: list[str] = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [f"{module}.{one}" for one in ast.literal_eval(node.value) if one[0] != "_"]
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
            names.append(f"{module}.{node.name}")
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
            names.append(f"{module}.{ast.unparse(node.target)}")
    return names
