import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sec_grpo.tasks import answers, get
from sec_grpo.tasks.answers import MAX_ANSWER, MAX_TEXT, last_answer, last_boxed, last_tagged


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{1 + 2}.", "1 + 2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2} at last", "2"),
        (r"\boxed{1} and then \boxed alone", "1"),
        (r"\boxed {  x }", "x"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\\}", r"\\"),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"\boxed{}", ""),
        ("\\boxed{1\n+ 2}", "1\n+ 2"),
        (r"\boxed{1", None),
        (r"\boxed{1} or \boxed{2", None),
        (r"\boxed{{1}", None),
        (r"\boxed{1\}", None),
        ("boxed{1}", None),
        (r"\fbox{1}", None),
        (r"\boxed", None),
        ("", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>7</think><answer> 1 + 2\n</answer>", "1 + 2"),
        ("<answer>1</answer><answer>2</answer> rest", "2"),
        ("<answer>1</answer><answer>2", None),
        ("<answer><answer>2</answer></answer>", "2"),
        ("</answer><answer>", None),
        ("<Answer>1</Answer>", None),
        ("1", None),
    ],
)
def test_last_tagged(text, answer):
    assert last_tagged(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then <answer>2</answer>", "2"),
        (r"<answer>1</answer> then \boxed{2}", "2"),
        (r"<answer>so \boxed{2}</answer>", "2"),
        (r"<answer>so \boxed {2}</answer> \boxed", "2"),
        (r"\boxed{<answer>1</answer>}", "1"),
        (r"\boxed{1} then <answer>2", None),
        (r"<answer>1</answer> then \boxed{2", None),
        (r"\boxed{1}", "1"),
        ("<answer>1</answer>", "1"),
        ("1", None),
    ],
)
def test_last_answer(text, answer):
    assert last_answer(text) == answer


@pytest.mark.parametrize("name", ["countdown", "zebra", "arc_1d", "math"])
def test_tasks_take_either_format_or_one(name):
    if name == "math":
        pytest.importorskip("math_verify")
    truth, answer = {
        "countdown": ({"numbers": [1, 2], "target": 3}, "1 + 2"),
        "zebra": ("Bob", "Bob"),
        "arc_1d": ("0 1", "0 1"),
        "math": ("7", "7"),
    }[name]
    texts = [f"\\boxed{{{answer}}}", f"<answer>{answer}</answer>"]
    for format, scores in (("either", [1, 1]), ("boxed", [1, 0]), ("tagged", [0, 1])):
        task = get(name, answer_format=format)
        assert [task.verify(text, truth).score for text in texts] == scores
    assert [get(name).verify(text, truth).score for text in texts] == [1, 1]
    with pytest.raises(ValueError, match="answer_format must be one of either, boxed, tagged. Got"):
        get(name, answer_format="both")


def test_only_the_end_of_a_long_text_is_read():
    assert last_boxed(r"\boxed{1}" + "x" * (MAX_TEXT - 9)) == "1"
    assert last_boxed(r"\boxed{1}" + "x" * (MAX_TEXT - 8)) is None
    assert last_tagged("<answer>1</answer>" + "x" * (MAX_TEXT - 18)) == "1"
    assert last_tagged("<answer>1</answer>" + "x" * (MAX_TEXT - 17)) is None


@pytest.mark.parametrize(
    ("find", "opening", "closing"),
    [(last_boxed, r"\boxed{", "}"), (last_tagged, "<answer>", "</answer>")],
)
def test_an_answer_longer_than_the_limit_counts_as_none(find, opening, closing):
    longest = "7" * MAX_ANSWER
    assert find(opening + longest + closing) == longest
    assert find(opening + longest + "7" + closing) is None


# 16 MB each: a quadratic search would take minutes.
@pytest.mark.parametrize("unit", [r"\boxed{", r"\boxed", "{", "}", "\\", r"\boxed   ", "<answer>"])
def test_hostile_text_is_read_within_a_second(unit):
    text = unit * (2**24 // len(unit))
    start = time.perf_counter()
    assert last_boxed(text) is None
    assert last_tagged(text) is None
    assert last_answer(text) is None
    assert last_answer(f"<answer>{text}") is None
    assert time.perf_counter() - start < 1


@given(st.text(st.characters(exclude_characters="{}\\"), max_size=50), st.text(max_size=50))
def test_a_box_at_the_end_is_found_after_any_text(answer, before):
    assert last_boxed(f"{before}\\boxed{{{answer}}}") == answer.strip()


@given(st.text("\\boxed{} <answer>/1"))
def test_arbitrary_text_never_raises(text):
    for find in (last_boxed, last_tagged, last_answer):
        answer = find(text)
        assert answer is None or answer in text


def boxed_by_the_definition(text, longest):
    """Tries every start from the left, and walks it character by character."""
    found = None
    for start in range(len(text)):
        if not text[start:].startswith("\\boxed"):
            continue
        brace = start + len("\\boxed")
        while brace < len(text) and text[brace].isspace():
            brace += 1
        if brace == len(text) or text[brace] != "{":
            continue
        found, depth, content, position = None, 1, "", brace + 1
        while position < len(text):
            width = 2 if text[position] == "\\" and position + 1 < len(text) else 1
            piece = text[position : position + width]
            depth += (piece == "{") - (piece == "}")
            if depth == 0:
                found = content.strip() if len(content) <= longest else None
                break
            content += piece
            position += width
    return found


def tagged_by_the_definition(text, longest):
    parts = text.split("<answer>")
    if len(parts) == 1:
        return None
    content, closed, _ = parts[-1].partition("</answer>")
    return content.strip() if closed and len(content) <= longest else None


PIECES = ["\\boxed", "\\boxed{", "{", "}", "\\", "\\{", "\\}", " ", "\n", "\u2003", "7", "x", "box"]
TAGS = ["<answer>", "</answer>", "<answer", "answer>", "/", "<", ">", " ", "7", "\n"]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.integers(0, 12))
def test_boxes_are_those_of_the_definition(text, longest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "MAX_ANSWER", longest)
        assert last_boxed(text) == boxed_by_the_definition(text, longest)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(TAGS), max_size=40).map("".join), st.integers(0, 12))
def test_tags_are_those_of_the_definition(text, longest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "MAX_ANSWER", longest)
        assert last_tagged(text) == tagged_by_the_definition(text, longest)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, *TAGS]), max_size=40).map("".join), st.integers(1, 60))
def test_only_the_end_counts(text, length):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "MAX_TEXT", length)
        assert last_boxed(text) == boxed_by_the_definition(text[-length:], MAX_ANSWER)
        assert last_tagged(text) == tagged_by_the_definition(text[-length:], MAX_ANSWER)
