"""Dynamic sampling in the trainer: what is drawn again, trained on, observed, and resumed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyarrow.parquet import read_table

from sec_grpo import SEC, GRPOConfig
from sec_grpo.errors import RewardError
from sec_grpo.report import read_run

G, PROMPTS = 4, 6


class Scorer:
    """Prompts of difficulty 0 teach nothing; the others differ, by text and by call.

    Keeps every row that it scored: prompt, completion ids, score, difficulty.
    """

    __name__ = "scorer"

    def __init__(self, fail_at: int | None = None, dead: tuple[int, ...] = (0,)) -> None:
        self.calls: list[list[tuple]] = []
        self.fail_at = fail_at
        self.dead = dead

    def __call__(self, prompts, completions, completion_ids, difficulty, **columns):
        if not completion_ids[0]:
            return [0.0] * len(prompts)
        if len(self.calls) == self.fail_at:
            raise KeyError("broken")
        scores = [
            0.5 if level in self.dead else float(i % G) + sum(c <= "f" for c in text)
            for i, (text, level) in enumerate(zip(completions, difficulty, strict=True))
        ]
        self.calls.append(list(zip(prompts, completion_ids, scores, difficulty, strict=True)))
        return scores


@pytest.fixture
def make_run(make_trainer, tmp_path):
    """A trainer whose generation batch holds six groups of four."""

    def make(scorer, folder="run", **options):
        given = {
            "per_device_train_batch_size": G * PROMPTS,
            "dynamic_sampling_refills": 3,
            "generation_seed": 5,
            **options,
        }
        return make_trainer(reward_funcs=scorer, output_dir=str(tmp_path / folder), **given)

    return make


def groups_of(calls):
    """The groups that a scorer saw, in order: (prompt, completions, scores, difficulty)."""
    rows = [row for call in calls for row in call]
    chunks = [rows[i : i + G] for i in range(0, len(rows), G)]
    return [(g[0][0], [r[1] for r in g], [r[2] for r in g], g[0][3]) for g in chunks]


def trained_groups(trainer):
    rollouts = trainer._rollouts
    return [
        (rollouts.prompt_ids[i], rollouts.completion_ids[i : i + G], rollouts.advantages[i : i + G])
        for i in range(0, len(rollouts), G)
    ]


def test_dead_groups_give_way(make_run, tokenizer, oracle, read_events, tmp_path):
    scorer = Scorer()
    trainer = make_run(scorer, curriculum="random", max_steps=1)
    trainer.train()
    seen = groups_of(scorer.calls)
    sizes = [len(call) // G for call in scorer.calls]
    live = [group for group in seen if group[3] != 0]
    # Each refill draws what is missing; the batch is the first live groups in order.
    missing = PROMPTS
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        assert size == missing
        missing -= sum(group[3] != 0 for group in seen[start : start + size])
    assert missing == 0
    assert 2 <= len(sizes) <= 4
    assert len(live) == PROMPTS
    trained = trained_groups(trainer)
    assert len(trained) == PROMPTS
    for (prompt, completions, scores, _), (prompt_ids, ids, advantages) in zip(
        live, trained, strict=True
    ):
        assert prompt_ids == tokenizer(prompt)["input_ids"]
        assert ids == completions
        assert advantages.tolist() == pytest.approx(oracle.advantages(scores, G), abs=1e-6)
    # All of them were observed, in one step.
    metrics = trainer.curriculum.metrics()
    assert metrics["observations"] == 1
    assert metrics["prompts_drawn"] == len(seen)
    table = trainer.curriculum.arm_table()
    assert table["dead_groups"].tolist() == [1.0, 0.0, 0.0]
    assert table["draws"].sum() == len(seen)
    (event,) = read_events(tmp_path / "run", "step")
    dropped = len(seen) - PROMPTS
    assert dropped > 0
    assert event["dynamic_sampling/dropped_groups"] == dropped
    assert event["dynamic_sampling/filled_groups"] == 0
    assert event["dynamic_sampling/refills"] == len(sizes) - 1
    assert event["dynamic_sampling/refill_rollouts"] == (len(seen) - PROMPTS) * G
    assert event["dynamic_sampling/share_kept"] == pytest.approx(PROMPTS / len(seen))
    # The other metrics are of everything that was generated.
    assert event["frac_reward_zero_std"] == pytest.approx(dropped / len(seen))
    assert event["reward"] == pytest.approx(np.mean([s for group in seen for s in group[2]]))
    sampled = sum(len(ids) for group in seen for ids in group[1])
    prompts = sum(len(tokenizer(group[0])["input_ids"]) * G for group in seen)
    assert event["num_completion_tokens"] == sampled
    assert event["num_tokens"] == sampled + prompts
    assert read_run(tmp_path / "run").scalar("dynamic_sampling/dropped_groups").tolist() == [
        dropped
    ]


def test_the_bound_keeps_the_batchs_shape(make_run, read_events, tmp_path):
    """No group ever differs: two refills, then the six groups drawn first, and no gradient."""
    scorer = Scorer(dead=(0, 1, 2))
    trainer = make_run(scorer, max_steps=1, dynamic_sampling_refills=2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert [len(call) for call in scorer.calls] == [G * PROMPTS] * 3
    trained = trained_groups(trainer)
    assert [ids for _, ids, _ in trained] == [g[1] for g in groups_of(scorer.calls[:1])]
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    (event,) = read_events(tmp_path / "run", "step")
    assert event["dynamic_sampling/filled_groups"] == PROMPTS
    assert event["dynamic_sampling/dropped_groups"] == 2 * PROMPTS
    assert event["dynamic_sampling/refill_rollouts"] == 2 * PROMPTS * G
    assert event["dynamic_sampling/share_kept"] == 0


@pytest.mark.parametrize("scale", ["batch", "none"])
def test_scaled_by_the_batch_trained_on(make_run, scale):
    scorer = Scorer()
    trainer = make_run(scorer, curriculum="random", max_steps=1, scale_rewards=scale)
    trainer.train()
    scores = np.array([g[2] for g in groups_of(scorer.calls) if g[3] != 0], dtype=np.float64)
    divisor = scores.std(ddof=1) + 1e-4 if scale == "batch" else 1.0
    expected = (scores - scores.mean(axis=1, keepdims=True)) / divisor
    got = trainer._rollouts.advantages.reshape(PROMPTS, G).numpy()
    assert got == pytest.approx(expected, abs=1e-5)


def test_nothing_changes_where_every_group_differs(make_run, read_events, tmp_path):
    runs = {}
    for refills in (0, 3):
        trainer = make_run(Scorer(dead=()), f"run{refills}", dynamic_sampling_refills=refills)
        trainer.train()
        parameters = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        runs[refills] = (trainer.curriculum.to_bytes(), parameters)
    assert runs[0][0] == runs[3][0]
    assert torch.equal(runs[0][1], runs[3][1])
    for event in read_events(tmp_path / "run3", "step"):
        assert event["dynamic_sampling/refill_rollouts"] == 0
        assert event["dynamic_sampling/share_kept"] == 1
    assert not any("dynamic" in name for e in read_events(tmp_path / "run0", "step") for name in e)


@pytest.mark.parametrize("checkpoint", [2, 3])
def test_resume_is_exact(make_run, read_events, tmp_path, checkpoint):
    """At a generation's end (2), and in its middle (3), where groups of refills are still used."""
    options = {"num_iterations": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    options["curriculum"] = SEC(temperature=3.0)
    straight = make_run(Scorer(), "straight", **options)
    straight.train()
    resumed = make_run(Scorer(), "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / f"checkpoint-{checkpoint}"))
    assert resumed.curriculum.to_bytes() == straight.curriculum.to_bytes()
    for (name, a), b in zip(
        straight.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    keys = (
        "loss",
        "num_tokens",
        "num_completion_tokens",
        "dynamic_sampling/dropped_groups",
        "arms",
    )
    events = {
        folder: [[e.get(key) for key in keys] for e in read_events(tmp_path / folder, "step")]
        for folder in ("straight", "resumed")
    }
    assert events["resumed"] == events["straight"][checkpoint:]
    assert any(
        e["dynamic_sampling/refills"] > 0
        for e in read_events(tmp_path / "resumed", "step")
        if "dynamic_sampling/refills" in e
    )


def test_failure_in_a_refill_takes_the_draws_back(make_run, tmp_path):
    """The reward of the second generation's first refill fails: the state is that before it."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "curriculum": "random"}
    whole = Scorer()
    straight = make_run(whole, "straight", **options)
    states = []
    collect = straight._collector.collect

    def noting(*args):
        states.append((straight.curriculum.to_bytes(), len(whole.calls)))
        return collect(*args)

    straight._collector.collect = noting
    straight.train()
    before, first_call = states[1]
    assert states[2][1] > first_call + 1  # the second generation was refilled
    failing = make_run(Scorer(fail_at=first_call + 1), "failing", **options)
    with pytest.raises(RewardError, match="raised KeyError: 'broken'"):
        failing.train()
    assert failing.curriculum.to_bytes() == before
    resumed = make_run(Scorer(), "failing", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.curriculum.to_bytes() == straight.curriculum.to_bytes()


@pytest.mark.parametrize(
    ("refills", "what"),
    [(-1, "at least 0"), (1.5, "an integer"), (True, "an integer"), (None, "an integer")],
)
def test_refused_refills(tmp_path, refills, what):
    message = f"dynamic_sampling_refills must be {what}, got {refills}"
    with pytest.raises(ValueError, match=message):
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, dynamic_sampling_refills=refills)


def test_completions_logged_are_those_trained_on(make_run, tokenizer, tmp_path):
    scorer = Scorer()
    trainer = make_run(scorer, curriculum="random", max_steps=1, log_completions=True)
    trainer.train()
    table = read_table(tmp_path / "run" / "completions" / "completions_00001.parquet").to_pydict()
    live = [group for group in groups_of(scorer.calls) if group[3] != 0]
    assert table["prompt"] == [group[0] for group in live for _ in range(G)]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for group in live for ids in group[1]]
    assert table["completion"] == texts
    assert table["total_reward"] == pytest.approx([s for group in live for s in group[2]])
    assert table["advantage"] == trainer._rollouts.advantages.tolist()
    assert table["arm"] == [str(group[3]) for group in live for _ in range(G)]
