"""Evaluation and what the log holds."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset

from sec_grpo.report import read_run

TRL_NAMES = (
    "loss",
    "grad_norm",
    "learning_rate",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "rewards/letter_reward/mean",
    "rewards/letter_reward/std",
    "completions/mean_length",
    "completions/min_length",
    "completions/max_length",
    "completions/clipped_ratio",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "entropy",
    "num_tokens",
    "step_time",
)
EVAL_ROWS = [
    {"prompt": "abc"[: 1 + i % 3], "difficulty": level, "row": i}
    for i, level in enumerate([2, 0, 7, 2, 0, 0, 9])
]


def row_reward(completions, row, **columns):
    return [float(r) for r in row]


def test_means_by_category(make_trainer):
    seen = []

    def reward(completions, row, **columns):
        seen.append(list(row))
        return [float(r) for r in row]

    trainer = make_trainer(
        eval_dataset=EVAL_ROWS, eval_reward_funcs=reward, per_device_eval_batch_size=3
    )
    metrics = trainer.evaluate()
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]
    assert metrics.pop("eval_runtime") > 0
    assert metrics == {
        "eval_reward": 3.0,
        "eval_reward/0": pytest.approx(10 / 3),
        "eval_reward/2": 1.5,
        "eval_reward/7": 2.0,
        "eval_reward/9": 6.0,
    }
    assert list(metrics)[1:] == [f"eval_reward/{k}" for k in (0, 2, 7, 9)]
    other = trainer.evaluate(EVAL_ROWS[:1], metric_key_prefix="test")
    assert other["test_reward"] == other["test_reward/2"] == 0.0


def test_streams(make_trainer):
    """As lists of their rows, again and again."""
    stream = Dataset.from_list(EVAL_ROWS).to_iterable_dataset()
    given = {"eval_reward_funcs": row_reward}
    whole = make_trainer(eval_dataset=EVAL_ROWS, **given).evaluate()
    trainer = make_trainer(eval_dataset=stream, **given)
    both = make_trainer(eval_dataset={"a": stream, "b": EVAL_ROWS[:1]}, **given).evaluate()
    assert trainer.eval_dataset is stream
    for metrics in (trainer.evaluate(), trainer.evaluate(), trainer.evaluate(stream)):
        assert metrics.keys() == whole.keys()
        assert metrics["eval_reward"] == whole["eval_reward"] == 3.0
    assert both["eval_a_reward"] == 3.0
    assert both["eval_b_reward"] == 0.0


def test_one_of_several_sets(make_trainer):
    named = {"a": EVAL_ROWS, "b": EVAL_ROWS[:1]}
    trainer = make_trainer(eval_dataset=named, eval_reward_funcs=row_reward)
    metrics = trainer.evaluate("b")
    assert metrics.pop("eval_runtime") > 0
    assert metrics == {"eval_reward": 0.0, "eval_reward/2": 0.0}
    with pytest.raises(ValueError, match="no eval_dataset 'c'; the trainer has a, b"):
        trainer.evaluate("c")
    with pytest.raises(ValueError, match="no eval_dataset 'c'; the trainer has none with a name"):
        make_trainer(eval_dataset=EVAL_ROWS).evaluate("c")


def test_best_model_is_the_best_rewarded(make_trainer, tmp_path):
    """Without metric_for_best_model, whose default in Trainer is a loss."""
    options = {
        "eval_dataset": EVAL_ROWS[:1],
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
    }
    scores = iter([2.0, 7.0, 1.0])

    def falling(completions, **columns):
        return [next(scores) if completions[0] else 0.0] * len(completions)

    trainer = make_trainer(max_steps=3, eval_reward_funcs=falling, **options)
    assert trainer.args.metric_for_best_model == "reward"
    trainer.train()
    assert trainer.state.best_metric == 7.0
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")


@pytest.mark.parametrize("name", ["loss", "eval_loss"])
def test_evaluation_has_no_loss(make_trainer, name):
    with pytest.raises(ValueError, match=f"metric_for_best_model must not be '{name}': .* 'reward"):
        make_trainer(metric_for_best_model=name)


def test_greedy_and_sampled(make_trainer, make_model):
    texts = []

    def reward(completions, **columns):
        texts.append(completions)
        return [0.0] * len(completions)

    def evaluate(**options):
        trainer = make_trainer(eval_dataset=EVAL_ROWS, eval_reward_funcs=reward, **options)
        trainer.evaluate()
        return texts[-1]

    greedy = evaluate()
    assert evaluate() == greedy
    assert evaluate(per_device_eval_batch_size=2)[0] in greedy
    sampled = evaluate(eval_temperature=1.0)
    assert sampled != greedy
    assert evaluate(eval_temperature=1.0) == sampled
    assert evaluate(eval_temperature=1.0, seed=9) != sampled
    trainer = make_trainer()
    ids = trainer.processing_class(EVAL_ROWS[2]["prompt"])["input_ids"]
    with torch.no_grad():
        for _ in range(6):
            token = int(make_model().eval()(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
            if token == 1:
                break
    assert trainer.processing_class.decode(ids[3:], skip_special_tokens=True) == greedy[2]


def test_evaluation_does_not_disturb_training(make_trainer, tmp_path):
    plain = make_trainer(max_steps=3, output_dir=str(tmp_path / "plain"))
    plain.train()
    evaluated = make_trainer(
        max_steps=3, eval_dataset=EVAL_ROWS, eval_strategy="steps", eval_steps=1, eval_on_start=True
    )
    evaluated.train()
    for a, b in zip(plain.model.parameters(), evaluated.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert evaluated.curriculum.to_bytes() == plain.curriculum.to_bytes()


def test_log_of_a_run(make_trainer, read_events, tmp_path):
    trainer = make_trainer(
        max_steps=4,
        eval_dataset=EVAL_ROWS,
        eval_reward_funcs=row_reward,
        eval_strategy="steps",
        eval_steps=2,
        eval_on_start=True,
        run_name="test run",
    )
    trainer.train()
    (run,) = read_events(tmp_path / "run", "run")
    assert run["name"] == "test run"
    assert run["arms"] == ["0", "1", "2"]
    assert run["strategy"]["name"] == "SEC"
    assert run["config"]["num_generations"] == 4
    steps = read_events(tmp_path / "run", "step")
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    for event in steps:
        assert not set(TRL_NAMES) - event.keys()
        assert all(math.isfinite(event[name]) for name in TRL_NAMES)
        assert sum(event["arms"]["probability"]) == pytest.approx(1)
    tokens = [event["num_completion_tokens"] for event in steps]
    means = [event["completions/mean_length"] for event in steps]
    assert tokens == [round(8 * sum(means[: i + 1])) for i in range(4)]
    assert [sum(event["arms"]["draws"]) for event in steps] == [2, 4, 6, 8]

    log = read_run(tmp_path / "run")
    assert [item.step for item in log.evals] == [0, 2, 4]
    assert log.evals[0].accuracy == {"0": pytest.approx(10 / 3), "2": 1.5, "7": 2.0, "9": 6.0}
    assert log.evals[0].num_prompts == {"0": 3, "2": 2, "7": 1, "9": 1}
    assert log.held_out == ("7", "9")
    assert log.scalar("loss").tolist() == [event["loss"] for event in steps]
    history = [e for e in trainer.state.log_history if "loss" in e]
    assert history[0]["curriculum/step"] == 1.0


def test_logged_means_cover_the_steps_since_the_last(make_trainer, read_events, tmp_path):
    make_trainer(max_steps=4, output_dir=str(tmp_path / "each")).train()
    make_trainer(max_steps=4, output_dir=str(tmp_path / "pairs"), logging_steps=2).train()
    each, pairs = read_events(tmp_path / "each", "step"), read_events(tmp_path / "pairs", "step")
    assert [event["step"] for event in pairs] == [2, 4]
    for i, event in enumerate(pairs):
        for name in ("loss", "reward", "completions/mean_length"):
            mean = (each[2 * i][name] + each[2 * i + 1][name]) / 2
            assert event[name] == pytest.approx(mean, rel=1e-5), name
        assert event["num_tokens"] == each[2 * i + 1]["num_tokens"]


def test_second_run_puts_the_first_log_aside(make_trainer, tmp_path):
    run = tmp_path / "run"
    make_trainer(max_steps=1).train()
    first = (run / "metrics.jsonl").read_text()
    trainer = make_trainer(max_steps=2)
    trainer.train()
    assert (run / "metrics.1.jsonl").read_text() == first
    assert read_run(run).steps.tolist() == [1, 2]
    trainer.train()
    assert (run / "metrics.2.jsonl").is_file()
    assert read_run(run / "metrics.2.jsonl").steps.tolist() == [1, 2]


def test_several_data_sets(make_trainer, tmp_path):
    trainer = make_trainer(
        eval_dataset={"near": EVAL_ROWS[:3], "far": EVAL_ROWS[3:]},
        eval_reward_funcs=row_reward,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    metrics = trainer.evaluate()
    whole = make_trainer(output_dir=str(tmp_path / "b"), eval_reward_funcs=row_reward).evaluate
    for name, rows in (("near", EVAL_ROWS[:3]), ("far", EVAL_ROWS[3:])):
        alone = whole(rows)
        assert metrics[f"eval_{name}_reward"] == alone["eval_reward"]
        for key in alone:
            if "/" in key:
                assert metrics[key.replace("eval_", f"eval_{name}_")] == alone[key]
    assert "eval_reward" not in metrics
    log = read_run(tmp_path / "run")
    assert {label.split("/")[0] for label in log.evals[0].accuracy} == {"near", "far"}
    assert sum(log.evals[0].num_prompts.values()) == len(EVAL_ROWS)


def test_several_completions_a_row(make_trainer):
    seen = []

    def reward(completions, row, **columns):
        seen.extend(zip(row, completions, strict=True))
        return [float(len(seen) % 2) + r for r in row]

    rows = [{"prompt": "abc"[: i + 1], "difficulty": 0, "row": i} for i in range(3)]
    trainer = make_trainer(
        eval_dataset=rows,
        eval_reward_funcs=reward,
        eval_temperature=1.0,
        num_generations_eval=4,
        per_device_eval_batch_size=2,
    )
    assert trainer.evaluate()["eval_reward"] == pytest.approx(sum(range(3)) / 3 + 0.0)
    assert [row for row, _ in seen] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({text for _, text in seen}) > 3
    with pytest.raises(ValueError, match="eval_temperature must be above 0 with num_generations_"):
        make_trainer(num_generations_eval=4)


def test_predict_says_what_there_is_instead(make_trainer):
    with pytest.raises(NotImplementedError, match=r"evaluate\(\) scores .* `sec-grpo eval`"):
        make_trainer().predict([{"prompt": "a"}])
