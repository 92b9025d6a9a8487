"""verl 0.5 to 0.8: the sampler in verl's loader, and in its own training loop on a local Ray.

The loop runs with stand-ins for what needs GPUs (see common.py).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="needs verl (make test-verl-0.7)")
pytest.importorskip("ray", reason="needs ray")

from sec_grpo.errors import CheckpointError
from sec_grpo.integrations.verl.installed import minor_version

if minor_version() >= (0, 9):
    pytest.skip("verl 0.9 has no samplers by configuration", allow_module_level=True)

from torchdata.stateful_dataloader import StatefulDataLoader
from verl import DataProto
from verl.utils import hf_tokenizer
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

from sec_grpo.integrations.verl.sampler import CurriculumSampler


@pytest.fixture
def make_loader(common, inputs):
    """verl's data set and loader with our sampler, made by verl where it can."""

    def make(*overrides: str):
        from verl.trainer import main_ppo

        config = common.make_config(inputs, "loader", *overrides)
        dataset = RLHFDataset(
            str(inputs / "rows.parquet"), hf_tokenizer(str(inputs / "model")), config.data
        )
        if minor_version() < (0, 8):
            config.data.sampler.class_path = "pkg://sec_grpo.integrations.verl.sampler"
            config.data.sampler.class_name = "CurriculumSampler"
            sampler = main_ppo.create_rl_sampler(config.data, dataset)
        else:
            sampler = CurriculumSampler(dataset, config.data)
        size = config.data.get("gen_batch_size") or config.data.train_batch_size
        return StatefulDataLoader(
            dataset, batch_size=size, sampler=sampler, drop_last=True, collate_fn=collate_fn
        )

    return make


def answered(common, batch, answers):
    """The batch with four completions a row, advantages by verl, in another order."""
    numbers = [info["number"] for info in batch["extra_info"]]
    size = common.GROUP
    scores = torch.tensor(answers.answer(numbers), dtype=torch.float64)
    centred = scores - scores.mean(1, keepdim=True)
    advantages = (centred / (scores.std(1, keepdim=True) + 1e-6)).flatten()
    order = torch.randperm(len(advantages), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(len(advantages), 5)
    mask[:, 3:] = 0
    rewards = torch.zeros(len(advantages), 5, dtype=torch.float64)
    rewards[:, 2] = scores.flatten()
    uids = np.repeat([f"uid{i}" for i in range(len(numbers))], size)
    return DataProto.from_dict(
        tensors={
            "advantages": (advantages[:, None] * mask)[order],
            "response_mask": mask[order],
            "token_level_scores": rewards[order],
        },
        non_tensors={
            "uid": uids.astype(object)[order.numpy()],
            "extra_info": np.repeat(batch["extra_info"], size)[order.numpy()],
        },
    )


def train(common, loader, answers, steps):
    """Steps over as many epochs as it takes; the loader's state after each."""
    states = []
    while len(states) < steps:
        for batch in loader:
            loader.sampler.update(answered(common, batch, answers))
            states.append(loader.state_dict())
            if len(states) == steps:
                break
    return states


def test_the_loader_gets_what_the_curriculum_draws_and_teaches_it(
    common, make_loader, twin_of
) -> None:
    loader, answers = make_loader(), common.Answers()
    assert len(loader) == 4
    train(common, loader, answers, 6)
    twin = twin_of(answers.asked, answers.rewards)
    curriculum = loader.sampler.curriculum
    assert np.nanmax(twin.values()) > 0.1
    np.testing.assert_allclose(curriculum.values(), twin.values(), rtol=1e-5)
    np.testing.assert_allclose(
        curriculum.arm_table()["reward"], twin.arm_table()["reward"], rtol=1e-6
    )
    assert curriculum.step == curriculum.metrics()["observations"] == 6


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_loaded_state_goes_on_inside_an_epoch_and_at_its_end(common, make_loader, step) -> None:
    whole, answers = make_loader(), common.Answers()
    states = train(common, whole, answers, 8)
    resumed = make_loader()
    resumed.load_state_dict(states[step - 1])
    # The rest of the epoch that the state lies in, or the whole next one at its end.
    rest = [[info["number"] for info in batch["extra_info"]] for batch in resumed]
    assert len(rest) == (4 - step % 4)
    assert rest[0] == answers.asked[step]


def test_a_loaded_state_continues_bit_for_bit(common, make_loader) -> None:
    whole, answers = make_loader(), common.Answers()
    states = train(common, whole, answers, 6)
    resumed, again = make_loader(), common.Answers(3)
    resumed.load_state_dict(states[2])
    train(common, resumed, again, 3)
    assert again.asked == answers.asked[3:]
    assert resumed.sampler.curriculum.to_bytes() == whole.sampler.curriculum.to_bytes()


def test_batches_of_generation_are_drawn_together(common, make_loader) -> None:
    loader = make_loader("+data.gen_batch_size=4")
    batch = next(iter(loader))
    assert len(batch["extra_info"]) == 4
    assert loader.sampler.curriculum.step == 1


def test_lost_rollouts_leave_the_means(common, make_loader) -> None:
    loader, answers = make_loader(), common.Answers()
    batch = answered(common, next(iter(loader)), answers)
    kept = batch.select_idxs(np.arange(len(batch)) != 3)
    loader.sampler.update(kept)
    scores = kept.batch["token_level_scores"].sum(-1).numpy()
    uids = kept.non_tensor_batch["uid"]
    expected = np.mean([scores[uids == uid].mean() for uid in dict.fromkeys(uids)])
    assert loader.sampler.curriculum.metrics()["reward"] == pytest.approx(expected)


def test_a_row_drawn_twice_makes_two_groups(common, make_loader) -> None:
    loader, answers = make_loader(), common.Answers()
    batch = next(iter(loader))
    batch["extra_info"] = np.array([batch["extra_info"][0]] * 6, dtype=object)
    loader.sampler.update(answered(common, batch, answers))
    number = batch["extra_info"][0]["number"]
    expected = np.mean(answers.rewards[0])
    table = loader.sampler.curriculum.arm_table()
    assert table["reward"][number % 3] == pytest.approx(expected)


def test_what_does_not_fit_is_refused_with_the_way_out(common, make_loader) -> None:
    loader, answers = make_loader(), common.Answers()
    sampler = loader.sampler
    batch = answered(common, next(iter(loader)), answers)
    batch.non_tensor_batch["extra_info"] = np.array([{}] * len(batch), dtype=object)
    with pytest.raises(ValueError, match="must hand extra_info on"):
        sampler.update(batch)
    with pytest.raises(CheckpointError, match="Set trainer.resume_mode=disable"):
        sampler.load_state_dict({})
    state = sampler.state_dict()
    other = make_loader("data.curriculum.temperature=0.3").sampler
    with pytest.raises(CheckpointError, match="does not fit"):
        other.load_state_dict(state)
    for match, override in {
        "must have a name and a category": "~data.curriculum",
        "data.curriculum.category is missing": "~data.curriculum.category",
        "name must be one of": "data.curriculum.name=sac",
        "does not fit data.train_files": "data.curriculum.category=extra_info.nothing",
        "at most the 24 rows": "data.train_batch_size=25",
    }.items():
        with pytest.raises(ValueError, match=match):
            make_loader(override)


@pytest.fixture(scope="module")
def results(run_worker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verl")
    return run_worker("sampler_worker.py", folder, ("plain", "resumed"))


@pytest.mark.slow
def test_verl_s_own_loop_trains_on_the_draws(results, twin_of) -> None:
    run = results["plain"]
    twin = twin_of(run["asked"], run["rewards"])
    assert len(run["asked"]) == run["observations"] == run["updates"] == 6
    assert np.nanmax(twin.values()) > 0.1
    np.testing.assert_allclose(run["values"], twin.values(), rtol=1e-5)
    expected = "sec_grpo.integrations.verl.main_ppo.CurriculumRayPPOTrainer"
    if minor_version() < (0, 8):
        expected = "verl.trainer.ppo.ray_trainer.RayPPOTrainer"
    assert run["kind"] == expected


@pytest.mark.slow
def test_verl_s_own_loop_resumes(results, twin_of) -> None:
    whole = results["plain"]
    for step, (first, last) in zip((2, 4), results["resumed"], strict=True):
        assert first["asked"] == whole["asked"][:step]
        assert len(last["asked"]) == last["updates"] == 6 - step
        if minor_version() >= (0, 8):
            assert last["asked"] == whole["asked"][step:]
            assert last["state"] == whole["state"]
        else:
            # verl saves before the feedback of the step, which is lost: the sampler's docstring.
            assert last["observations"] == 5
            values = twin_of(*(first[key][: step - 1] for key in ("asked", "rewards"))).values()
            assert not np.array_equal(values, first["values"])
