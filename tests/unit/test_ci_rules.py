"""Conditions of rules, held against GitLab's documentation and its lexemes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glgpu.ci_rules import ExpressionError, check, holds

SET = {
    "CI_PIPELINE_SOURCE": "push",
    "CI_COMMIT_BRANCH": "main",
    "CI_DEFAULT_BRANCH": "main",
    "CI_COMMIT_MESSAGE": "Fix bug [skip gpu]\n\nlonger text",
    "EMPTY": "",
    "BLANK": "  ",
    "ABC": "abc",
    "PATTERN": "/^ab.*/",
    "BARE": "abcdef",
    "GLGPU_TASK": "cleanup",
    "X": "?+$$",
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # Comparisons with strings, null, empty (documentation: "Compare a variable to a string / null / empty").
        ('$CI_PIPELINE_SOURCE == "push"', True),
        ("$CI_PIPELINE_SOURCE == 'schedule'", False),
        ('$CI_PIPELINE_SOURCE != "schedule"', True),
        ("$UNSET == null", True),
        ("$ABC == null", False),
        ("$ABC != null", True),
        ('$EMPTY == ""', True),
        ('$EMPTY != ""', False),
        ("$EMPTY == null", False),
        ('$UNSET == ""', False),
        ("$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH", True),
        ('"main" == $CI_COMMIT_BRANCH', True),
        # A variable alone: set and not blank.
        ("$ABC", True),
        ("$UNSET", False),
        ("$EMPTY", False),
        ("$BLANK", False),
        # Patterns.
        ("$ABC =~ /^ab/", True),
        ("$ABC =~ /^b/", False),
        ("$ABC !~ /^b/", True),
        ("$ABC =~ /^AB/", False),
        ("$ABC =~ /^AB/i", True),
        ("$ABC =~ $PATTERN", True),
        ("$GLGPU_TASK =~ $PATTERN", False),
        ("$UNSET =~ /abc/", False),
        ("$UNSET !~ /abc/", True),
        ("$ABC =~ $UNSET", False),
        ("$ABC !~ $UNSET", True),
        (r"$CI_COMMIT_MESSAGE =~ /\[skip gpu\]/", True),
        (r"$CI_COMMIT_MESSAGE =~ /bug \[skip gpu\]$/", False),
        (r"$CI_COMMIT_MESSAGE =~ /bug \[skip gpu\]$/m", True),
        (r"$X =~ /^[$?+]+\$$/", True),
        (r"$CI_COMMIT_BRANCH =~ /^(main|release\/.+)$/", True),
        # A right side that is no pattern is itself searched.
        ("$ABC =~ $BARE", True),
        ("$BARE =~ $ABC", False),
        # Logic: && before ||, parentheses before both.
        ('$ABC == "x" && $ABC == "y" || $ABC == "abc"', True),
        ('$ABC == "abc" || $ABC == "x" && $ABC == "y"', True),
        ('($ABC == "abc" || $ABC == "x") && $ABC == "y"', False),
        ('($CI_PIPELINE_SOURCE == "push" && ($ABC || $UNSET)) && $GLGPU_TASK == "cleanup"', True),
        # Ruby's truth inside an expression: an empty string is true, null is not.
        ("$EMPTY && $ABC", True),
        ("$UNSET && $ABC", False),
        ("$UNSET || $ABC", True),
        ("$EMPTY || $ABC", False),
    ],
)
def test_a_condition_is_judged_as_gitlab_judges_it(expression: str, expected: bool) -> None:
    assert holds(expression, SET) is expected


def test_a_condition_over_several_lines_is_one_condition() -> None:
    assert holds('$ABC == "abc"\n  && $GLGPU_TASK =~ /clean/', SET)


def test_a_dollar_means_the_very_end_of_the_text() -> None:
    assert not holds("$X =~ /abc$/", {"X": "abc\n"})


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "$",
        "$ABC ==",
        '== "abc"',
        "($ABC",
        "$ABC)",
        '$ABC = "abc"',
        '$ABC "abc"',
        "abc",
        "!$ABC",
        "$ABC =~ /a(/ && $ABC",
        "$ABC =~ /a(?=b)/",
        "$ABC =~ /ab++/",
        r"$ABC =~ /(a)\1/",
        '${ABC} == "abc"',
        " && ".join(["$ABC"] * 51),
    ],
)
def test_what_gitlab_refuses_is_refused(expression: str) -> None:
    with pytest.raises(ExpressionError):
        check(expression)


def test_fifty_operands_are_still_accepted() -> None:
    assert holds(" && ".join(["$ABC"] * 50), SET)


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\"'"), max_size=40))
def test_any_text_equals_itself(text: str) -> None:
    assert holds(f'$X == "{text}"', {"X": text})


@given(st.text(max_size=60))
def test_any_text_is_judged_or_refused_and_nothing_else(expression: str) -> None:
    with contextlib.suppress(ExpressionError):
        assert holds(expression, SET) in (True, False)
