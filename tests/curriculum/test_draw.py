"""Draws: the right distribution, no prompt twice in an epoch, clear refusals."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sec_grpo.curriculum import SEC, Curriculum, Random, Strategy


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_arms_are_chosen_by_probability() -> None:
    curriculum = Curriculum([0] * 50 + [1] * 30 + [2] * 20, SEC(temperature=0.5), seed=11)
    curriculum.observe([0, 50], advantages=[[1.0, -1.0], [0.4, -0.4]])
    arms = curriculum.arm_indices(np.concatenate([curriculum.draw(100) for _ in range(2000)]))
    counts = np.bincount(arms, minlength=3)
    # 2 degrees of freedom: above 27.63 with probability exp(-27.63 / 2) = 1e-6.
    assert chi_square(counts, curriculum.probabilities() * 200_000) < 27.63


def test_prompts_are_uniform_inside_an_arm() -> None:
    # The prompt at each place of an epoch, over 60,000 epochs of 5 prompts.
    curriculum = Curriculum(["a"] * 5, seed=12)
    order = curriculum.draw(300_000).reshape(60_000, 5)
    for place in range(5):
        counts = np.bincount(order[:, place], minlength=5)
        # 4 degrees of freedom: above 35.9 with probability 3e-7, so 1.5e-6 for the five places.
        assert chi_square(counts, np.full(5, 12_000.0)) < 35.9


def test_epochs_are_independent() -> None:
    # The last prompt of an epoch and the first of the next one: all 25 pairs alike.
    order = Curriculum(["a"] * 5, seed=13).draw(300_000).reshape(60_000, 5)
    pairs = np.bincount(order[:-1, 4] * 5 + order[1:, 0], minlength=25)
    # 24 degrees of freedom: above 75.0 with probability 4e-7.
    assert chi_square(pairs, np.full(25, 59_999 / 25)) < 75.0


def test_random_gives_every_prompt_the_same_chance() -> None:
    categories = [0] * 90 + [1] * 9 + [2]
    curriculum = Curriculum(categories, Random(), seed=14)
    # The smallest weight is an integer near 2^40 / 90: rounding it costs up to 4.1e-11.
    np.testing.assert_allclose(curriculum.probabilities(), [0.9, 0.09, 0.01], rtol=4.2e-11)
    counts = np.bincount(curriculum.draw(100_000), minlength=100)
    # Without replacement the counts inside an arm differ by one at most.
    assert np.ptp(counts[:90]) <= 1
    assert np.ptp(counts[90:99]) <= 1
    # One binomial with standard deviation 31.5: 5.2 of them are passed with probability 2e-7.
    assert abs(counts[99] - 1000) < 5.2 * 31.5


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    batches=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    seed=st.integers(0, 2**64 - 1),
    resume_at=st.integers(0, 11),
    data=st.data(),
)
def test_every_epoch_of_every_arm_is_a_permutation(
    sizes: list[int], batches: list[int], seed: int, resume_at: int, data: st.DataObject
) -> None:
    categories = data.draw(st.permutations([arm for arm, n in enumerate(sizes) for _ in range(n)]))
    curriculum = Curriculum(categories, seed=seed)
    drawn: list[list[int]] = [[] for _ in sizes]
    for number, batch in enumerate(batches):
        if number == resume_at:
            state = curriculum.state_dict()
            curriculum = Curriculum(categories)
            curriculum.load_state_dict(state)
        indices = curriculum.draw(batch)
        assert indices.shape == (batch,)
        assert indices.dtype == np.int64
        for index in indices.tolist():
            drawn[categories[index]].append(index)
    for arm, prompts in enumerate(drawn):
        members = {i for i, category in enumerate(categories) if category == arm}
        for start in range(0, len(prompts), sizes[arm]):
            epoch = prompts[start : start + sizes[arm]]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= members


def test_duplicates_inside_a_batch() -> None:
    # No epoch ends: no duplicate.
    curriculum = Curriculum(["a"] * 100)
    assert len(set(curriculum.draw(60).tolist())) == 60
    # The epoch ends after 40 of these 60: at most the other 20 are there twice.
    second = curriculum.draw(60)
    assert len(set(second[:40].tolist())) == 40
    assert len(set(second[40:].tolist())) == 20
    # An arm with fewer prompts than slots must repeat, each prompt equally often.
    assert np.bincount(Curriculum(["a"] * 3).draw(12)).tolist() == [4, 4, 4]


def test_same_seed_same_draws() -> None:
    categories = np.arange(1000) % 7
    draws = [Curriculum(categories, seed=seed).draw(100).tolist() for seed in (5, 5, 6)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_one_prompt_and_one_arm() -> None:
    curriculum = Curriculum(["only"])
    assert curriculum.draw(5).tolist() == [0] * 5
    assert curriculum.probabilities().tolist() == [1.0]
    assert curriculum.arm_table()["epochs"].tolist() == [5.0]


@pytest.mark.parametrize("size", [0, -1, np.int64(-5)])
def test_batch_size_must_be_positive(size: int) -> None:
    with pytest.raises(ValueError, match=r"batch_size must be an integer in \[1, 2\*\*31\), got"):
        Curriculum([0, 1]).draw(size)


@pytest.mark.parametrize("size", [True, np.True_, 4.0, np.float64(4), "4", None])
def test_batch_size_must_be_an_integer(size: object) -> None:
    with pytest.raises(TypeError, match=r"batch_size must be an integer.*got"):
        Curriculum([0, 1]).draw(size)  # type: ignore[arg-type]


def test_numpy_batch_size() -> None:
    assert Curriculum([0, 1]).draw(np.int32(3)).shape == (3,)


@pytest.mark.parametrize("size", [2**31, 2**40, 2**70])
def test_too_large_batch_is_refused_before_it_is_allocated(size: int) -> None:
    with pytest.raises(ValueError, match=rf"in \[1, 2\*\*31\), got {size}"):
        Curriculum([0, 1]).draw(size)


@pytest.mark.parametrize("num_arms", [3, 300, 70_000])
def test_a_million_prompts(num_arms: int) -> None:
    categories = np.random.default_rng(0).integers(0, num_arms, 1_000_000)
    categories[:num_arms] = np.arange(num_arms)
    curriculum = Curriculum(categories, seed=1)
    indices = curriculum.draw(4096)
    assert indices.min() >= 0
    assert indices.max() < 1_000_000
    np.testing.assert_array_equal(curriculum.arm_indices(indices), categories[indices])
    curriculum.observe(indices, advantages=np.ones((4096, 2), np.float32))
    drawn = np.unique(categories[indices])
    np.testing.assert_array_equal(np.flatnonzero(curriculum.values()), drawn)
    assert curriculum.arm_table()["draws"].sum() == 4096


def test_threads_share_one_curriculum() -> None:
    categories = np.arange(600) % 3
    curriculum = Curriculum(categories, SEC(temperature=0.3), seed=2)
    drawn: list[np.ndarray] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(200):
                indices = curriculum.draw(20)
                drawn.append(indices)
                curriculum.observe(indices, advantages=np.ones((20, 4), np.float32))
                curriculum.metrics()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert curriculum.step == 800
    counts = np.bincount(np.concatenate(drawn), minlength=600)
    table = curriculum.arm_table()
    for arm in range(3):
        assert np.ptp(counts[arm::3]) <= 1
        assert counts[arm::3].sum() == table["draws"][arm]
    fresh = Curriculum(categories, SEC(temperature=0.3))
    fresh.load_state_dict(curriculum.state_dict())
    np.testing.assert_array_equal(fresh.draw(50), curriculum.draw(50))


def test_a_drawing_thread_does_not_hold_the_gil() -> None:
    curriculum = Curriculum(np.arange(100_000) % 10)
    progress = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            progress.append(None)

    thread = threading.Thread(target=count)
    thread.start()
    before = len(progress)
    curriculum.draw(5_000_000)
    after = len(progress)
    stop.set()
    thread.join()
    # 5e6 draws take some 100 ms; a held GIL would leave the counter at no more than one slice.
    assert after - before > 1000


def test_strategy_may_use_the_curriculum_from_a_hook() -> None:
    class Nosy(Strategy):
        def before_draw(self, step: int) -> None:
            seen.append(curriculum.probabilities().tolist())

    seen: list[list[float]] = []
    curriculum = Curriculum([0, 1], Nosy())
    curriculum.draw(1)
    assert seen == [[0.5, 0.5]]
