"""What the trainer accepts goes on working under a curriculum: rewards, environments, rollouts."""

from __future__ import annotations

import asyncio
import inspect

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs TRL: pip install 'sec-grpo[trl]'")

import trl
from datasets import Dataset

from sec_grpo import SEC, Curriculum, Random


@pytest.fixture(autouse=True)
def no_warning_of_experiments(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


ACCEPTED = inspect.signature(trl.GRPOTrainer.__init__).parameters


def twin_of(trainer, rows, generations, size=2):
    """A curriculum fed by hand with the rewards (P, G) of each generation."""
    twin = Curriculum([row["difficulty"] for row in rows], SEC(), seed=3)
    for rewards in generations:
        indices = twin.draw(len(rewards))
        centred = rewards - rewards.mean(1, keepdims=True)
        advantages = centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
        twin.observe(indices, advantages=advantages, rewards=rewards)
    return twin


def test_async_rewards(make, rows, tmp_path) -> None:
    seen = []

    async def slow(completions, number, **columns):
        await asyncio.sleep(0.01)
        seen.append((number, [len(set(text)) for text in completions]))
        return seen[-1][1]

    def none(completions, **columns):
        return [0.5] * len(completions)

    trainer = make(tmp_path, curriculum=SEC(), reward=[slow, none], max_steps=3)
    trainer.train()
    generations = [np.reshape(scores, (2, 2)) + 0.5 for _, scores in seen]
    twin = twin_of(trainer, rows, generations)
    assert len(seen) == 3
    np.testing.assert_allclose(trainer.curriculum.values(), twin.values(), rtol=1e-5)


@pytest.mark.skipif("rollout_func" not in ACCEPTED, reason="this TRL has no rollout_func")
def test_a_rollout_function_gets_the_drawn_prompts(make, rows, tmp_path) -> None:
    prompts_seen = []

    def rollout(prompts, *trainer):
        prompts_seen.append(list(prompts))
        ids = [[3, 4, 1] if i % 2 else [3, 1] for i in range(len(prompts))]
        return {
            "prompt_ids": [[3]] * len(prompts),
            "completion_ids": ids,
            "logprobs": [[-1.0] * len(row) for row in ids],
        }

    trainer = make(tmp_path, curriculum=Random(), rollout_func=rollout, max_steps=2)
    trainer.train()
    reward = trainer.reward_funcs[0]
    drawn = [rows[number]["prompt"] for number in reward.numbers]
    assert [p for call in prompts_seen for p in call] in (drawn, drawn[::2])
    assert [call["completions"] for call in reward.calls] == [["a", "ab"] * 2] * 2


class Counter:
    """An environment that counts how often it was asked; its prompt continues the row's."""

    instances: list[Counter]

    def reset(self, number, **columns):
        self.number = number
        Counter.instances.append(self)
        return f" {number}"

    def add(self, amount: int) -> str:
        """Add to the counter.

        Args:
            amount: how much.
        """
        return str(amount)


@pytest.mark.skipif("environment_factory" not in ACCEPTED, reason="this TRL has no environments")
def test_environments_are_reset_with_the_drawn_rows(make, rows, tmp_path) -> None:
    try:
        from trl.chat_template_utils import qwen3_chat_template
    except ImportError:
        pytest.skip("this TRL ships no chat template with tools")
    from sec_grpo.tiny import character_tokenizer

    tokenizer = character_tokenizer()
    tokenizer.chat_template = qwen3_chat_template
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    Counter.instances = []
    try:
        trainer = make(
            tmp_path, tokenizer=tokenizer, rows=Dataset.from_list(rows), curriculum=SEC(),
            environment_factory=Counter, max_steps=2,
            reward=lambda environments, **columns: [float(e.number % 5) for e in environments],
        )  # fmt: skip
    except ImportError as error:
        pytest.skip(str(error))
    trainer.train()
    drawn = []
    twin = Curriculum([row["difficulty"] for row in rows], SEC(), seed=3)
    for _ in range(2):
        indices = twin.draw(2)
        drawn += np.repeat(indices, 2).tolist()
        twin.observe(indices, advantages=np.zeros((2, 2)))
    assert trainer.curriculum.step == 2
    assert trainer.curriculum.metrics()["reward"] == np.mean([n % 5 for n in drawn[4:]])


def test_logged_completions_are_the_drawn_ones(make, rows, tmp_path) -> None:
    pandas = pytest.importorskip("pandas")
    trainer = make(tmp_path, curriculum=SEC(), log_completions=True, max_steps=2)
    trainer.train()
    files = sorted((tmp_path / "completions").glob("*.parquet"))
    found = [p for file in files for p in pandas.read_parquet(file)["prompt"]]
    drawn = [rows[number]["prompt"] for number in trainer.reward_funcs[0].numbers]
    assert found == drawn


@pytest.mark.parametrize(
    "options",
    [
        {"scale_rewards": "batch"},
        {"scale_rewards": "none"},
        {"mask_truncated_completions": True},
        {"shuffle_dataset": False},
        {"max_steps": -1, "num_train_epochs": 0.25},
    ],
)
def test_settings_of_the_loss_and_the_loader(make, rows, tmp_path, options) -> None:
    """Every observation has the rewards of what was drawn, whatever becomes of the advantages."""
    trainer = make(tmp_path, **{"curriculum": SEC(), "max_steps": 3, **options})
    trainer.train()
    calls = trainer.reward_funcs[0].calls
    assert trainer.curriculum.metrics()["observations"] == len(calls) == trainer.curriculum.step
    assert len(calls) == 3
    last = calls[-1]
    assert trainer.curriculum.metrics()["reward"] == pytest.approx(np.mean(last["rewards"]))
    table = trainer.curriculum.arm_table()
    for arm in range(3):
        own = [
            r
            for n, r in zip(last["numbers"], last["rewards"], strict=True)
            if rows[n]["difficulty"] == arm
        ]
        if own:
            assert table["reward"][arm] == pytest.approx(np.mean(own))
