"""reasoning_gym's data sets as tasks: every one of them, their scores, and hostile answers."""

import inspect
import json
import os
import re
import subprocess
import sys
import time
from functools import cache

import datasets as hugging_face
import pytest

from sec_grpo import tasks
from sec_grpo.rewards import rewards_for
from sec_grpo.tasks import TaskReward, get, gym, tagged
from sec_grpo.tasks.base import NOT_VERIFIED
from sec_grpo.tasks.gym import GymTask
from sec_grpo.tasks.pool import VerifierPool

reasoning_gym = pytest.importorskip("reasoning_gym")
from sec_grpo.tasks import _gym_worker  # noqa: E402 - needs reasoning_gym
from sec_grpo.tasks._gym_checks import confirmed  # noqa: E402

NAMES = gym.datasets()
# Any right answer counts, none is given; in the metadata of some there is one.
WITHOUT_REFERENCE = {
    "boxnet": None,
    "graph_color": lambda metadata: json.dumps(metadata["possible_answer"]),
    "propositional_logic": lambda metadata: metadata["example_answer"],
    "rubiks_cube": lambda metadata: metadata["example_correct_answer"],
    "rush_hour": None,
}
ROWS = 3


@cache
def rows_of(name: str) -> list:
    """Rows of the first level."""
    task = get(f"reasoning_gym/{name}")
    return task.generate(task.levels[0], ROWS, seed=1)


def answered(text: object) -> str:
    return f"Let me think.\n<answer>\n{text}\n</answer>"


@pytest.fixture(scope="module")
def pool():
    """One process that scores all data sets."""
    with VerifierPool([get(f"reasoning_gym/{name}") for name in NAMES], 1) as pool:
        yield pool


@pytest.fixture(scope="module")
def scored(pool):
    def scored(name: str, answers: list, truths: list) -> list[float]:
        texts = [answered(answer) for answer in answers]
        verdicts = pool.verify(texts, truths, task=NAMES.index(name))
        assert not any(v.reason.startswith("not verified") for v in verdicts), verdicts
        return [verdict.score for verdict in verdicts]

    return scored


def test_there_are_many():
    assert len(NAMES) >= 100
    assert "composite" not in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set(name, scored):
    task = get(f"reasoning_gym/{name}")
    assert get(task.name) is task
    every = [*task.levels, *task.held_out_levels]
    assert task.levels
    assert len(set(every)) == len(every)
    knobs = [task.knobs(level) for level in every]
    assert all(knobs.count(given) == 1 for given in knobs)
    rows = rows_of(name)
    assert len({row["prompt"][0]["content"] for row in rows}) == ROWS
    for row in rows:
        assert row["task"] == task.name == tasks.task_of(row)
        assert (row["type"], row["difficulty"]) == (name, task.levels[0])
        assert row["category"]
        assert row["prompt"][0]["content"].endswith(gym.INSTRUCTION)
    stored = hugging_face.Dataset.from_list(rows)
    assert stored.to_list() == rows
    truths = stored["ground_truth"]
    if name in WITHOUT_REFERENCE:
        assert {row["answer"] for row in rows} == {None}
        assert max(scored(name, ["no"] * ROWS, truths)) < 1.0
        example = WITHOUT_REFERENCE[name]
        if example:
            answers = [example(tagged.loads(truth)["metadata"]) for truth in truths]
            assert scored(name, answers, truths) == [1.0] * ROWS
        return
    answers = stored["answer"]
    assert scored(name, answers, truths) == [1.0] * ROWS
    # Gibberish never scores.
    assert max(scored(name, ["zxqj"] * ROWS, truths)) < 1.0


# Where a problem has many right answers, that of another problem may be one of them.
MANY_ANSWERS = {"jugs", "n_queens", "puzzle24"}


@pytest.mark.parametrize("name", sorted({*NAMES} - {*WITHOUT_REFERENCE} - MANY_ANSWERS))
def test_the_answer_of_another_problem_is_wrong(name, scored):
    rows = rows_of(name)
    for i, row in enumerate(rows):
        other = rows[(i + 1) % ROWS]
        same = str(other["answer"]).strip().lower() == str(row["answer"]).strip().lower()
        (score,) = scored(name, [other["answer"]], [row["ground_truth"]])
        assert (score == 1.0) == same


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_level_makes_problems(name):
    task = get(f"reasoning_gym/{name}")
    for level in (*task.levels, *task.held_out_levels):
        assert any(task.make(level, 7, number) for number in range(16)), level


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("coin_flip", ["0", "0.1", "nan", "1e-99999"]),
        ("game_of_life_halting", ["Perhaps", "x", "0", "not True"]),
        ("gsm_symbolic", ["-{answer}", "{answer} or 7", "7 {answer}", "nan"]),
        ("puzzle24", ["24", "4*3*2*1*1", "12+12", "2*12", "3**3-3"]),
        ("countdown", ["{target}", "{target}+0", "2**3"]),
        ("number_sorting", ["['NaN']", "[]"]),
        ("complex_arithmetic", ["nan + nani", "nan", "inf"]),
        (
            "fraction_simplification",
            ["{answer} or $\\\\frac{{1}}{{2}}$", "{answer}9", "{answer} 7"],
        ),
        ("letter_jumble", ["{answer} or {answer}", "{answer} a"]),
        ("word_sorting", ["{answer}, {answer}", "{answer}, a", "{answer}, "]),
    ],
)
def test_what_reasoning_gym_would_pay_in_full(name, wrong, scored):
    row = get(f"reasoning_gym/{name}").generate(1, 1, seed=2)[0]
    target = json.loads(row["ground_truth"])["metadata"].get("target")
    texts = [text.format(answer=row["answer"], target=target) for text in wrong]
    assert max(scored(name, texts, [row["ground_truth"]] * len(texts))) < 1.0


def test_checks_of_full_scores():
    numbers = {"answer": "['3.0', '2.0']"}
    assert confirmed("number_sorting", '["3", "2.0"]', numbers)
    assert not confirmed("number_sorting", '["3.5", "2.0"]', numbers)
    assert not confirmed("number_sorting", "[NaN, NaN]", numbers)
    assert confirmed("coin_flip", "1/8", {"answer": "0.125"})
    assert confirmed("coin_flip", "0.12501", {"answer": "0.125"})
    assert not confirmed("coin_flip", "0.126", {"answer": "0.125"})
    assert confirmed("gsm_symbolic", "$1,391", {"answer": "1391"})
    made = {"metadata": {"numbers": [2, 3], "target": 8}, "answer": "?"}
    assert not confirmed("countdown", "2**3", made)
    assert confirmed("countdown", "2 * 3", {**made, "metadata": {"numbers": [3, 2], "target": 6}})
    fraction = {"answer": "$\\frac{41}{46}$"}
    assert confirmed("fraction_simplification", "$\\frac{41}{46}$", fraction)
    assert not confirmed("fraction_simplification", "$\\frac{41}{46}$ or $\\frac{7}{8}$", fraction)
    assert confirmed("word_sorting", "ab,  cd", {"answer": "ab, cd"})
    assert not confirmed("word_sorting", "ab, cd, ab", {"answer": "ab, cd"})
    assert confirmed("spell_backward", "nan", {"answer": "nan"})
    assert confirmed("sentence_reordering", "an information", {"answer": "an information"})


@pytest.mark.parametrize("name", ["bf", "codeio"])
def test_generators_that_print_are_silent(name, capfd):
    task = get(f"reasoning_gym/{name}")
    assert len(task.generate(task.levels[0], 60, seed=3)) == 60
    assert capfd.readouterr().out == ""


HOSTILE = {
    "a command": "__import__('os').system('touch {file}')",
    "a command in a list": "[__import__('os').system('touch {file}')]",
    "a generator": "[x for x in [().__class__]]",
    "a file": "open('{file}', 'w').write('x')",
    "a class": "().__class__.__base__.__subclasses__()",
    "an exit": "exit()",
    "a lambda": "(lambda: 1)()",
    "towers": "9**9**9**9",
    "a factorial": "99999999!",
    "a list": "[1] * 10**9",
    "parentheses": "(" * 60_000 + "1" + ")" * 60_000,
    "brackets": "[" * 60_000,
    "minuses": "-" * 60_000 + "1",
    "digits": "9" * 60_000,
    "a word": "a" * 60_000,
    "lines": "\n" * 60_000 + "x",
    "a null": "\x00",
    "surrogates": "\ud800",
    "arguments": "exp(" * 500 + "1" + ")" * 500,
    "fractions": "1/" * 20_000 + "1",
    "factorials": "factorial(10**9)",
    "an iterator": "sum(range(10**12))",
    "JSON": '{"a":' * 5000 + "1" + "}" * 5000,
}


@pytest.mark.parametrize(
    "name",
    [
        "binary_matrix",
        "bitwise_arithmetic",
        "countdown",
        "game_of_life",
        "intermediate_integration",
        "n_queens",
        "number_sorting",
        "palindrome_partitioning",
        "polynomial_multiplication",
        "propositional_logic",
        "puzzle24",
        "simple_integration",
        "sokoban",
        "spiral_matrix",
        "string_insertion",
        "zebra_puzzles",
    ],
)
def test_hostile_answers(name, pool, tmp_path):
    file = tmp_path / "made"
    truth = rows_of(name)[0]["ground_truth"]
    for kind, text in HOSTILE.items():
        started = time.monotonic()
        (verdict,) = pool.verify(
            [answered(text.replace("{file}", str(file)))], [truth], task=NAMES.index(name)
        )
        # A second, and the start of the next process where the machine is busy.
        assert time.monotonic() - started < 10.0, kind
        assert verdict.score < 1.0, kind
        # What takes time for certain is not begun.
        if kind in ("towers", "a factorial"):
            assert not verdict.reason.startswith(NOT_VERIFIED)
        assert not file.exists(), kind


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[[1, 0], [0, 1]]", [[1, 0], [0, 1]]),
        ("('a', 'b')", ("a", "b")),
        ("((0x3a - 0x2) + 5) * 2", 122),
        ("7 // 2 + ~1", 1),
    ],
)
def test_what_is_read_instead_of_evaluated(text, value):
    assert _gym_worker.read_value(text) == value


@pytest.mark.parametrize("text", ["a", "f(1)", "[1].__class__", "2**9", "1 if 1 else 2", "x := 1"])
def test_what_is_not_read(text):
    with pytest.raises((ValueError, SyntaxError)):
        _gym_worker.read_value(text)


def test_a_scoring_process_refuses_what_no_scorer_does(tmp_path):
    code = (
        "import os, socket, subprocess\n"
        "from sec_grpo.tasks import _gym_worker, isolated\n"
        "isolated.inside = True\n_gym_worker._build_wall()\n"
        f"path = {str(tmp_path / 'made')!r}\n"
        "for act in (lambda: os.system('true'), lambda: subprocess.run(['true']), socket.socket,\n"
        "            lambda: open(path, 'w'), lambda: os.open(path, os.O_CREAT | os.O_WRONLY),\n"
        "            lambda: os.remove(path), lambda: os.kill(1, 0), os.fork,\n"
        "            lambda: __import__('ctypes').CDLL(None)):\n"
        "    try:\n        act()\n    except PermissionError:\n        print('refused')\n"
        "print(len(open('/dev/null').read()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["refused"] * 9 + ["0"], done.stdout + done.stderr


def test_scorers_that_look_at_the_configuration_get_it():
    """By their source: one that reads `self.config` must be in the list."""
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS

    for name in NAMES:
        cls = DATASETS[name][0]
        seen, waiting = set(), {"score_answer"}
        while waiting:
            method = getattr(cls, waiting.pop(), None)
            if method in seen or not callable(method) or method is ProceduralDataset.score_answer:
                continue
            seen.add(method)
            source = inspect.getsource(method)
            waiting |= set(re.findall(r"self\.(\w+)\(", source))
            if "self.config" in source:
                assert name in _gym_worker.SCORED_BY_KNOBS


def test_levels_from_knobs():
    task = get(
        "reasoning_gym/chain_sum",
        knobs={1: {"min_terms": 2, "max_terms": 2}, 2: {"min_terms": 9, "max_terms": 9}},
        min_digits=3,
        max_digits=3,
        held_out_levels=[2],
        instruction="Answer with \\boxed{}.",
    )
    assert (task.levels, task.held_out_levels) == ((1,), (2,))
    assert task.knobs(2) == {"min_terms": 9, "max_terms": 9, "min_digits": 3, "max_digits": 3}
    content = task.generate(2, 1, seed=0)[0]["prompt"][0]["content"]
    assert len(re.findall(r"\b[0-9]{3}\b", content)) == 9
    assert content.endswith("Answer with \\boxed{}.")
    # As a line of YAML.
    words = (
        "{name: reasoning_gym/chain_sum, knobs: {1: {min_terms: 2, max_terms: 2}}, n_per_level: 4}"
    )
    rows = tasks.load_rows(words)
    assert len(rows) == 4
    training, evaluation = rewards_for(rows)
    assert training.__name__ == "reasoning_gym_chain_sum_reward"
    right = [[{"role": "assistant", "content": answered(answer)}] for answer in rows["answer"]]
    right[3] = [{"role": "assistant", "content": answered(rows[3]["answer"] + "1")}]
    right[2] = [{"role": "assistant", "content": rows[2]["answer"]}]
    columns = {"ground_truth": rows["ground_truth"]}
    assert training(None, right, **columns) == [1.0, 1.0, 0.0, 0.1]
    assert evaluation(None, right, **columns) == [1.0, 1.0, 0.0, 0.0]
    partly = TaskReward(task, partial=True)(None, right, **columns)
    assert partly[:3] == [1.0, 1.0, 0.0]
    assert 0.1 < partly[3] < 1.0


def test_tasks_of_reasoning_gym_mix_with_others():
    rows = tasks.mix(
        [
            get("reasoning_gym/spell_backward").dataset(2, seed=0, levels=[1]),
            get("countdown").dataset(2, seed=0, levels=[3]),
        ]
    )
    assert rows["type"] == ["spell_backward"] * 2 + ["countdown"] * 2
    (first, second), _ = rewards_for(rows)
    answer = json.loads(json.loads(rows[0]["ground_truth_json"]))["answer"]
    columns = {name: rows[name] for name in ("task", "ground_truth_json")}
    texts = ["", answered(answer), "", ""]
    assert first(None, texts, **columns) == [None, None, 0.0, 0.0]
    texts = [answered(answer), "", "", ""]
    assert second(None, texts, **columns) == [1.0, 0.0, None, None]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_sun", {}, "no data set 'chain_sun'; did you mean 'chain_sum'.* It has: ab, "),
        ("chain_sum", {"min_term": 2}, "no knob 'min_term'; did you mean 'min_terms'.*max_digits"),
        ("chain_sum", {"seed": 2}, "no knob 'seed'"),
        ("chain_sum", {"knobs": {1: {"min_terms": 0}}}, "refuses {'min_terms': 0}"),
        ("chain_sum", {"knobs": {1: {"min_terms": "a"}}}, "refuses {'min_terms': 'a'}"),
        ("chain_sum", {"knobs": [2]}, "must map levels to knobs"),
        ("chain_sum", {"knobs": {}}, "must map levels to knobs"),
        ("chain_sum", {"knobs": {1: {}}, "held_out_levels": [1]}, "must be some of .1., not all"),
        ("chain_sum", {"held_out_levels": [99]}, "must be some of"),
        ("composite", {}, "no data set 'composite'"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        get(f"reasoning_gym/{name}", **options)


@pytest.mark.parametrize(
    "truth",
    [None, 3, {"target": "1"}, "", "{}", '{"dataset": "lcm"}', '{"__kind__": "os"}', "[" * 9999],
)
def test_bad_truths(truth):
    with pytest.raises(ValueError, match="ground_truth of task 'reasoning_gym/chain_sum'"):
        get("reasoning_gym/chain_sum").verify(answered("1"), truth)


def test_a_level_that_cannot_be_made_is_named():
    task = GymTask("spell_backward", knobs={1: {"min_word_len": 200, "max_word_len": 200}})
    expected = r"no problems of 'spell_backward' .*'min_word_len': 200.* give other `knobs`"
    with pytest.raises(ValueError, match=expected):
        task.generate(1, 1, seed=0)


def test_rows_do_not_depend_on_the_hash_seed():
    script = (
        "import hashlib\nfrom sec_grpo.tasks import get\n"
        "for name in ('ransom_note', 'chain_sum'):\n"
        "    rows = get('reasoning_gym/' + name).generate(2, 3, seed=4)\n"
        "    print(hashlib.sha256(repr(rows).encode()).hexdigest())"
    )
    outputs = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        outputs.add(done.stdout)
    assert len(outputs) == 1


@pytest.mark.slow
def test_only_the_listed_data_sets_go_through_sets():
    script = (
        "import hashlib, json\nfrom sec_grpo.tasks import get, gym\n"
        "made = {}\n"
        "for name in gym.datasets():\n"
        "    task = get('reasoning_gym/' + name)\n"
        "    rows = [task.make(level, 3, i) for level in task.levels[:1] for i in range(3)]\n"
        "    made[name] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()\n"
        "import sys\nprint(json.dumps(made), file=sys.stderr)"
    )
    made = []
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        made.append(json.loads(done.stderr.splitlines()[-1]))
    differ = {name for name in NAMES if made[0][name] != made[1][name]}
    assert differ <= set(gym._GO_THROUGH_SETS)
