"""Synthetic logs whose numbers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sec_grpo.report import MetricsWriter, RunLog, read_run


def make_run(
    folder,
    name="sec",
    arms=8,
    steps=150,
    held_out=2,
    eval_every=15,
    seed=0,
    speed=1.0,
    temperature=0.2,
    config=None,
) -> RunLog:
    """A run in which a frontier moves from the first arm to the last and beyond."""
    rng = np.random.default_rng(seed)
    labels = [str(2 * k + 2) for k in range(arms + held_out)]
    draws = np.zeros(arms, dtype=int)
    values = np.zeros(arms)

    def success(step):
        frontier = 2 + speed * step * 9 / 150 + 0.3 * math.sin(step / 9)
        return 1 / (1 + np.exp(1.5 * (np.arange(arms + held_out) - frontier)))

    with MetricsWriter(folder) as writer:
        writer.write(
            "run",
            schema=1,
            version="0.1.0",
            name=name,
            arms=labels[:arms],
            strategy={"name": name, "alpha": 0.5, "temperature": temperature},
            max_steps=steps,
            config={"num_generations": 8, **(config or {})},
            time=0.0,
        )
        for step in range(steps + 1):
            if step:
                p = np.exp(values / temperature) / np.exp(values / temperature).sum()
                drawn = rng.multinomial(32, p)
                draws += drawn
                s = success(step)[:arms]
                rate = np.where(drawn > 0, rng.binomial(8 * np.maximum(drawn, 1), s), 0)
                rate = rate / (8 * np.maximum(drawn, 1))
                seen = drawn > 0
                advantage = 2 * np.sqrt(s * (1 - s)) * rng.uniform(0.8, 1.0, arms)
                values = np.where(seen, 0.5 * advantage + 0.5 * values, values)
                dead = s**8 + (1 - s) ** 8
                share = drawn / 32
                kinds = {
                    "groups/all_fail": 0.7 * ((1 - s) ** 8 * share).sum(),
                    "groups/format_only": 0.3 * ((1 - s) ** 8 * share).sum(),
                    "groups/all_pass": (s**8 * share).sum(),
                }
                kinds["groups/mixed"] = 1 - sum(kinds.values())
                count = np.where(seen, 8 * drawn, np.nan)
                writer.write(
                    "step",
                    **{
                        "step": step,
                        "time": 0.31 * step,
                        "loss": rng.normal(0, 0.01),
                        "reward": (rate * drawn).sum() / 32,
                        "frac_reward_zero_std": (dead * drawn).sum() / 32,
                        "entropy": 0.4 * math.exp(-step / 80) + rng.normal(0, 0.01) + 0.05,
                        "completions/mean_length": 9.0,
                        "num_tokens": 32 * 8 * 40 * step,
                        "num_completion_tokens": 32 * 8 * 20 * step,
                        "step_time": 0.31,
                        "time/rollout": 0.11,
                        "time/reward": 0.01,
                        "time/curriculum": 0.001,
                        "time/logprobs": 0.0,
                        "time/update": 0.18,
                        **kinds,
                        "arms": {
                            "probability": p,
                            "value": values,
                            "draws": draws,
                            "epochs": draws // 500,
                            "abs_advantage": np.where(seen, advantage, np.nan),
                            "reward": np.where(seen, rate, np.nan),
                            "dead_groups": np.where(seen, dead, np.nan),
                            "rollouts": count,
                            "successes": rate * count,
                            "abs_advantage_with_std": np.where(seen, advantage, np.nan),
                            "abs_advantage_without_std": np.where(seen, 2 * s * (1 - s), np.nan),
                        },
                    },
                )
            if eval_every and step % eval_every == 0:
                writer.write(
                    "eval",
                    step=step,
                    time=0.31 * step,
                    accuracy={
                        label: rng.binomial(48, s) / 48
                        for label, s in zip(labels, success(step), strict=True)
                    },
                    num_prompts=dict.fromkeys(labels, 48),
                    held_out=labels[arms:],
                )
    return read_run(folder)


def maker(base):
    def make(name="sec", **options):
        return make_run(base / f"{name}-{len(list(base.iterdir()))}", name=name, **options)

    return make


@pytest.fixture
def synthetic_run(tmp_path):
    return maker(tmp_path)


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory):
    """`synthetic_run` for runs that the tests of a file share."""
    return maker(tmp_path_factory.mktemp("runs"))
