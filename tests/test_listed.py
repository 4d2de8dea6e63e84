"""A list in one line of a message, cut where it gets long."""

import pytest

from recon.listed import listed


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([1], "1"),
        (["a", "b", "c"], "a, b, c"),
        (["a", "b", "c", "d"], "a, b, c, ..."),
        ((x for x in [[0, 1]]), "[0, 1]"),
    ],
)
def test_a_list_is_written_and_cut_after_the_first_few(values, line):
    assert listed(list(values), 3) == line
