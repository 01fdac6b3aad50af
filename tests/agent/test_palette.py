"""The colours of a mask: those of the field are exact, the others are distinct."""

import pytest

from edge_agent import palette

PAGE = """
    FFFFFF 23A436 14A3B3 F76902 9380FF BD10E0 467CE6 A09308 0094BD CC7700 5856D6 D61CB0 007AFF
    8A6E00 2CA02C 3182BD E6550D 8269FF FF2EDC 2532EA 7C9F1E 54A611 18A599 F6673C
"""
FIELD = PAGE.split()


def test_the_24_of_the_field_are_exact():
    assert len(FIELD) == 24
    assert palette.colours(24) == tuple(f"#{one}" for one in FIELD)


def test_all_are_distinct_and_no_other_number_of_classes_changes_them():
    every = palette.colours(101)
    assert len(set(every)) == 101
    for count in range(102):
        assert palette.colours(count) == every[:count]
    with pytest.raises(ValueError, match="102"):
        palette.colours(102)
