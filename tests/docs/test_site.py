"""The documentation as a site: it builds with no warning, and a reader without a network sees all of it."""

import json
import re
from pathlib import Path

import pytest
import yaml

import deit_fast
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A warning, a broken link for one, is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>", text)
        loaded += [tag for tag in re.findall(r"<link\b[^>]*>", text) if re.search(r"href=[\"']?(?:https?:)?//", tag)]
        assert not loaded, (page, loaded)
        assert "mermaid" not in text, "Material loads mermaid from a CDN"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\([\"']?|@import [\"'])(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_the_search_finds_messages_keys_and_functions(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    text = {entry["location"]: f"{entry['title']} {entry['text']}" for entry in index["docs"]}
    for words, page in (
        ("no such checkpoint", "troubleshooting/"),
        ("hang_timeout", "api/recipe/"),
        ("extract_features", "api/"),
        ("MLP-Mixer", "extending/"),
    ):
        assert any(location.startswith(page) and words in found for location, found in text.items()), words


def test_files_at_the_root_are_pages_and_links_to_code_are_paths(site: Path) -> None:
    text = (site / "extending" / "index.html").read_text(encoding="utf-8")
    assert "deit_fast/recipe/sections/schedule.py" in text
    changes = (site / "changelog" / "index.html").read_text(encoding="utf-8")
    assert "Unreleased" in changes


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == deit_fast.__version__
    assert "2204.07118" in citation["references"][0]["url"]
