"""Scenarios of verl 0.5's to 0.8's main_ppo in a task runner on a local Ray; see test_sampler."""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import ray
import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import GROUP, Answers, Workers, make_config, write_inputs

from sec_grpo.integrations.verl.installed import minor_version

BYPASS = ["algorithm.rollout_correction.bypass_mode=True"] if minor_version() >= (0, 7) else []


class AnsweringManager:
    """Stands for verl's agent loops: completions at once, with what each row has earned."""

    def __init__(self, answers, tokenizer):
        self.answers, self.tokenizer = answers, tokenizer

    def numbers(self, prompts):
        """The row of each prompt; verl 0.5 hands on nothing but its tokens."""
        columns = prompts.non_tensor_batch
        if "extra_info" in columns:
            return [info["number"] for info in columns["extra_info"]]
        texts = [self.tokenizer.decode(ids) for ids in columns["raw_prompt_ids"]]
        return ["abc".index(text[0]) + 3 * (len(text) - 1) for text in texts]

    def generate_sequences(self, prompts):
        from verl import DataProto

        # Every prompt stands there as often as it is to be answered.
        numbers = self.numbers(prompts)
        scores = self.answers.answer(numbers[::GROUP])
        count, length = len(numbers), 4
        lengths = torch.arange(count) % 3 + 2
        mask = (torch.arange(length) < lengths[:, None]).long()
        rewards = torch.zeros(count, length)
        rewards[torch.arange(count), lengths - 1] = torch.tensor(scores).flatten()
        ids = torch.full((count, length), 6)
        tensors = {
            "prompts": torch.full((count, 2), 5),
            "responses": ids,
            "response_mask": mask,
            "input_ids": torch.cat([torch.full((count, 2), 5), ids], dim=1),
            "attention_mask": torch.cat([torch.ones(count, 2, dtype=torch.int64), mask], dim=1),
            "position_ids": torch.arange(length + 2).expand(count, -1).clone(),
            "rollout_log_probs": torch.full((count, length), -1.0),
            "rm_scores": rewards,
        }
        others = {
            "__num_turns__": np.full(count, 2, dtype=np.int32),
            "multi_modal_inputs": np.array([{}] * count, dtype=object),
        }
        return DataProto.from_dict(tensors, others, meta_info={"timing": {}})


class Pool(Workers):
    resource_pool_dict = {}  # noqa: RUF012


class DataProtoWorkers(Workers):
    """The actor as verl's trainer calls it: up to 0.6 directly."""

    def update_actor(self, batch):
        from verl import DataProto

        super().update_actor(batch)
        metrics = {"actor/grad_norm": [1.0]}
        return DataProto.from_single_dict(data={}, meta_info={"metrics": metrics})

    def compute_log_prob(self, batch):
        """Of verl 0.5, which cannot go by those of the rollout."""
        from verl import DataProto

        logprobs = batch.batch["rollout_log_probs"]
        return DataProto.from_dict({"old_log_probs": logprobs, "entropys": -logprobs})


def runner_class():
    """verl's task runner, or ours for 0.8, without workers."""
    from verl.trainer import main_ppo
    from verl.trainer.ppo.ray_trainer import Role

    base = main_ppo.TaskRunner
    if minor_version() >= (0, 8):
        from sec_grpo.integrations.verl.main_ppo import CurriculumTaskRunner as base
    elif hasattr(base, "__ray_metadata__"):
        base = base.__ray_metadata__.modified_class  # up to 0.6.0 already an actor

    class Runner(base):
        def add_actor_rollout_worker(self, config):
            self.role_worker_mapping = {Role.ActorRollout: None}
            return None, None

        def init_resource_pool_mgr(self, config):
            return Pool()

        def train(self, config, before):
            trainers, answers = [], Answers(before)

            def init_workers(trainer):
                trainer.actor_rollout_wg = trainer.checkpoint_manager = DataProtoWorkers()
                trainer.async_rollout_manager = AnsweringManager(answers, trainer.tokenizer)
                trainer.async_rollout_mode = True
                trainers.append(trainer)

            def update_actor(trainer, batch):
                return trainer.actor_rollout_wg.update_actor(batch)

            own = main_ppo.RayPPOTrainer
            with mock.patch.object(own, "init_workers", init_workers):
                if hasattr(own, "_update_actor"):
                    with mock.patch.object(own, "_update_actor", update_actor):
                        self.run(config)
                else:
                    self.run(config)
            (trainer,) = trainers
            sampler = trainer.train_dataloader.sampler
            return {
                "asked": answers.asked,
                "rewards": answers.rewards,
                "state": sampler.curriculum.to_bytes(),
                "values": sampler.curriculum.values(),
                "observations": sampler.curriculum.metrics()["observations"],
                "updates": trainer.actor_rollout_wg.updates,
                "kind": f"{type(trainer).__module__}.{type(trainer).__name__}",
            }

    return Runner


@ray.remote(num_cpus=1)
def train(folder, name, *overrides, before=0):
    config = make_config(folder, name, *BYPASS, "trainer.balance_batch=False", *overrides)
    return runner_class()().train(config, before)


def run(folder, name, *overrides, **options):
    sampler = [
        "data.sampler.class_path=pkg://sec_grpo.integrations.verl.sampler",
        "data.sampler.class_name=CurriculumSampler",
    ]
    configured = sampler if minor_version() < (0, 8) else []
    return ray.get(train.remote(folder, name, *configured, *overrides, **options))


def plain(folder):
    """Six steps over one and a half epochs of four batches."""
    return run(folder, "plain", "trainer.total_training_steps=6")


def resumed(folder):
    """The same from inside the first epoch, and from its end."""
    found = []
    for step in (2, 4):
        name = f"resumed_{step}"
        first = run(folder, name, f"trainer.total_training_steps={step}")
        found.append((first, run(folder, name, "trainer.total_training_steps=6", before=step)))
    return found


if __name__ == "__main__":
    out = Path(sys.argv[1])
    write_inputs(out)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=2 * 10**8)
    for scenario in sys.argv[2:]:
        torch.save(globals()[scenario](out), out / f"{scenario}.pt")
        print(scenario, "done", flush=True)
    ray.shutdown()
