"""Feedback: what is accepted, what it does to the table, and that refusals change nothing."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sec_grpo.curriculum import SEC, Curriculum, Feedback, Random, Strategy
from sec_grpo.curriculum._arrays import as_groups, as_indices

CATEGORIES = [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "indices", [[0, 1], (0, 1), np.array([0, 1], np.uint8), torch.tensor([0, 1], dtype=torch.int32)]
)
@pytest.mark.parametrize(
    "advantages",
    [
        [[0.5, -0.5], [1, -1]],
        np.array([[0.5, -0.5], [1, -1]], np.float16),
        np.asfortranarray([[0.5, -0.5], [1.0, -1.0]]),
        torch.tensor([[0.5, -0.5], [1, -1]], requires_grad=True),
        torch.tensor([[0.5, -0.5], [1, -1]], dtype=torch.bfloat16),
    ],
)
def test_lists_arrays_and_tensors(indices: object, advantages: object) -> None:
    curriculum = Curriculum(CATEGORIES, SEC(alpha=1.0))
    curriculum.observe(indices, advantages=advantages)
    assert curriculum.values().tolist() == [0.5, 1.0, 0.0]


def test_arrays_of_the_right_kind_are_not_copied() -> None:
    indices = Curriculum(CATEGORIES).draw(4)
    assert as_indices(indices) is indices
    for dtype in (np.float32, np.float64):
        values = np.zeros((4, 2), dtype)
        assert as_groups("rewards", values) is values
        assert np.shares_memory(as_groups("rewards", torch.from_numpy(values)), values)


@pytest.mark.parametrize(
    ("indices", "arrays", "error", "message"),
    [
        ([0, 6], {}, IndexError, r"indices\[1\] must be in \[0, 6\), got 6"),
        ([0, -1], {}, IndexError, r"indices\[1\]"),
        ([0.0, 1.0], {}, TypeError, "indices must be integers, got dtype float64"),
        ([True, False], {}, TypeError, "indices must be integers, got dtype bool"),
        (np.array([0, 2**63], np.uint64), {}, IndexError, "9223372036854775808"),
        ([], {}, ValueError, "at least one"),
        ([[0], [1]], {}, ValueError, r"shape \(B,\), got \(2, 1\)"),
        ([0, 1], {"advantages": None}, ValueError, "got neither"),
        ([0, 1], {"advantages": [1.0, 2.0, 3.0, 4.0]}, ValueError, r"\(B, G\).*reshape"),
        ([0, 1], {"advantages": [[1.0], [1.0], [1.0]]}, ValueError, r"got \(3, 1\)"),
        ([0, 1], {"advantages": [[1.0, 2.0], [1.0]]}, ValueError, "advantages must be rect"),
        ([0, 1], {"advantages": [["a"], ["b"]]}, TypeError, "advantages must be numbers"),
        ([0, 1], {"advantages": [[1.0], [np.nan]]}, ValueError, r"advantages\[1, 0\].*nan"),
        ([0, 1], {"advantages": [[1.0], [-np.inf]]}, ValueError, r"advantages\[1, 0\].*-inf"),
        ([0, 1], {"rewards": [[1.0, np.nan], [0.0, 0.0]]}, ValueError, r"rewards\[0, 1\]"),
        ([0, 1], {"rewards": [[1.0], [0.0]]}, ValueError, "same shape"),
    ],
)
def test_one_bad_value_changes_nothing(
    indices: object, arrays: dict, error: type[Exception], message: str
) -> None:
    curriculum = Curriculum(CATEGORIES, SEC(temperature=0.1))
    curriculum.observe(curriculum.draw(4), advantages=np.arange(8.0).reshape(4, 2))
    before = curriculum.to_bytes()
    good = {"advantages": [[1.0, -1.0], [2.0, -2.0]]}
    with pytest.raises(error, match=f"(?s){message}"):
        curriculum.observe(indices, **(good | arrays))
    assert curriculum.to_bytes() == before


def test_arm_table() -> None:
    curriculum = Curriculum(["a", "a", "b", "b", "c"], Random(), seed=1, arms=["a", "b", "c", "d"])
    drawn = np.concatenate([curriculum.draw(3) for _ in range(4)])
    curriculum.observe(
        [0, 1, 2],
        advantages=[[1.0, -1.0], [0.0, 0.0], [0.5, -0.5]],
        rewards=[[1.0, 0.0], [1.0, 1.0], [0.25, 0.75]],
    )
    curriculum.observe([2], rewards=[[0.0, 0.0]])
    table = curriculum.arm_table()
    draws = np.bincount(curriculum.arm_indices(drawn), minlength=4)
    np.testing.assert_array_equal(table["draws"], draws)
    np.testing.assert_array_equal(table["epochs"], draws / np.array([2, 2, 1, 1]))
    np.testing.assert_array_equal(table["prompts"], [2, 2, 1, 0])
    np.testing.assert_array_equal(table["abs_advantage"], [0.5, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(table["reward"], [0.75, 0.0, np.nan, np.nan])
    np.testing.assert_array_equal(table["dead_groups"], [0.5, 1.0, np.nan, np.nan])
    np.testing.assert_array_equal(table["value"], np.full(4, np.nan))
    last = [max(np.flatnonzero(np.isin(drawn, i)) // 3, default=-1) for i in ([0, 1], [2, 3], [4])]
    np.testing.assert_array_equal(table["last_drawn_step"], [*last, -1])
    assert set(table) == {
        *("probability", "value", "draws", "epochs", "prompts", "abs_advantage", "reward"),
        *("dead_groups", "last_drawn_step"),
    }
    assert all(column.shape == (4,) for column in table.values())


def test_metrics() -> None:
    curriculum = Curriculum([0, 0, 1, 1], SEC(alpha=1.0, temperature=1.0), arms=[0, 1, 2])
    metrics = curriculum.metrics()
    assert metrics == {
        "step": 0,
        "observations": 0,
        "prompts_drawn": 0,
        "epochs": 0,
        "effective_arms": pytest.approx(2.0),
        "max_probability": 0.5,
        "mean_arm": 0.5,
        "probability/0": 0.5,
        "probability/1": 0.5,
        "probability/2": 0.0,
        "value/0": 0.0,
        "value/1": 0.0,
        "value/2": 0.0,
    }
    curriculum.draw(6)
    curriculum.observe(
        [0, 2], advantages=[[0.0, 0.0], [np.log(3.0)] * 2], rewards=[[0.5, 0.5], [0.0, 1.0]]
    )
    metrics = curriculum.metrics()
    assert all(type(value) is float for value in metrics.values())
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert metrics["effective_arms"] == pytest.approx(np.exp(entropy), rel=1e-10)
    assert metrics["max_probability"] == pytest.approx(0.75, rel=1e-10)
    assert metrics["mean_arm"] == pytest.approx(0.75, rel=1e-10)
    assert metrics["prompts_drawn"] == 6
    assert metrics["epochs"] == 1.5
    assert metrics["abs_advantage"] == pytest.approx(np.log(3.0) / 2)
    assert metrics["reward"] == 0.5
    assert metrics["dead_groups"] == 0.5


def test_labels_in_metric_names() -> None:
    curriculum = Curriculum([("geo", 1), ("alg", 2)])
    assert {"probability/alg,2", "probability/geo,1"} <= set(curriculum.metrics())
    assert not any("/" in name for name in Curriculum(range(65)).metrics())


@dataclass(frozen=True)
class FewestDead(Strategy):
    """The example of the docstring of Strategy."""

    sharpness: float = 4.0

    def on_bind(self, arms: tuple, sizes: np.ndarray) -> None:
        self.memory["dead"] = np.zeros(len(arms))

    def observe(self, feedback: Feedback) -> np.ndarray:
        self.memory["dead"][feedback.arms] = feedback.dead_groups
        return -self.sharpness * self.memory["dead"]

    def values(self) -> np.ndarray:
        return self.memory["dead"]


def test_own_strategy() -> None:
    curriculum = Curriculum(CATEGORIES, FewestDead())
    curriculum.observe([0, 1, 3], rewards=[[1, 1], [0, 1], [0, 1]])
    assert curriculum.values().tolist() == [0.5, 0.0, 0.0]
    expected = np.exp([-2.0, 0.0, 0.0])
    # The weights are integers, the smallest of about 2^37.
    np.testing.assert_allclose(curriculum.probabilities(), expected / expected.sum(), rtol=1e-11)
    curriculum.draw(3)

    resumed = Curriculum(CATEGORIES, FewestDead())
    resumed.load_state_dict(curriculum.state_dict())
    for one in (curriculum, resumed):
        one.observe([2], rewards=[[0, 0]])
    assert resumed.values().tolist() == [0.5, 0.0, 1.0]
    assert resumed.to_bytes() == curriculum.to_bytes()
    assert resumed.draw(50).tolist() == curriculum.draw(50).tolist()


def test_one_strategy_object_serves_two_curricula() -> None:
    strategy = FewestDead()
    first, second = Curriculum(CATEGORIES, strategy), Curriculum(CATEGORIES, strategy)
    first.observe([0], rewards=[[1, 1]])
    assert first.values().tolist() == [1.0, 0.0, 0.0]
    assert second.values().tolist() == [0.0, 0.0, 0.0]
    assert first.strategy == strategy


def test_feedback_of_own_strategy() -> None:
    class Record(Strategy):
        def observe(self, feedback: Feedback) -> None:
            seen.append(feedback)

    seen: list[Feedback] = []
    curriculum = Curriculum(CATEGORIES, Record())
    curriculum.draw(2)
    curriculum.observe([5, 0, 2], advantages=[[1, -3], [0, 0], [0, 0]])
    (feedback,) = seen
    assert feedback.step == 1
    assert feedback.indices.tolist() == [5, 0, 2]
    assert feedback.arm_indices().tolist() == [2, 0, 2]
    assert feedback.arms.tolist() == [2, 0]
    assert feedback.groups.tolist() == [2, 1]
    assert feedback.abs_advantage is not None
    assert feedback.abs_advantage.tolist() == [1.0, 0.0]
    assert feedback.dead_groups.tolist() == [0.5, 1.0]
    assert feedback.reward is None
    assert feedback.rewards is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.0, 0.0], r"shape \(3,\)"),
        ([0.0, np.nan, 0.0], "arm 1"),
        ([0.0, np.inf, 0.0], "arm 1"),
        ([-np.inf] * 3, "at least one arm"),
    ],
)
@pytest.mark.parametrize("hook", ["on_bind", "before_draw", "after_draw", "observe"])
def test_wrong_weights_of_a_strategy(hook: str, weights: list[float], message: str) -> None:
    wrong = type("Wrong", (Strategy,), {hook: lambda *_: weights})
    with pytest.raises(ValueError, match=message):  # noqa: PT012 (any of the three may raise)
        curriculum = Curriculum(CATEGORIES, wrong())
        curriculum.draw(1)
        curriculum.observe([0], rewards=[[1.0]])
