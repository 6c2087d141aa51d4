"""MkDocs hooks: pages of the repository outside docs/ become pages of the site.

Links of the pages work in the repository. On the site, a link that leaves docs/ leads to the site's
own copy of the page, or becomes plain text if it leads to a file that isn't a page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
COPIED = (
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "helm/README.md",
    "examples/README.md",
    "loadtest/RESULTS.md",
    "training/RESULTS.md",
)
MERMAID = ROOT / "build" / "mermaid.min.js"
"""The site's own copy of Mermaid, which `make docs` fetches. The theme loads it from a CDN if there
is none."""
MERMAID_ADDRESS = "assets/mermaid.min.js"
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def _address(path: str) -> str:
    """Return the address of a file of the repository on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def on_config(config: Any) -> Any:
    """Let pages load the site's own copy of Mermaid, if there is one."""
    if MERMAID.is_file():
        config.extra_javascript.append(MERMAID_ADDRESS)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/, and Mermaid."""
    if MERMAID.is_file():
        files.append(File.generated(config, MERMAID_ADDRESS, abs_src_path=str(MERMAID)))
    for path in COPIED:
        if (ROOT / path).is_file():
            text = (ROOT / path).read_text()
            page = File.generated(
                config, _address(path), content=text, inclusion=InclusionLevel.NOT_IN_NAV
            )
            files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite the links that leave docs/."""
    own = page.file.src_uri
    source = own.removeprefix("repository/") if own.startswith("repository/") else f"docs/{own}"

    def rewrite(match: re.Match[str]) -> str:
        text, link, anchor = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:", link):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        address = _address(target)
        if files.get_file_from_path(address) is None:
            return text if not target.startswith("docs/") else match[0]
        relative = posixpath.relpath(address, posixpath.dirname(own) or ".")
        return f"[{text}]({relative}{anchor})"

    return _LINK.sub(rewrite, markdown)
