"""docs/troubleshooting.md has every message that a user can meet, as the code writes it, and no other."""

import re

from deit_fast.runtime.exit_status import ExitStatus
from tests.conftest import ROOT
from tests.docs.messages import Message, messages

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
_LISTED = re.compile(r"^\* (`+)(.+?)\1$", re.M | re.S)


def listed() -> list[str]:
    """The messages of the page's lists. A line break inside one is a space."""
    return [" ".join(text.split()) for _, text in _LISTED.findall(PAGE)]


def test_every_message_is_listed_once() -> None:
    lines = listed()
    assert len(lines) == len(set(lines)), sorted({line for line in lines if lines.count(line) > 1})
    written = {message.text: message.place for message in reversed(messages())}
    missing = [f"{place}: {text}" for text, place in written.items() if text not in lines]
    assert not missing, "docs/troubleshooting.md lacks, under its cause:\n" + "\n".join(missing)
    gone = [line for line in lines if line not in written]
    assert not gone, "docs/troubleshooting.md has what no code says any more:\n" + "\n".join(gone)


def test_every_message_has_a_cause_and_a_remedy() -> None:
    sections = re.split(r"^### ", PAGE, flags=re.M)[1:]
    assert sum(len(_LISTED.findall(section)) for section in sections) == len(listed())
    for section in sections:
        assert re.search(r"\n\n\*\*Cause\.\*\* \S.*?\n\n\*\*Remedy\.\*\* \S.*?\n\n\* `", section, re.S), section[:200]


def test_every_exit_status_is_explained() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|", PAGE, re.M))
    assert {int(number) for number in rows} == set(ExitStatus)


def test_messages_are_found_wherever_they_are_made() -> None:
    """One of each way: raised, joined from two texts, chosen by a condition, yielded by a rule, refused, printed."""
    texts = {message.text for message in messages()}
    assert {
        "…: no such checkpoint",
        "--images …: expected with a recipe's name and without --json",
        "schedule.warmup_epochs=…: expected less than schedule.epochs=…",
        "j=…: expected NODESxPROCESSES or PROCESSES, for example 2x8",
        "rank …: no sign of life for … s at … (run.hang_timeout=…)",
    } <= texts
    assert all(isinstance(message, Message) and ":" in message.place for message in messages())
