"""HTML of the parts of a page. All text is escaped here, and nothing is loaded from anywhere."""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_fast.runtime.files import atomic_path

_SHARP_BELOW = 96  # px; smaller images are enlarged without blur


def write_page(path: Path, title: str, sections: Iterable[str]) -> None:
    """Writes a whole page from `sections`, which are HTML. Raises OSError."""
    body = "\n".join(section for section in sections if section)
    text = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>\n{_asset('charts.js')}</script>\n</body>\n</html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def escape(text: object) -> str:
    """The text escaped for HTML; invalid UTF-8 in a file's name becomes question marks."""
    return html.escape(str(text).encode("utf-8", "replace").decode("utf-8"))


def section(title: str, *parts: str) -> str:
    """A heading and its parts; "" without parts."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def paragraph(text: str, soft: bool = False) -> str:
    """One paragraph of text."""
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>"


def tiles(values: Mapping[str, tuple[str, str]]) -> str:
    """A card for each value: its name, the value, and a note below it."""
    cards = (
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>'
        for name, (value, note) in values.items()
    )
    return f'<div class="tiles">{"".join(cards)}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of texts; the columns `numbers` are right-aligned."""
    right = set(numbers)

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if place in right else ''}>{escape(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells(heads, "th")}</tr></thead><tbody>\n{body}</tbody></table></div>'


def chart(title: str, series: Sequence[Mapping[str, Any]], unit: str = "", zero: bool = False) -> str:
    """A chart that charts.js draws: series of {name, color, dashed, points: [[step, epoch, value], ...]}."""
    if not any(each["points"] for each in series):
        return ""
    data = json.dumps({"series": series, "unit": unit, "zero": zero}, separators=(",", ":"))
    return f'<figure class="chart" data-chart="{html.escape(data)}"><b>{escape(title)}</b></figure>'


def charts(parts: Iterable[str]) -> str:
    """Charts side by side, with a choice of the unit of their x axes."""
    choice = "".join(
        f'<label><input type="radio" name="axis" value="{name}"{" checked" if name == "epoch" else ""}> {name}s</label>'
        for name in ("epoch", "step")
    )
    return f'<div class="choice">{choice}</div><div class="charts">{"".join(parts)}</div>'


def picture(images: Sequence[NDArray[np.uint8]], caption: str, strong: str = "") -> str:
    """Pictures uint8 [H, W, 3] side by side, with a caption below, which begins with `strong`."""
    shown = "".join(image_tag(image, caption) for image in images)
    name = f"<b>{escape(strong)}</b> " if strong else ""
    return f'<div class="picture"><div>{shown}</div>{name}{escape(caption)}</div>'


def image_tag(image: NDArray[np.uint8], meaning: str = "") -> str:
    """An inline image from uint8 [H, W, 3]: a PNG if it is small, else a JPEG."""
    sharp = max(image.shape[:2]) < _SHARP_BELOW
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "PNG" if sharp else "JPEG", **({} if sharp else {"quality": 85}))
    data = base64.b64encode(stored.getvalue()).decode()
    kind, style = ("png", " class=crisp") if sharp else ("jpeg", "")
    return f'<img{style} loading="lazy" alt="{escape(meaning)}" src="data:image/{kind};base64,{data}">'


def pictures(parts: Iterable[str], pairs: bool = False) -> str:
    """Pictures in a grid. pairs: whether each consists of two side by side."""
    content = "".join(parts)
    return f'<div class="pictures{" pairs" if pairs else ""}">{content}</div>' if content else ""


def bars(values: Mapping[str, float]) -> str:
    """A horizontal bar for each value, with its name."""
    most = max(values.values(), default=0) or 1
    rows = (
        f'<span title="{escape(name)}">{escape(name)}</span><i style="width:{100 * value / most:.1f}%"></i>'
        f"<span>{value:,.0f}</span>"
        for name, value in values.items()
    )
    return f'<div class="bars">{"".join(rows)}</div>'


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
