"""Evaluation: the numbers by hand, completions, judges that fail, determinism, continuing."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from sec_grpo.evaluation import evaluate, mean_interval
from sec_grpo.report.series import wilson_interval
from sec_grpo.tasks import Task, TaskReward, Verdict, get
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

ROWS = [{"prompt": f"{'ab' * i}>", "level": i % 2, "ground_truth": "x"} for i in range(1, 7)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    tokenizer = character_tokenizer("ab>x")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "seed": 1}
    return tiny_qwen2(tokenizer, **small), tokenizer


def by_length(prompts, completions, **columns):
    """Right for rows 1 to 3, wrong for the others."""
    return [float(len(prompt) <= 7) for prompt in prompts]


def run(model, judge=by_length, **kwargs):
    options = {"category": "level", "max_completion_length": 5, "batch_size": 4, **kwargs}
    return evaluate(*model, ROWS, judge, **options)


def test_levels_by_hand(model) -> None:
    result = run(model)
    # Levels 0 (rows 2, 4, 6) and 1 (rows 1, 3, 5): 1 and 2 of 3 are right.
    assert [level.label for level in result.levels] == [0, 1]
    assert [level.accuracy for level in result.levels] == pytest.approx([1 / 3, 2 / 3])
    assert (result.levels[0].low, result.levels[0].high) == wilson_interval(1 / 3, 3)
    assert result.levels[0].prompts == 3
    assert result.levels[0].pass_at == {1: pytest.approx(1 / 3)}
    assert result.levels[0].well_formed is None
    assert result.mean([0, 1]) == pytest.approx(0.5)
    low, high = result.mean_interval([0, 1])
    assert 0.1 < low < 0.5 < high < 0.9
    assert math.isnan(result.mean([9]))
    assert math.isnan(result.mean_interval([9])[0])


class Alternating(Task):
    """Right for every other sample of a prompt, in the order they are judged."""

    name = "alternating"
    levels = (0, 1)

    def __init__(self):
        self.count = 0

    def draw(self, rng, level):
        raise NotImplementedError

    def prompt(self, problem):
        return problem

    def verify(self, text, truth):
        if truth != "x":
            raise ValueError(f"no such truth {truth!r}")
        self.count += 1
        # One is asked before all: whether the truths can be judged.
        right = self.count > len(ROWS) and self.count % 2 == 0
        return Verdict(1.0 if right else 0.4, "right" if right else "half", True)


def test_several_samples(model) -> None:
    result = run(model, Alternating(), samples=4, ks=(1, 2, 4), batch_size=24)
    for level in result.levels:
        assert level.accuracy == 0.5
        assert level.pass_at == pytest.approx({1: 0.5, 2: 5 / 6, 4: 1.0})
        assert (level.low, level.high) == mean_interval([0.5] * 3, 4)
        assert level.pass_at_interval[4] == wilson_interval(1.0, 3)
        assert level.mean_score == pytest.approx(0.7)
        assert level.well_formed == 1.0
    assert result.held_out_levels == frozenset()
    partly = run(model, TaskReward(Alternating()), samples=4, batch_size=24, solved=0.4)
    assert [level.accuracy for level in partly.levels] == [1.0, 1.0]


def test_completions_are_kept(model, tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    rows = [{**row, "index": i, "type": ["a"], "score": 7} for i, row in enumerate(ROWS)]
    rows[0]["index"] = "first"
    tokens = []

    def length(completions, completion_ids, **columns):
        tokens.extend(map(len, completion_ids))
        return [None if len(text) > 4 else 0.25 for text in completions]

    result = evaluate(
        *model, rows, [by_length, length], category="level", samples=2, ks=(1,),
        max_completion_length=5, folder=folder,
    )  # fmt: skip
    assert result.completions == folder / "completions.parquet"
    kept = pyarrow.parquet.read_table(result.completions).to_pylist()
    assert [(row["row"], row["sample"]) for row in kept] == [
        (i, j) for i in range(6) for j in range(2)
    ]
    first, last = kept[0], kept[-1]
    assert (first["prompt"], first["ground_truth"], first["level"]) == ("ab>", "x", "1")
    assert first["score"] >= 1.0
    assert (first["solved"], last["solved"]) == (True, False)
    assert first["rewards/by_length"] == 1.0
    assert {row["rewards/length"] for row in kept} <= {None, 0.25}
    assert [row["index"] for row in kept[::2]] == ["first", "1", "2", "3", "4", "5"]
    assert all(row["tokens"] <= 5 for row in kept)
    assert sorted(tokens) == sorted(row["tokens"] for row in kept)
    # No column that is no scalar, and none of ours overwritten.
    assert "type" not in first
    assert last["score"] < 1.0
    names = {path.name for path in folder.iterdir()}
    assert {"completions.parquet", "samples.jsonl"} <= names <= {
        "completions.parquet", "samples.jsonl", ".samples.jsonl.lock",
    }  # fmt: skip


def test_tasks_of_the_rows(model) -> None:
    sort, countdown = get("sort"), get("countdown")
    rows = [*sort.generate(1, 2, seed=0), *countdown.generate(3, 2, seed=0)]
    rows = [{**row, "prompt": ">"} for row in rows]
    result = evaluate(*model, rows, category="task", max_completion_length=2)
    assert [level.label for level in result.levels] == ["countdown", "sort"]
    assert result.held_out_levels == frozenset()
    # A single letter is right where it happens to be the truth.
    answered = [{**row, "ground_truth": "x" * 9} for row in rows[:2]]
    assert evaluate(*model, answered, category="task", max_completion_length=2).mean(["sort"]) == 0
    with pytest.raises(ValueError, match="row 3: ground_truth of task 'countdown'"):
        evaluate(*model, [*rows[:3], {**rows[3], "ground_truth": {"numbers": "1"}}], category=None)
    with pytest.raises(ValueError, match="needed .--reward.: no registered task verifies 'chess'"):
        evaluate(*model, [{"prompt": "a", "task": "chess", "ground_truth": "x"}], category=None)


def test_a_level_is_held_out_where_every_task_that_has_it_says_so(model) -> None:
    chain = get("reasoning_gym/chain_sum")
    rows = [
        *get("countdown").generate(3, 1, seed=0),
        *get("countdown").generate(6, 1, seed=0),
        *chain.generate(6, 1, seed=0),
        *chain.generate(11, 1, seed=0),
    ]
    rows = [{**row, "prompt": ">"} for row in rows]

    def held_out(rows: list, category: Any) -> frozenset:
        return evaluate(*model, rows, category=category, max_completion_length=2).held_out_levels

    assert held_out(rows, "difficulty") == {11}
    assert held_out(rows[:2], "difficulty") == {6}
    assert held_out(rows, ("task", "difficulty")) == {
        ("countdown", 6), ("reasoning_gym/chain_sum", 11)
    }  # fmt: skip
    assert held_out(rows, "task") == held_out(rows, None) == frozenset()


class Unhurried(Task):
    name = "unhurried"
    levels = (1,)
    slow = True

    def draw(self, rng, level):
        return {"prompt": ">", "ground_truth": "x"}

    def prompt(self, problem):
        return problem

    def verify(self, text, truth):
        if truth != "x":
            raise ValueError(f"no such truth {truth!r}")
        time.sleep(1.2)
        return Verdict(1.0, "right", True)


def test_the_limits_of_a_tasks_reward_hold(model) -> None:
    rows = Unhurried().generate(1, 1, seed=0)
    with pytest.raises(ValueError, match="took longer than 1 s"):
        evaluate(*model, rows, Unhurried(), max_completion_length=2)
    patient = TaskReward(Unhurried(), time_limit=60.0)
    assert evaluate(*model, rows, patient, max_completion_length=2).mean([1]) == 1.0


def test_a_slow_task_is_not_asked_before_there_are_answers(model, monkeypatch, tmp_path) -> None:
    rows = [{"prompt": ">", "ground_truth": "x"}] * 2
    patient = TaskReward(Unhurried(), time_limit=60.0)
    # Of this process alone: the others import the class.
    monkeypatch.setattr(Unhurried, "verify", None)
    options = {"category": None, "max_completion_length": 2}
    assert evaluate(*model, rows, patient, **options).levels[0].accuracy == 1.0
    rows[1] = {"prompt": ">", "ground_truth": "y"}
    with pytest.raises(ValueError, match="unhurried_reward cannot judge row 1 .*no such truth 'y'"):
        evaluate(*model, rows, patient, **options, folder=tmp_path)
    assert len((tmp_path / "samples.jsonl").read_bytes().splitlines()) == 1 + 2


def test_one_failing_answer_never_loses_the_batch(model, tmp_path: Path) -> None:
    def fails_once(prompts, **columns):
        if any(len(prompt) == 5 for prompt in prompts):
            raise ZeroDivisionError("of the answer")
        return [1.0] * len(prompts)

    result = run(model, fails_once, folder=tmp_path)
    assert result.failures == 1
    bad = pyarrow.parquet.read_table(result.completions).to_pylist()[1]
    assert bad["score"] == 0.0
    assert bad["reason"].startswith("the judge raised: ")
    assert "ZeroDivisionError: of the answer" in bad["reason"]


def test_a_judge_that_always_fails_is_an_error(model) -> None:
    def broken(**columns):
        raise KeyError("truth")

    with pytest.raises(ValueError, match="no verdict on any of the first 6 completions.*KeyError"):
        run(model, broken)


def texts_of(model, **kwargs) -> list[str]:
    seen: dict[str, list[str]] = {}

    def note(prompts, completions, **columns):
        for prompt, text in zip(prompts, completions, strict=True):
            seen.setdefault(prompt, []).append(text)
        return [0.0] * len(prompts)

    run(model, note, **kwargs)
    return [text for prompt in sorted(seen) for text in seen[prompt]]


def test_the_seed_decides(model) -> None:
    assert texts_of(model, samples=2, seed=3) == texts_of(model, samples=2, seed=3)
    assert texts_of(model, samples=2, seed=3) != texts_of(model, samples=2, seed=4)
    # Greedy answers do not depend on the batch.
    assert texts_of(model, batch_size=1) == texts_of(model, batch_size=6)


class Stop(Exception):
    """In place of Ctrl-C or a kill."""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(model, tmp_path, after: int) -> None:
    options = {"samples": 2, "seed": 5, "batch_size": 5, "ks": (1, 2)}
    whole = run(model, folder=tmp_path / "whole", **options)
    batches = []

    def stop(done: int, total: int) -> None:
        batches.append(done)
        if len(batches) > after:
            raise Stop

    with pytest.raises(Stop):
        run(model, folder=tmp_path / "part", progress=stop, **options)
    samples = tmp_path / "part" / "samples.jsonl"
    assert not (tmp_path / "part" / "completions.parquet").exists()
    assert len(samples.read_bytes().splitlines()) == 1 + min(12, 5 * (after + 1))
    again = sampled_in(model, lambda: run(model, folder=tmp_path / "part", **options))
    assert again.sampled == 12 - min(12, 5 * (after + 1))
    assert again.result.levels == whole.levels
    tables = [
        pyarrow.parquet.read_table(tmp_path / name / "completions.parquet").to_pylist()
        for name in ("whole", "part")
    ]
    assert tables[0] == tables[1]
    assert (tmp_path / "whole" / "samples.jsonl").read_bytes() == samples.read_bytes()


class sampled_in:
    """How many completions a call samples."""

    def __init__(self, model, call) -> None:
        self.sampled = 0
        original = model[0].generate

        def generate(input_ids, **options):
            self.sampled += len(input_ids)
            return original(input_ids=input_ids, **options)

        model[0].generate = generate
        try:
            self.result = call()
        finally:
            del model[0].generate


def test_a_file_cut_off_anywhere_goes_on(model, tmp_path: Path) -> None:
    options = {"samples": 2, "seed": 5, "batch_size": 5}
    run(model, folder=tmp_path, **options)
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    rng = random.Random(0)
    header = whole.index(b"\n")
    for length in (0, 1, header, header + 1, *rng.sample(range(len(whole)), 6)):
        path.write_bytes(whole[:length])
        run(model, folder=tmp_path, **options)
        assert path.read_bytes() == whole


def test_a_damaged_file_goes_on_before_the_damage(model, tmp_path: Path) -> None:
    options = {"samples": 2, "seed": 5, "batch_size": 5}
    result = run(model, folder=tmp_path, **options)
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(True)
    for damaged in (b"\0" * 40 + b"\n", b"3\n", b"[1]\n", b'["a", [1], true'):
        path.write_bytes(b"".join([*lines[:8], damaged, *lines[9:]]))
        again = sampled_in(model, lambda: run(model, folder=tmp_path, **options))
        assert again.sampled == 12 - 5
        assert again.result.levels == result.levels
        assert path.read_bytes() == whole
    for other in (b"hello\n", b"3\n", b"\xff\0\n"):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"samples\.jsonl is no file of samples.*overwrite"):
            run(model, folder=tmp_path, **options)
        assert path.read_bytes() == other
    run(model, folder=tmp_path, overwrite=True, **options)
    assert path.read_bytes() == whole


def test_a_finished_evaluation_is_only_judged_anew(model, tmp_path: Path) -> None:
    run(model, folder=tmp_path)
    again = sampled_in(model, lambda: run(model, lambda **columns: [1.0] * len(columns["prompts"]),
                                          folder=tmp_path))  # fmt: skip
    assert again.sampled == 0
    assert again.result.mean([0, 1]) == 1.0


def test_samples_of_other_settings_are_not_taken(model, tmp_path: Path) -> None:
    run(model, folder=tmp_path, seed=1)
    with pytest.raises(
        ValueError, match=r"another evaluation \(seed: 1 there, 2 here\).*overwrite"
    ):
        run(model, folder=tmp_path, seed=2)
    other = tiny_qwen2(model[1], hidden_size=16, num_hidden_layers=1, seed=2)
    with pytest.raises(ValueError, match="another evaluation .model: '"):
        run((other, model[1]), folder=tmp_path, seed=1)
    run((other, model[1]), folder=tmp_path, seed=2, overwrite=True)
    header = json.loads((tmp_path / "samples.jsonl").read_bytes().splitlines()[0])
    assert header["seed"] == 2


def test_the_models_digest_sees_small_changes(model) -> None:
    from sec_grpo.evaluation.sampling import _digest_of_model

    one = tiny_qwen2(model[1], hidden_size=16, num_hidden_layers=1, seed=1)
    assert _digest_of_model(one) == _digest_of_model(model[0])
    with torch.no_grad():
        one.model.norm.weight[3] += 1e-6
    assert _digest_of_model(one) != _digest_of_model(model[0])


def test_two_evaluations_do_not_write_to_one_folder(model, tmp_path: Path) -> None:
    def inside(done: int, total: int) -> None:
        with pytest.raises(ValueError, match="another evaluation is writing there"):
            run(model, folder=tmp_path)

    run(model, folder=tmp_path, progress=inside)
    run(model, folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"ks": (2,)}, "every k of pass@k must be between 1 and samples=1, got 2"),
        ({"samples": 2, "temperature": 0.0}, "temperature must be above 0 with samples=2"),
        ({"temperature": -1.0}, "temperature must be 0 or above"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"solved": math.nan}, "solved must be a finite number"),
        ({"max_completion_length": 10**6}, "row 0: the prompt's 3 tokens .* exceed the model's"),
        ({"category": "nothing"}, "no column 'nothing'"),
        ({"judge": None}, "needs a column 'task' or 'data_source'"),
    ],
)
def test_bad_arguments(model, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(model, **options)
