"""What a test leaves open is noticed, and what others close meanwhile is not taken for it."""

import os

import pytest

from support.open_files import nothing_stays_open


def test_what_stays_open_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="open still: .*left'"), nothing_stays_open():
        fd = os.open(tmp_path / "left", os.O_CREAT)
    os.close(fd)


def test_what_others_close_is_not_noticed(tmp_path):
    there = os.open(tmp_path / "there", os.O_CREAT)
    with nothing_stays_open():
        os.close(os.open(tmp_path / "closed", os.O_CREAT))
        os.close(there)


def test_one_that_has_the_number_of_another_is_noticed(tmp_path):
    there = os.open(tmp_path / "there", os.O_CREAT)
    left = os.open(tmp_path / "left", os.O_CREAT)
    with pytest.raises(AssertionError, match="open still: .*left'"), nothing_stays_open():
        os.dup2(left, there)
    os.close(there)
    os.close(left)
