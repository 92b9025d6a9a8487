"""The simulated learner: its equations by hand, and the facts it has to reproduce."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sec_grpo.curriculum import Ordered, Random
from sec_grpo.simulation import (
    SCENARIOS,
    LearnerSettings,
    Method,
    Protocol,
    SimulatedLearner,
    default_methods,
    simulate,
)
from sec_grpo.simulation.experiment import group_normalised, run
from sec_grpo.simulation.summary import interval, student_t, summarise, table

SHORT = Protocol(seeds=3, steps=6, batch_size=16, num_generations=4)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_success_by_hand() -> None:
    settings = LearnerSettings(skills=(1.0, 0.5, -1.0), sharpness=2.0, hacking_cost=1.5)
    learner = SimulatedLearner(settings, 0)
    learner.hacking = 0.2
    levels, difficulties = np.array([0, 1, 2]), np.array([0.0, 0.25, -0.5])
    expected = [
        sigmoid(2 * 1.0 - 0.3),
        sigmoid(2 * 0.75 - 0.3) * sigmoid(2 * 0.25 - 0.3),
        sigmoid(2 * 1.5 - 0.3) * sigmoid(2 * 1.0 - 0.3) * sigmoid(2 * -0.5 - 0.3),
    ]
    assert learner.success(levels, difficulties) == pytest.approx(expected)


def test_a_step_is_the_gradient_of_the_log_probability() -> None:
    settings = LearnerSettings(
        skills=(0.5, -0.5, -1.0), learning_rate=1.0, spill=0.0, forgetting=0.0, hacking_rate=0.0
    )
    learner = SimulatedLearner(settings, 0)
    levels, difficulties = np.array([1, 0]), np.array([0.1, -0.2])
    solved = np.array([[True, False, False], [True, True, False]])
    advantages = group_normalised(solved.astype(float))

    def objective(skills: np.ndarray) -> float:
        learner.skills = skills
        p = learner.success(levels, difficulties)
        log_p = np.where(solved, np.log(p)[:, None], np.log(1 - p)[:, None])
        return float((advantages * log_p).mean())

    start = np.array(settings.skills)
    gradient = []
    for m in range(3):
        up, down = start.copy(), start.copy()
        up[m] += 1e-6
        down[m] -= 1e-6
        gradient.append((objective(up) - objective(down)) / 2e-6)
    learner.skills = start.copy()
    learner.learn(levels, difficulties, solved, advantages)
    assert learner.skills - start == pytest.approx(gradient, abs=1e-8)


def test_what_else_moves() -> None:
    settings = LearnerSettings(skills=(1.0, 0.0, -1.0), forgetting=0.1, hacking_decay=0.0)
    learner = SimulatedLearner(settings, 0)
    learner.skills = np.array([2.0, 1.0, -1.0])
    fails = np.zeros((2, 4), bool)
    learner.learn(np.array([1, 1]), np.zeros(2), fails, np.zeros((2, 4)))
    # Level 0 is not practised and forgets a tenth of what it learned; level 1 is.
    assert learner.skills == pytest.approx([1.9, 1.0, -1.0])
    assert learner.hacking == pytest.approx(settings.hacking_rate)
    assert learner.exploration == 1.0
    learner.learn(np.array([0, 0]), np.zeros(2), ~fails, np.zeros((2, 4)))
    assert learner.exploration == pytest.approx(1 - settings.exploration_loss)
    # Spill: what level 0 learns, level 1 gets 0.6 of.
    learner = SimulatedLearner(LearnerSettings(skills=(0.0, 0.0, 0.0), forgetting=0.0), 0)
    solved = np.array([[True, False]])
    learner.learn(np.array([0]), np.zeros(1), solved, np.array([[1.0, -1.0]]))
    assert learner.skills[0] > 0
    assert learner.skills[1] == pytest.approx(0.6 * learner.skills[0])
    assert learner.skills[2] == 0


def test_runs_depend_on_the_seed_alone() -> None:
    base = SCENARIOS["base"]
    first, again = (run(Random(), base, SHORT, seed=3) for _ in range(2))
    assert first.held_out == again.held_out
    assert (first.allocation == again.allocation).all()
    assert first.held_out != run(Random(), base, SHORT, seed=4).held_out


def test_budgets_are_equal_with_a_gate() -> None:
    protocol = Protocol(seeds=2, steps=30, batch_size=32, num_generations=8)
    for gate in (False, True):
        outcome = run(Random(), SCENARIOS["base"], protocol, 0, gate)
        # The last step may overshoot by its refills, at most three batches.
        assert protocol.rollouts <= outcome.rollouts < protocol.rollouts + 4 * 32 * 8
        assert len(outcome.mean_level) == 30 if not gate else len(outcome.mean_level) < 30


def test_allocation_is_that_of_the_schedule() -> None:
    protocol = Protocol(seeds=2, steps=8)
    outcome = run(Ordered(8), SCENARIOS["base"], protocol, 0)
    assert outcome.mean_level.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert outcome.allocation.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


# ---- The facts of the literature ----------------------------------------------------------------


@pytest.fixture(scope="module")
def compared() -> dict[str, dict]:
    """Summaries over 8 paired seeds; the intervals below are far from 0 for every one of them."""
    chosen = ("random", "ordered", "reverse", "sec", "sec tau=0.2", "dump", "learnability", "tscl")
    methods = [method for method in default_methods() if method.name in chosen]
    methods += [method for method in default_methods() if method.name == "raw |A| tau=0.2"]
    found = simulate(methods, list(SCENARIOS.values()), Protocol(seeds=8), processes=2)
    return {one.scenario.name: summarise(one) for one in found}


def gain(summary: dict, name: str) -> tuple[float, float]:
    """The 95% interval of the paired difference to random."""
    row = summary["methods"][name]
    half = row["gain_half_interval"]
    return row["gain"] - half, row["gain"] + half


def test_the_weak_base_reproduces_the_order_of_the_paper(compared: dict[str, dict]) -> None:
    # Intervals at 95% over 8 seeds that exclude 0 by more than their width: the chance that noise
    # alone does that is below 1e-6 for each of the five.
    base = compared["base"]
    for name, sign in (("reverse", -1), ("ordered", -1), ("sec", 1), ("dump", 1)):
        low, high = gain(base, name)
        assert sign * (low + high) / 2 > high - low, name
    assert base["methods"]["reverse"]["held_out"] < 0.01
    assert base["methods"]["sec tau=0.2"]["held_out"] > base["methods"]["sec"]["held_out"]
    for name in ("sec", "sec tau=0.2", "dump"):
        row = base["methods"][name]
        assert row["level_last"] > row["level_first"] + 0.03, name
    assert base["best_static"]["held_out"] > base["methods"]["random"]["held_out"]


def test_the_gap_shrinks_on_a_strong_base(compared: dict[str, dict]) -> None:
    for name in ("sec", "sec tau=0.2", "dump"):
        assert 0 < gain(compared["strong"], name)[1] < gain(compared["base"], name)[0], name


def test_arms_that_fool_a_signal(compared: dict[str, dict]) -> None:
    def share(scenario: str, name: str) -> float:
        return compared[scenario]["methods"][name]["extra_share"]

    # A coin flip has the largest |A| there is: SEC and DUMP pour prompts into it, TSCL does not.
    assert share("noise", "random") == pytest.approx(0.2, abs=0.01)
    assert share("noise", "tscl") < 0.27
    assert 0.27 < share("noise", "sec") < share("noise", "sec tau=0.2")
    assert share("noise", "dump") > 0.6
    # A format reward fools |A| divided by its standard deviation, not |A| itself nor success.
    assert share("unsolvable", "sec tau=0.2") > 0.6
    assert share("unsolvable", "raw |A| tau=0.2") < 0.2
    assert share("unsolvable", "learnability") < 0.15


# ---- Numbers and arguments ----------------------------------------------------------------------


def test_students_t_and_intervals() -> None:
    for degrees, value in ((1, 12.706), (3, 3.182), (4, 2.776), (9, 2.262), (19, 2.093)):
        assert student_t(degrees) == pytest.approx(value, rel=3e-3)
    mean, half = interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert half == pytest.approx(3.182 * math.sqrt(5 / 3) / 2, rel=1e-3)


def test_summaries_are_json_and_tables_whole() -> None:
    methods = [Method("random", "random"), Method("mine", "sec", {"temperature": 0.1})]
    found = simulate(methods, [SCENARIOS["noise"]], SHORT)
    summary = json.loads(json.dumps(summarise(found[0])))
    assert set(summary["methods"]) == {"random", "mine"}
    assert summary["methods"]["mine"]["gain"] == pytest.approx(
        np.mean(summary["methods"]["mine"]["each"]) - np.mean(summary["methods"]["random"]["each"])
    )
    assert "gain" not in summary["methods"]["random"]
    assert table(summary).row_count == 3
    assert len(summary["best_static"]["weights"]) == 5


@pytest.mark.parametrize(
    ("methods", "protocol", "message"),
    [
        ([], SHORT, "at least one method"),
        ([Method("a", "sec"), Method("a", "dump")], SHORT, "different names"),
        ([Method("a", "nothing")], SHORT, "name must be one of"),
        ([Method("a", "sec")], Protocol(seeds=1), "seeds must be at least 2, got 1"),
        ([Method("a", "sec")], Protocol(num_generations=1), "num_generations must be at least 2"),
    ],
)
def test_bad_arguments(methods, protocol, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(methods, [SCENARIOS["base"]], protocol)
