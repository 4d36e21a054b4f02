"""What a page's links are on the site: to another page a link, to any other file of the repository that file's path."""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
AT_THE_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages of the site that are files at the root of the repository, which GitHub and others look for there."""
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text with its links as the site has them."""
    uri = page.file.src_uri
    source = AT_THE_ROOT.get(uri)
    if source is not None:
        markdown = (ROOT / source).read_text(encoding="utf-8")
    written_in = posixpath.dirname(source or f"docs/{uri}")

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(written_in, target))
        for name, file in AT_THE_ROOT.items():
            path = path if path != file else f"docs/{name}"
        if path.startswith("docs/"):
            return f"[{text}]({posixpath.relpath(path, posixpath.dirname('docs/' + uri))}{anchor})"
        if path == "README.md":
            return f"[{text}]({posixpath.relpath('docs/index.md', posixpath.dirname('docs/' + uri))})"
        if not (ROOT / path).exists():
            return match[0]  # and the build ends with a warning of the link
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    # Code is no place for links.
    parts = re.split(r"(^```.*?^```|`[^`\n]+`(?!\]))", markdown, flags=re.M | re.S)
    return "".join(part if index % 2 else _LINK.sub(link, part) for index, part in enumerate(parts))
