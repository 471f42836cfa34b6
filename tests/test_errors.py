"""Errors for users: suggestions, names of files, and exceptions described by their place."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from workbench.errors import ConfigError, did_you_mean, in_words, name_problem


def test_suggestions_ignore_case_and_are_not_guessed() -> None:
    assert did_you_mean("lora", ["LoRA", "CALM"]) == " Did you mean 'LoRA'?"
    assert did_you_mean("xyz", ["LoRA", "CALM"]) == ""


def test_problems_stay_apart_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["a: one.", "b: two."], {"c": 3})))  # noqa: S301
    assert (error.problems, error.raw, str(error)) == (["a: one.", "b: two."], {"c": 3}, "a: one.\nb: two.")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("é" * 115, ""),
        ("é" * 116, "it has 232 bytes in UTF-8, and a file's name leaves room for 230; choose a shorter one"),
        ("", "it has to be usable as a file's name"),
        (".hidden", "it has to be usable as a file's name"),
        ("a/b", "it has to be usable as a file's name"),
        ("a\n", "it has to be usable as a file's name"),
        ("half \ud800", "it has to be usable as a file's name"),
        (3, "expected a text, got a value of type int"),
    ],
)
def test_names_that_fit_into_a_file_s_name(name: object, problem: str) -> None:
    assert name_problem(name) == problem


def test_an_error_of_a_library_is_shown_with_the_line_of_the_user_s_code() -> None:
    def convert(text: str) -> int:
        return int(text)

    def refuse(text: str) -> int:
        raise ValueError(f"{text} is no number. Choose one.")

    problems = []
    for call in (convert, refuse):
        try:
            call("ten")
        except ValueError as error:
            problems += in_words(error, "strategies.it", "mine.Method")
    line = convert.__code__.co_firstlineno + 1
    place = Path(__file__).relative_to(Path.cwd()) if Path(__file__).is_relative_to(Path.cwd()) else Path(__file__)
    assert problems == [
        "strategies.it: mine.Method: invalid literal for int() with base 10: 'ten' "
        f"({place}, line {line}, in convert). Fix the class, or its init_args.",
        "strategies.it: ten is no number. Choose one.",
    ]
