"""A study that was stopped, anywhere and in any way, ends as one that was not, bit for bit; or it says what to do."""

from __future__ import annotations

import pytest
from helpers.programs import output_of


def test_a_study_that_is_killed_ends_as_one_that_is_not() -> None:
    assert output_of("killing.py", "short").count(", equal\n") == 7


def test_torn_files_are_made_again_or_refused() -> None:
    assert output_of("tearing.py", "3").count(", equal") == 6


@pytest.mark.slow
def test_all_ways_to_stop_a_study() -> None:
    print(output_of("killing.py", "whole"))


@pytest.mark.slow
def test_every_file_torn_in_three_ways() -> None:
    print(output_of("tearing.py", "10000"))
