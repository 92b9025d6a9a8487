"""Advantages against loops written from the papers' equations, in float64."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from sec_grpo import SEC, GRPOConfig, Learnability
from sec_grpo.trainer.estimators import (
    AdvantageEstimator,
    largest_mean_abs_advantage,
    temperature_advice,
)

EPS = 1e-4
M, G = 5, 4


def example_rewards():
    generator = torch.Generator().manual_seed(3)
    rewards = torch.randint(0, 3, (M, G), generator=generator).float() * 0.7
    rewards[1] = 0.7  # dead
    rewards[3] = 0.0
    return rewards


def by_loops(name, scale, rewards, baselines=None):
    """Plain Python over lists of floats."""
    flat = [r for group in rewards for r in group]
    centred = []
    for m, group in enumerate(rewards):
        for i, r in enumerate(group):
            if name in ("grpo", "dr_grpo", "reinforce_pp_baseline"):
                b = sum(group) / len(group)
            elif name == "rloo":
                b = sum(group[:i] + group[i + 1 :]) / (len(group) - 1)
            elif name == "reinforce_pp":
                b = sum(flat) / len(flat)
            else:
                b = baselines[m]
            centred.append(r - b)
    out = []
    for k, a in enumerate(centred):
        group = rewards[k // len(rewards[0])]
        if name in ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline") and len(set(group)) == 1:
            out.append(0.0)
            continue
        if scale == "group":
            a = a / (statistics.stdev(group) + EPS)
        elif scale == "batch":
            of = centred if name in ("reinforce_pp_baseline", "role", "reinforce_pp") else flat
            a = a / (statistics.stdev(of) + EPS)
        out.append(a)
    return out


CASES = [
    (name, scale)
    for name in ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline")
    for scale in ("group", "batch", "none")
    if (name, scale) != ("reinforce_pp_baseline", "group")
] + [(name, scale) for name in ("reinforce_pp", "role") for scale in ("batch", "none")]


@pytest.mark.parametrize(("name", "scale"), CASES)
def test_against_loops(name, scale):
    rewards = example_rewards()
    roles = ["a", "b", "a", "c", "b"]
    estimator = AdvantageEstimator(name, scale, decay=0.9)
    baselines = dict.fromkeys("abc", 0.0)
    for _ in range(3):  # the third time the roles have baselines
        got = estimator(rewards, roles=roles)
        expected = by_loops(
            name, scale, rewards.double().tolist(), [baselines[role] for role in roles]
        )
        assert got.shape == (M, G)
        assert got.dtype == torch.float32
        assert got.flatten().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        estimator.update(rewards, roles)
        for role, group in zip(roles, rewards.tolist(), strict=True):
            for r in group:
                baselines[role] = 0.9 * baselines[role] + 0.1 * r
    if name == "role":
        assert len(set(baselines.values())) == 3


def test_role_baselines_continue_from_their_state():
    rewards, roles = example_rewards(), ["a", 2, ("x", 1), "a", 2]
    first = AdvantageEstimator("role", "none", decay=0.8)
    first.update(rewards, roles)
    second = AdvantageEstimator("role", "none", decay=0.8)
    assert not torch.equal(second(rewards, roles=roles), first(rewards, roles=roles))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(rewards, roles=roles), first(rewards, roles=roles))
    second.update(rewards, roles)
    assert not torch.equal(second(rewards, roles=roles), first(rewards, roles=roles))


def test_normalize_then_sum_against_loops():
    """GDPO; the second function does not apply to some rows, the third is equal in a group."""
    generator = torch.Generator().manual_seed(5)
    each = torch.rand(M, G, 3, generator=generator, dtype=torch.float64)
    each[2, 1, 1] = each[4, :, 1] = math.nan
    each[0, :, 2] = 0.5
    each[1] = 0.25  # dead
    weights = [1.0, 0.5, 2.0]
    rewards = torch.nansum(each * torch.tensor(weights), dim=-1).float()
    estimator = AdvantageEstimator("grpo", "group", normalize_then_sum=True, reward_weights=weights)
    got = estimator(rewards, each.numpy()).flatten().tolist()
    totals = []
    for group in each.tolist():
        for row in group:
            total = 0.0
            for k, weight in enumerate(weights):
                known = [other[k] for other in group if not math.isnan(other[k])]
                if math.isnan(row[k]):
                    continue
                std = statistics.stdev(known) if len(known) > 1 else 0.0
                total += weight * (row[k] - statistics.mean(known)) / (std + EPS)
            totals.append(total)
    mean, std = statistics.mean(totals), statistics.stdev(totals)
    expected = [(t - mean) / (std + EPS) for t in totals]
    expected[G : 2 * G] = [0.0] * G
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_normalize_then_sum_where_sums_are_equal_and_rewards_are_not():
    each = torch.tensor([[[0.0, 1.0], [0.5, 0.0]], [[1.0, 1.0], [0.0, 0.0]]])  # 2, 2; 3, 0
    rewards = each @ torch.tensor([2.0, 1.0])
    estimator = AdvantageEstimator(
        "grpo", "group", normalize_then_sum=True, reward_weights=[2.0, 1.0]
    )
    # In units of 1 / sqrt(2): -2 + 1, 2 - 1, 2 + 1, -2 - 1, then over their deviation.
    sums = [-1.0, 1.0, 3.0, -3.0]
    expected = [total / statistics.stdev(sums) for total in sums]
    assert estimator(rewards, each.numpy()).flatten().tolist() == pytest.approx(expected, rel=1e-3)


def test_normalize_then_sum_is_trls(make_trainer):
    """For one function over binary rewards, TRL's formula."""
    rewards = example_rewards()
    estimator = AdvantageEstimator("grpo", "group", normalize_then_sum=True, reward_weights=[1.0])
    got = estimator(rewards, rewards[..., None].numpy())
    normalized = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + EPS)
    expected = (normalized - normalized.mean()) / (normalized.std() + EPS)
    live = rewards.amax(1) > rewards.amin(1)
    torch.testing.assert_close(got[live], expected[live], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("grpo", "group", 0.935),  # the figures that docs/trainer.md quotes, at G = 8
        ("grpo", "none", 0.5),
        ("dr_grpo", "none", 0.5),
        ("rloo", "none", 0.571),
        ("reinforce_pp_baseline", "batch", 1.0),
        ("reinforce_pp", "batch", 1.0),
        ("reinforce_pp", "none", 0.5),
        ("ppo", "batch", 1.0),
    ],
)
def test_largest_mean_abs_advantage(name, scale, expected):
    assert largest_mean_abs_advantage(name, scale, 8) == pytest.approx(expected, abs=1e-3)


def test_largest_is_over_every_number_of_successes():
    for size in (2, 3, 8):
        found = [
            np.abs(by_loops("rloo", "none", [[1.0] * k + [0.0] * (size - k)])).mean()
            for k in range(size + 1)
        ]
        assert largest_mean_abs_advantage("rloo", "none", size) == pytest.approx(max(found))


def test_temperature_advice():
    assert temperature_advice(0.2, "grpo", "group", 8) is None
    assert temperature_advice(0.2, "reinforce_pp_baseline", "batch", 8) is None
    advice = temperature_advice(0.2, "rloo", "none", 8)
    assert "at most 0.571, where GRPO's is 0.935: temperature=0.122 makes" in advice


@pytest.fixture
def warnings_of(make_trainer, monkeypatch):
    def collect(**options):
        seen = []
        monkeypatch.setattr(
            "sec_grpo.trainer.setup.logger.warning", lambda text, *a: seen.append(text % a)
        )
        make_trainer(**options)
        return seen

    return collect


def test_curriculum_is_warned_of_another_scale(warnings_of):
    assert warnings_of() == []
    (text,) = warnings_of(advantage_estimator="rloo", curriculum=SEC(temperature=0.2))
    assert "temperature=0.1" in text
    assert warnings_of(advantage_estimator="rloo", curriculum=Learnability()) == []
    assert warnings_of(advantage_estimator="rloo", curriculum="random") == []
    (text,) = warnings_of(advantage_estimator="reinforce_pp", num_generations=8)
    assert "|A| is large also where every completion succeeds" in text
    assert len(warnings_of(scale_rewards="none")) == 1


# ---- In the trainer ---------------------------------------------------------------------------


class Keep:
    """Scores by the share of letters up to f, and keeps what it scored."""

    __name__ = "keep"

    def __init__(self):
        self.calls = []

    def __call__(self, completions, completion_ids, **columns):
        scores = [sum(c <= "f" for c in text) / (1 + len(text)) for text in completions]
        if completion_ids[0]:
            self.calls.append(scores)
        return scores


@pytest.mark.parametrize(("name", "scale"), [c for c in CASES if c[0] != "role"])
def test_trainer_uses_and_observes_them(make_trainer, name, scale):
    keep, observed = Keep(), []
    trainer = make_trainer(
        reward_funcs=keep,
        max_steps=2,
        per_device_train_batch_size=12,
        advantage_estimator=name,
        scale_rewards=scale,
        curriculum="sec",
    )
    observe = trainer.curriculum.observe

    def noting(indices, *, advantages, rewards):
        observed.append(advantages.copy())
        observe(indices, advantages=advantages, rewards=rewards)

    trainer.curriculum.observe = noting
    trainer.train()
    assert len(observed) == 2
    for scores, advantages in zip(keep.calls, observed, strict=True):
        groups = np.array(scores, dtype=np.float32).astype(float).reshape(-1, 4).tolist()
        expected = by_loops(name, scale, groups)
        assert advantages.flatten().tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert trainer._rollouts.advantages.tolist() == pytest.approx(
        observed[-1].flatten().tolist(), abs=1e-6
    )


def test_roles_of_the_trainer(make_trainer, tmp_path):
    """By column or by category; the baselines are part of a checkpoint."""
    rows = [{"prompt": "abc"[: 1 + i % 3], "difficulty": i % 3, "side": i % 2} for i in range(12)]
    options = {
        "train_dataset": rows,
        "advantage_estimator": "role",
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
        "num_generations": 1,
    }
    straight = make_trainer(output_dir=str(tmp_path / "a"), baseline_column="side", **options)
    straight.train()
    assert set(dict(straight._estimator.state_dict()["baselines"])) == {0, 1}
    resumed = make_trainer(output_dir=str(tmp_path / "b"), baseline_column="side", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert resumed._estimator.state_dict() == straight._estimator.state_dict()
    for a, b in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b)
    by_category = make_trainer(output_dir=str(tmp_path / "c"), **options)
    by_category.train()
    assert set(dict(by_category._estimator.state_dict()["baselines"])) == {0, 1, 2}
    with pytest.raises(ValueError, match="baseline_column='team': train_dataset has no such"):
        make_trainer(baseline_column="team", **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"advantage_estimator": "gae"}, "advantage_estimator must be one of grpo, dr_grpo, rloo"),
        ({"advantage_estimator": "rloo", "num_generations": 1}, "at least 2, got 1: an advantage"),
        (
            {"advantage_estimator": "reinforce_pp", "scale_rewards": "group"},
            "scale_rewards must be one of batch, none with advantage_estimator='reinforce_pp'",
        ),
        (
            {"advantage_estimator": "role", "dynamic_sampling_refills": 1},
            "dynamic_sampling_refills must be 0 with advantage_estimator='role'",
        ),
        ({"baseline_column": "side"}, "baseline_column must be unset but for"),
        ({"baseline_decay": 1.5}, r"baseline_decay must be in \[0, 1\], got 1.5"),
        ({"lam": -0.1}, r"lam must be in \[0, 1\]"),
        ({"vf_coef": -1.0}, "vf_coef must be 0 or above"),
        ({"cliprange_value": 0.0}, "cliprange_value must be above 0 or unset"),
        (
            {"advantage_estimator": "ppo", "fused_lm_head": False},
            "fused_lm_head must be True with advantage_estimator='ppo'",
        ),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "advantage_estimator": "rloo"},
            "multi_objective_aggregation must be 'sum_then_normalize'",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refused_settings(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "group"),
        ({"advantage_estimator": "dr_grpo"}, "none"),
        ({"advantage_estimator": "dr_grpo", "scale_rewards": "batch"}, "batch"),
        ({"advantage_estimator": "reinforce_pp"}, "batch"),
        ({"scale_rewards": True}, "group"),
        ({"scale_rewards": False}, "none"),
        ({"scale_rewards": "none", "advantage_estimator": "rloo"}, "none"),
    ],
)
def test_scale_follows_the_estimator(tmp_path, given, found):
    config = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **given)
    assert config.scale_rewards == found
