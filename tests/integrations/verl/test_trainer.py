"""verl 0.9's own training loop with a curriculum, on a local Ray and TransferQueue.

What needs GPUs is stood in for (see common.py): the workers that hold the model, and the agent
loops, which here answer at once. The loop, data set, replay buffer, advantages and checkpoints are
verl's, chosen by the name that the plug-in registers.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("verl", reason="needs verl (make test-verl-newest)")
pytest.importorskip("ray", reason="needs ray")

from sec_grpo.integrations.verl.installed import minor_version

if minor_version() < (0, 9):
    pytest.skip("the plug-in is for verl 0.9 and newer", allow_module_level=True)

SCENARIOS = ("plain", "resumed", "chunks", "lost", "filtered", "refused")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(run_worker, tmp_path_factory):
    """name -> what the run saw."""
    return run_worker("trainer_worker.py", tmp_path_factory.mktemp("verl"), SCENARIOS)


@pytest.mark.parametrize("name", ["plain", "chunks"])
def test_it_trains_on_what_the_curriculum_draws_and_learns_from_it(results, twin_of, name) -> None:
    run = results[name]
    twin = twin_of(run["asked"], run["rewards"])
    assert len(run["asked"]) == run["draws"] == run["updates"] == 4
    assert np.nanmax(twin.values()) > 0.1
    np.testing.assert_allclose(run["values"], twin.values(), rtol=1e-5)
    np.testing.assert_allclose(run["table"]["reward"], twin.arm_table()["reward"], rtol=1e-5)
    assert run["left"] == (0, 0, 0)


def test_metrics_are_in_verl_s(results) -> None:
    logged = results["plain"]["logged"]
    assert [entry["curriculum/step"] for entry in logged] == [1, 2, 3, 4]
    for arm, value in enumerate(results["plain"]["values"]):
        assert logged[-1][f"curriculum/value/{arm}"] == pytest.approx(value, rel=1e-12)


def test_a_resumed_run_repeats_the_uninterrupted_one(results) -> None:
    whole = results["plain"]
    first, last, again = results["resumed"]
    for rest in (last, again):
        assert first["asked"] + rest["asked"] == whole["asked"]
        assert rest["state"] == whole["state"]
        assert rest["updates"] == 2


def test_a_lost_session_leaves_the_means_of_its_group(results) -> None:
    run = results["lost"]
    numbers, scores = run["asked"][1], np.array(run["rewards"][1])
    kept = np.delete(scores, 1, axis=1)
    table = run["logged"][1]
    centred = kept - kept.mean(1, keepdims=True)
    advantages = np.abs(centred) / (kept.std(1, ddof=1, keepdims=True) + 1e-6)
    assert table["curriculum/reward"] == pytest.approx(kept.mean(), rel=1e-5)
    assert table["curriculum/abs_advantage"] == pytest.approx(advantages.mean(), rel=1e-5)
    assert len(numbers) == 6


def test_groups_that_verl_filters_teach_all_the_same(results) -> None:
    """Rows of difficulty 0 have equal rewards: verl drops them, the curriculum must see that."""
    run = results["filtered"]
    drawn = [number for numbers in run["asked"] for number in numbers]
    dead = sum(number % 3 == 0 for number in drawn)
    assert dead > 0
    assert len(drawn) > 12
    assert run["values"][0] == 0
    assert run["table"]["dead_groups"][0] == 1
    assert run["table"]["reward"][0] == pytest.approx(0.5)
    assert run["values"][1] > 0.1
    # The first generation and its refills are one draw each.
    assert run["draws"] == len(run["asked"])
    assert run["left"] == (0, 0, 0)


def test_what_does_not_fit_is_refused_with_the_way_out(results) -> None:
    deleted, damaged, other, missing, unknown = results["refused"]
    assert "sec_grpo_curriculum.bin cannot be read" in deleted
    assert "Set trainer.resume_mode=disable" in deleted
    assert "does not fit" in damaged
    assert "does not fit" in other
    assert "data.curriculum must have a name and a category" in missing
    assert "+data.curriculum.name=sec" in missing
    assert "does not fit data.train_files" in unknown
