import pytest

from deit_fast.runtime.table import markdown_table, plain_table


def test_columns_stand_under_each_other() -> None:
    assert plain_table([("name", "px", ""), ("a longer one", "-", "x"), ("b", "224", "")]) == [
        "name          px",
        "a longer one  -    x",
        "b             224",
    ]
    assert plain_table([]) == []


def test_markdown_reads_well_unrendered() -> None:
    assert markdown_table(["stage", "top-1"], [["a|b", "97.22"], ["evaluation", "-"]]) == [
        "| stage      | top-1 |",
        "| ---------- | ----- |",
        "| a\\|b       | 97.22 |",
        "| evaluation | -     |",
    ]
    assert markdown_table(["a"], []) == ["| a |", "| - |"]


def test_rows_of_other_lengths_are_our_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        plain_table([("a", "b"), ("c",)])
