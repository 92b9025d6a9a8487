"""The arithmetic reader against two oracles: expression trees, and Python's own parser."""

import ast
import re
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sec_grpo.tasks.arithmetic import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, ExpressionError, parse


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("7", 7, [7]),
        ("0", 0, [0]),
        ("1 + 2 * 3", 7, [1, 2, 3]),
        ("(1 + 2) / 3", 1, [1, 2, 3]),
        ("8 - 3 - 2", 3, [8, 3, 2]),
        ("8 / 4 / 2", 1, [8, 4, 2]),
        ("8 / 4 * 2", 4, [8, 4, 2]),
        ("8-(3-2)", 7, [8, 3, 2]),
        ("1/3", Fraction(1, 3), [1, 3]),
        ("6/(1-3/4)", 24, [6, 1, 3, 4]),
        ("((((5))))", 5, [5]),
        (" 1\t+\n2 ", 3, [1, 2]),
        # a leading minus sign, alone
        ("-3 + 10", 7, [3, 10]),
        ("-3 * 2 + 10", 4, [3, 2, 10]),
        ("2 * (-3 + 5)", 4, [2, 3, 5]),
        ("-(3 - 10)", 7, [3, 10]),
        # the spellings models use
        ("2 × 3 ÷ 6 − 1", 0, [2, 3, 6, 1]),
        ("2 · 3 ⋅ 4", 24, [2, 3, 4]),
        (r"8 \times 96 + 73", 841, [8, 96, 73]),
        (r"8\cdot 9 \div 6", 12, [8, 9, 6]),
        (r"\frac{8}{4} + 1", 3, [8, 4, 1]),
        (r"2 * \dfrac{1 + 2}{\tfrac{6}{4}}", 4, [2, 1, 2, 6, 4]),
        (r"6 / \frac {1}{ 2 } ", 12, [6, 1, 2]),
        (r"\frac{-1 + 3}{2}", 1, [1, 3, 2]),
        (r"\left(1 + 2\right)\, \times \; 3", 9, [1, 2, 3]),
    ],
)
def test_value_and_numbers(text, value, numbers):
    expression = parse(text)
    assert expression.value == value
    assert expression.numbers == numbers
    assert expression.equals(42) is False
    if value == int(value):
        assert expression.equals(int(value))


@pytest.mark.parametrize(
    "text", ["1/0", "1/(2-2)", "0/0", "1/(1/0)", "(1/0)*0", "1/(2/(3-3))", r"\frac{1}{0}"]
)
def test_division_by_zero_has_no_value(text):
    expression = parse(text)
    assert expression.value is None
    assert not any(expression.equals(target) for target in (-1, 0, 1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("96**73**8", "'**'"),
        ("7//2", "'//'"),
        ("2^3", "'^'"),
        ("7 % 2", "'%'"),
        ("1.5", "'.'"),
        (".5", "'.'"),
        ("1e3", "'e'"),
        ("0x10", "'x'"),
        ("1_000", "'_'"),
        ("1,000", "','"),
        ("2(3)", "'('"),
        ("(2)(3)", "'('"),
        ("2 3", "'3'"),
        ("(2) 3", "'3'"),
        (r"2\frac{1}{2}", "frac"),
        ("08 + 1", "zero"),
        ("00", "zero"),
        ("+3", "'+'"),
        ("--3", "'-'"),
        ("5 - -3", "'-'"),
        ("2 * -3", "'-'"),
        ("2 * * 3", "'*'"),
        ("1 +", "ends"),
        ("()", "')'"),
        ("(1", "not closed"),
        ("1)", "closes nothing"),
        ("1 = 1", "'='"),
        ("[1]", "'['"),
        ("{1}", "'{'"),
        ("1}", "closes nothing"),
        (r"\frac{1}", "closes nothing"),
        (r"\frac{1}{2", "not closed"),
        (r"\frac{(1}{2)}", "closes nothing"),
        (r"\frac{1}{2)", "closes nothing"),
        (r"\frac12", "'\\\\'"),
        (r"\frac{}{2}", "expected"),
        (r"\timesx", "'\\\\'"),
        (r"1\,000", "'000'"),
        (r"2 \times \times 3", "'*'"),
        ("１ + ２", "'１'"),
        ("٣ + 4", "'٣'"),
        ("2² + 1", "'²'"),
        ("1 ＋ 2", "'＋'"),
        ("1 – 2", "'–'"),
        ("1\u00a0+ 2", "expected"),
        ("1\u200b+ 2", "expected"),
        ("__import__('os')", "'_'"),
        ("lambda: 1", "'l'"),
    ],
)
def test_everything_else_is_refused(text, reason):
    with pytest.raises(ExpressionError, match=re.escape(reason)):
        parse(text)


def test_limits():
    assert parse("9" * MAX_DIGITS).value == 10**MAX_DIGITS - 1
    with pytest.raises(ExpressionError, match="digits"):
        parse("9" * (MAX_DIGITS + 1))
    assert parse("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH).value == 1
    with pytest.raises(ExpressionError, match="deeper"):
        parse("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1))
    # Side by side is not deep.
    assert parse("+".join(["(1)"] * (MAX_DEPTH + 1))).value == MAX_DEPTH + 1
    assert parse("+".join([r"\frac{1}{1}"] * 38) + "+" + "(" * 27 + "1" + ")" * 27).value == 39
    assert parse("1".ljust(MAX_LENGTH)).value == 1
    with pytest.raises(ExpressionError, match="longer"):
        parse("1".ljust(MAX_LENGTH + 1))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10**6,
        "9" * 10**7,
        "9**9**9",
        "1+" * 10**6,
        r"\frac{" * 10**6,
        "\\left" * 10**6,
        "(" * 512,
    ],
)
def test_hostile_text_is_refused_within_a_second(text):
    start = time.perf_counter()
    with pytest.raises(ExpressionError):
        parse(text)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "text", ["/".join(["98765"] * 80), "1/(1+" * 60 + "7" + ")" * 60, "*".join(["98765"] * 80)]
)
def test_values_stay_as_short_as_the_text(text):
    """Nested divisions must not square the denominators: 2**60 digits at this depth."""
    start = time.perf_counter()
    expression = parse(text)
    assert time.perf_counter() - start < 1
    assert len(str(expression.numerator)) + len(str(expression.denominator)) <= len(text)


trees = st.recursive(
    st.integers(0, 999),
    lambda below: st.tuples(st.sampled_from("+-*/"), below, below),
    max_leaves=12,
)


def tree_value(tree) -> Fraction | None:
    if isinstance(tree, int):
        return Fraction(tree)
    operator, left, right = tree[0], tree_value(tree[1]), tree_value(tree[2])
    if left is None or right is None or (operator == "/" and right == 0):
        return None
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


def tree_numbers(tree) -> list[int]:
    return [tree] if isinstance(tree, int) else tree_numbers(tree[1]) + tree_numbers(tree[2])


def plain(tree) -> str:
    """With the fewest parentheses."""
    if isinstance(tree, int):
        return str(tree)
    operator, left, right = tree
    left_text, right_text = plain(left), plain(right)
    if precedence(left) < precedence(tree):
        left_text = f"({left_text})"
    if precedence(right) < precedence(tree) + (operator in "-/"):
        right_text = f"({right_text})"
    return f"{left_text}{operator}{right_text}"


def precedence(tree) -> int:
    return 3 if isinstance(tree, int) else 1 + (tree[0] in "*/")


def latex(tree) -> str:
    if isinstance(tree, int):
        return str(tree)
    operator, left, right = tree[0], latex(tree[1]), latex(tree[2])
    if operator == "/":
        return rf"\frac{{{left}}}{{{right}}}"
    return rf"\left({left} {operator} {right}\right)".replace("*", r"\times")


@given(trees)
def test_a_tree_is_read_back(tree):
    for text in (plain(tree), latex(tree)):
        if len(text) > MAX_LENGTH:
            continue
        expression = parse(text)
        assert expression.value == tree_value(tree), text
        assert expression.numbers == tree_numbers(tree), text


def python_value(text: str) -> tuple[bool, Fraction | None]:
    """(whether the grammar has the text, its value) by way of Python's own parser."""
    text = text.strip()
    if re.search(rf"(?<![0-9])0[0-9]|[0-9]{{{MAX_DIGITS + 1}}}", text):
        return False, None
    try:
        return True, node_value(ast.parse(text, mode="eval").body, text)
    except ZeroDivisionError:
        return True, None
    except (SyntaxError, TypeError):
        return False, None


def node_value(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        if text[: node.col_offset].rstrip()[-1:] not in ("", "("):
            raise TypeError("a minus sign in the middle")
        return -node_value(node.operand, text)
    if isinstance(node, ast.BinOp):
        # Both sides first: an error of grammar outweighs a division by zero.
        left = checked(node.left, text)
        right = checked(node.right, text)
        if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
            if left is None or right is None:
                raise ZeroDivisionError
            if isinstance(node.op, ast.Add):
                return left + right
            if isinstance(node.op, ast.Sub):
                return left - right
            return left * right if isinstance(node.op, ast.Mult) else left / right
    raise TypeError(f"not in the grammar: {ast.dump(node)}")


def checked(node: ast.expr, text: str) -> Fraction | None:
    try:
        return node_value(node, text)
    except ZeroDivisionError:
        return None


token_soup = st.lists(st.sampled_from([*"0123456789", *"+-*/()", " "]), max_size=14).map("".join)
# Mostly valid texts: a tree's text with one character replaced.
near_misses = st.builds(
    lambda tree, at, new: (
        (text := plain(tree))[: at % len(text)] + new + text[at % len(text) + 1 :]
    ),
    trees,
    st.integers(0, 100),
    st.sampled_from(["", *"+-*/()07 "]),
)


@given(token_soup | near_misses)
@example("1" + "0" * MAX_DIGITS)
@example("1/0")
@example("(1/0)**2")
@example("-(-3)")
@example("-(-3)*2-1")
def test_same_language_and_value_as_python(text):
    accepted, value = python_value(text)
    if not accepted:
        with pytest.raises(ExpressionError):
            parse(text)
    else:
        assert parse(text).value == value


@given(st.text(max_size=600) | st.text("0123+-*/() \\frac{}×−", max_size=60))
def test_arbitrary_text_gives_a_value_or_the_one_error(text):
    try:
        expression = parse(text)
    except ExpressionError:
        return
    assert expression.numbers
