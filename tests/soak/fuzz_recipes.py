"""Recipes and overrides of random text: a valid recipe, or a short line per mistake; no hang and no huge memory."""

import json
import resource
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

from deit_fast.recipe import parse as recipe_module
from deit_fast.recipe.parse import all_fields
from deit_fast.recipe.schema import SECTIONS, parse_recipe
from deit_fast.recipe.table import RECIPES, get_recipe
from deit_fast.runtime.errors import RecipeError
from tests.soak.rounds import Found, tell

SECONDS, SPARE_BYTES, LINE = 1.0, 1 << 30, 2000
NUMBERS = ("0", "-1", "1e400", "-1e400", "NaN", "Infinity", "1e-320", "1" * 5000, "9" * 400, "-0.0", "1e9999999",
           "0x10", "1_000", "[" * 100_000, "{" * 3000, "[[1]]", "{}", "[]", "null", "true", '"\\ud800"', '"a\\nb"',
           "a\nb", "\x00", "1,2", "1,2,3", "x" * 20_000, "\u2028", "'", '"', ",", "=", "off", "auto")  # fmt: skip
FORMS = (".json", ".toml", "words", "words")
KEYS = [(section, key) for section, kind in SECTIONS.items() for key in all_fields(kind)]

values = st.sampled_from(NUMBERS) | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str)
names = st.sampled_from(KEYS) | st.tuples(st.text(max_size=8), st.text(max_size=8))
words = st.tuples(names, values).map(lambda word: f"{word[0][0]}.{word[0][1]}={word[1]}") | st.text(max_size=30)
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.text(max_size=10) | values), max_size=2)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
changes = st.lists(st.tuples(names, plain | st.just(...)), max_size=2)


def recipes(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Planted bug unforeseen: a value of the wrong type raises another error than RecipeError."""
    wrong, tally = list[str](), {"valid": 0, "refused": 0}
    if plant == "unforeseen":
        recipe_module.ValidationError = KeyError  # type: ignore[assignment, misc]
    using = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (using + SPARE_BYTES, resource.RLIM_INFINITY))

    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @with_seed(seed)
    @given(st.sampled_from(list(RECIPES)), changes, edits, st.lists(words, max_size=2), st.sampled_from(FORMS))
    def check(base: str, changed: Any, edited: Any, overrides: list[str], form: str) -> None:
        content = RECIPES[base].model_dump(mode="json")
        for (section, key), value in changed:
            part = content.setdefault(section, {})
            if not isinstance(part, dict):
                continue
            part.pop(key, None)
            if value is not ...:
                part[key] = value
        text = as_toml(content) if form == ".toml" else json.dumps(content)
        for place, length, new in edited:
            at = int(place * len(text))
            text = text[:at] + new + text[at + length :]
        path = folder / f"a{form}"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        started = time.process_time()
        try:
            recipe = get_recipe(str(path)) if form != "words" else get_recipe(base, overrides)
            assert parse_recipe(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe
            tally["valid"] += 1
        except RecipeError as error:
            tally["refused"] += 1
            for line in str(error).split("\n"):
                if len(line.splitlines()) != 1 or len(line) > LINE:
                    wrong.append(f"recipe: no short line: {line[:300]!r} of {len(line)} characters")
        except Exception as error:
            wrong.append(f"recipe: {type(error).__name__}: {error!r:.300} of {overrides!r:.300} {text!r:.200}")
        if time.process_time() - started > SECONDS:
            wrong.append(f"recipe: took {time.process_time() - started:.1f} s: {overrides!r:.300}")
        done = sum(tally.values()) + len(wrong)
        if done % 1000 == 0:
            tell(f"recipes: {done} read")

    check()
    if min(tally.values()) < count // 20 and not wrong:
        wrong.append(f"recipes: no fair mixture: {tally}")
    return Found(f"{count} fuzzed files and words: {tally['valid']} valid recipes, {tally['refused']} lines", wrong)


def as_toml(content: dict[str, Any]) -> str:
    """Scalars in JSON form, which is nearly TOML; text that is no TOML is refused or read as it is."""
    lines, sections = [], []
    for name, value in content.items():
        if isinstance(value, dict):
            body = [f"{key} = {json.dumps('null' if each is None else each)}" for key, each in value.items()]
            sections += [f"[{name}]", *body]
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join([*lines, *sections])
