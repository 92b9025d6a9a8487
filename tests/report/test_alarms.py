import numpy as np
import pytest

from sec_grpo.report import MetricsWriter, alarms, read_run

STEPS = 120


def log(folder, steps=STEPS, arms=("a", "b"), **columns):
    """A log whose per-arm (T, K) columns and scalars (T,) are given; the rest is healthy."""
    rng = np.random.default_rng(0)
    k = len(arms)
    healthy = {
        "probability": np.full((steps, k), 1 / k),
        "draws": np.arange(1, steps + 1)[:, None] * np.ones(k, dtype=int),
        "abs_advantage": np.full((steps, k), 0.6),
        "reward": np.linspace(0.2, 0.8, steps)[:, None] + rng.normal(0, 0.05, (steps, k)),
    }
    per_arm = {name: columns.pop(name, value) for name, value in healthy.items()}
    with MetricsWriter(folder) as writer:
        writer.write("run", schema=1, arms=list(arms), name="x")
        for t in range(steps):
            scalars = {name: values[t] for name, values in columns.items()}
            row = {name: values[t] for name, values in per_arm.items() if values is not None}
            writer.write("step", step=t + 1, time=float(t), arms=row, **scalars)
    return read_run(folder)


def test_a_healthy_run_raises_none(tmp_path):
    assert alarms(log(tmp_path, loss=np.zeros(STEPS), reward_std=np.ones(STEPS))) == []


def test_a_synthetic_curriculum_raises_none(synthetic_run):
    assert alarms(synthetic_run(steps=110)) == []


@pytest.mark.parametrize(("length", "fires"), [(19, False), (20, True)])
def test_one_arm_above_80_percent(tmp_path, length, fires):
    probability = np.full((STEPS, 2), 0.5)
    probability[30 : 30 + length] = [0.15, 0.85]
    probability[100:110] = [0.9, 0.1]
    found = alarms(log(tmp_path, probability=probability))
    assert len(found) == fires
    if fires:
        assert found[0].startswith("Arm b had more than 80% probability from step 31 to 50:")


def test_80_percent_itself_and_a_single_arm_are_fine(tmp_path):
    probability = np.full((STEPS, 2), [0.2, 0.8])
    assert alarms(log(tmp_path / "two", probability=probability)) == []
    assert alarms(log(tmp_path / "one", arms=("only",))) == []


def coin_flips(steps):
    """Mean reward of 4 groups of 8 coin flips a step, for arm b; arm a learns."""
    rng = np.random.default_rng(1)
    reward = np.linspace(0.1, 0.9, steps)[:, None] * np.ones(2)
    reward[:, 1] = rng.binomial(32, 0.5, steps) / 32
    return reward


def test_high_advantage_with_flat_reward(tmp_path):
    found = alarms(log(tmp_path, reward=coin_flips(STEPS)))
    assert len(found) == 1
    assert found[0].startswith("Arm b kept a mean |A| of 0.60 over its last 100 observations")
    assert "broken verifier" in found[0]


@pytest.mark.parametrize("advantage", [0.1, 0.25])
def test_low_advantage_with_flat_reward_is_fine(tmp_path, advantage):
    # 0.1 is low in itself, 0.25 beside the other arm's 0.6.
    found = alarms(
        log(
            tmp_path,
            reward=coin_flips(STEPS),
            abs_advantage=np.full((STEPS, 2), [0.6, advantage]),
        )
    )
    assert found == []


def test_flat_reward_needs_50_observations(tmp_path):
    assert alarms(log(tmp_path / "short", steps=49, reward=coin_flips(49))) == []
    assert len(alarms(log(tmp_path / "long", steps=50, reward=coin_flips(50)))) == 1


def test_constant_reward_with_high_advantage_fires(tmp_path):
    # A format bonus that splits every group alike: the mean never moves.
    reward = coin_flips(STEPS)
    reward[:, 1] = 0.05
    assert [text[:6] for text in alarms(log(tmp_path, reward=reward))] == ["Arm b "]


def test_slow_but_real_progress_is_fine(tmp_path):
    rng = np.random.default_rng(2)
    rising = np.linspace(0.40, 0.49, STEPS)[:, None] + rng.normal(0, 0.03, (STEPS, 2))
    assert alarms(log(tmp_path, reward=rising)) == []


def test_noise_is_found_and_learning_spared_at_the_stated_rates(tmp_path):
    """200 noise arms and 200 arms that gain 0.2 a hundred steps, 4 groups of 8 a step.

    Misses of noise: expected 2.3% (two standard errors), so 4.6 of 200; more than 14 has
    probability 1e-4. The learners' change is 6 standard errors above zero and twice the allowed
    0.1: none may fire.
    """
    rng = np.random.default_rng(3)
    steps, count = 100, 200
    noise = rng.binomial(32, 0.5, (steps, count)) / 32
    learners = rng.binomial(32, np.linspace(0.4, 0.6, steps)[:, None], (steps, count)) / 32
    for name, reward, low, high in (("n", noise, count - 14, count), ("l", learners, 0, 0)):
        run = log(
            tmp_path / name,
            steps=steps,
            arms=[str(k) for k in range(count)],
            reward=reward,
        )
        assert low <= len(alarms(run)) <= high


@pytest.mark.parametrize(("last", "fires"), [(STEPS - 49, False), (STEPS - 50, True)])
def test_starving_arm(tmp_path, last, fires):
    draws = np.arange(1, STEPS + 1)[:, None] * np.ones(2, dtype=int)
    draws[:, 1] = np.minimum(draws[:, 1], last)
    reward = np.linspace(0.2, 0.8, STEPS)[:, None] * np.ones(2)
    reward[last:, 1] = np.nan
    advantage = np.where(np.isfinite(reward), 0.6, np.nan)
    found = alarms(log(tmp_path, draws=draws, reward=reward, abs_advantage=advantage))
    assert len(found) == fires
    if fires:
        assert (
            f"50 steps or more: b (last at step {last}, reward {reward[last - 1, 1]:.2f}"
            in (found[0])
        )


def test_arm_never_drawn(tmp_path):
    draws = np.arange(1, STEPS + 1)[:, None] * np.array([1, 0])
    nothing = np.full((STEPS, 2), np.nan)
    found = alarms(log(tmp_path, draws=draws, reward=nothing, abs_advantage=nothing))
    assert found[0].startswith("Not drawn for 50 steps or more: b (never). ")


def test_arm_drawn_once_at_the_first_step(tmp_path):
    draws = np.arange(1, STEPS + 1)[:, None] * np.array([1, 0]) + np.array([0, 1])
    found = alarms(log(tmp_path, draws=draws))
    assert "b (last at step 1, reward 0." in found[0]


def test_starvation_without_logged_draws_goes_by_probability(tmp_path):
    probability = np.full((STEPS, 2), [0.7, 0.3])
    assert alarms(log(tmp_path / "fine", draws=None, probability=probability)) == []
    probability[20:] = [0.9995, 0.0005]
    found = alarms(log(tmp_path / "starved", draws=None, probability=probability))
    assert len(found) == 2
    assert "b (last at step 20" in found[1]


def test_no_starvation_where_neither_draws_nor_probability_are_known(tmp_path):
    assert alarms(log(tmp_path, draws=None, probability=None)) == []


@pytest.mark.parametrize("name", ["loss", "grad_norm", "reward"])
def test_non_finite_scalars(tmp_path, name):
    values = np.zeros(STEPS)
    values[[6, 9]] = np.nan, np.inf
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", schema=1, arms=["a"], name="x")
        for t in range(STEPS):
            writer.write("step", **{"step": t + 1, "time": 0.0, name: values[t], "kl": np.nan})
    found = alarms(read_run(tmp_path))
    assert len(found) == 1
    assert found[0].startswith(f"{name} was NaN or infinite at 2 of 120 steps, first at step 7")


def test_dead_groups_and_truncated_completions(tmp_path):
    dead, cut = np.full(STEPS, 0.3), np.full(STEPS, 0.1)
    scalars = {"frac_reward_zero_std": dead, "completions/clipped_ratio": cut}
    assert alarms(log(tmp_path / "fine", **scalars)) == []
    dead[-50:], cut[-50:] = 0.95, 0.6
    found = alarms(log(tmp_path / "both", **scalars, **{"groups/all_pass": np.full(STEPS, 0.2)}))
    assert found[0].startswith(
        "In 95% of the groups of the last 50 logged steps all rewards were equal, in 20% of all "
        "because every rollout succeeds: they teach nothing."
    )
    assert found[1].startswith("60% of the completions of the last 50 logged steps were cut")
    assert alarms(log(tmp_path / "short", steps=49, **scalars)) == []


def test_damaged_lines_are_an_alarm(tmp_path):
    run = log(tmp_path)
    content = run.path.read_bytes().split(b"\n")
    content[3] = content[3][:30]
    content[5] = b"\0" * 9
    run.path.write_bytes(b"\n".join(content))
    assert [text[:59] for text in alarms(read_run(tmp_path))] == [
        "2 damaged lines of the log left out, the first: line 4: not"
    ]


def test_many_starving_arms_are_counted(tmp_path):
    arms = tuple(f"arm{k}" for k in range(40))
    draws = np.arange(1, STEPS + 1)[:, None] * (np.arange(40) == 0)
    nothing = np.full((STEPS, 40), np.nan)
    found = alarms(log(tmp_path, arms=arms, draws=draws, reward=nothing, abs_advantage=nothing))
    assert "arm8 (never), and 31 more. Unless" in found[0]


def test_a_run_that_has_only_evaluated_raises_none(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", schema=1, arms=["a"], name="x")
        writer.write("eval", step=0, time=0.0, accuracy={"a": 0.5}, num_prompts={"a": 4})
    assert alarms(read_run(tmp_path)) == []
