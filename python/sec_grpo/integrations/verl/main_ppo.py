"""verl 0.8's main_ppo with a curriculum: that version has neither samplers nor plug-ins.

Run as ``python -m sec_grpo.integrations.verl.main_ppo`` with the arguments of
``python -m verl.trainer.main_ppo``, ``data.dataloader_num_workers=0`` and ``data.curriculum``.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import hydra
import ray
from verl.trainer import main_ppo

from sec_grpo.integrations.verl import checkpoint
from sec_grpo.integrations.verl.installed import RAY_TRAINER, check_methods, minor_version, misfit
from sec_grpo.integrations.verl.sampler import CurriculumSampler

if minor_version() != (0, 8):
    raise misfit(
        "this command is for verl 0.8. Set data.sampler before it, and "
        "trainer.v1.trainer_mode=sec_grpo from 0.9 on"
    )
check_methods(main_ppo.RayPPOTrainer, RAY_TRAINER)


class CurriculumRayPPOTrainer(main_ppo.RayPPOTrainer):
    """verl's trainer, whose sampler learns from every batch that the actor is updated with.

    Before verl saves the step, so that a resumed run has its feedback. Steps of critic_warmup, in
    which the actor is not updated, teach the curriculum nothing.
    """

    def _update_actor(self, batch: Any) -> Any:
        result = super()._update_actor(batch)
        self.train_dataloader.sampler.update(batch)
        return result

    def _save_checkpoint(self) -> None:
        checkpoint.save(self, self.train_dataloader.sampler.curriculum)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> Any:
        result = super()._load_checkpoint()
        # At the end of an epoch verl leaves the loader's state, and with it the sampler's, alone.
        checkpoint.load(self, self.train_dataloader.sampler.curriculum)
        return result


class CurriculumTaskRunner(main_ppo.TaskRunner):
    """verl's task runner with `CurriculumSampler` and `CurriculumRayPPOTrainer`."""

    def run(self, config: Any) -> None:
        """Train; the names are exchanged in this process, which is the runner's own."""
        with (
            mock.patch.object(main_ppo, "create_rl_sampler", create_sampler),
            mock.patch.object(main_ppo, "RayPPOTrainer", CurriculumRayPPOTrainer),
        ):
            super().run(config)


def create_sampler(data_config: Any, dataset: Any) -> CurriculumSampler:
    """What stands for verl's create_rl_sampler.

    Raises:
        ValueError: data loader workers would draw ahead.
    """
    if data_config.get("dataloader_num_workers", 8) != 0:
        raise ValueError(
            "data.dataloader_num_workers must be 0: workers would draw prompts before the feedback "
            f"of the last ones, got {data_config.get('dataloader_num_workers', 8)}"
        )
    return CurriculumSampler(dataset, data_config)


@hydra.main(config_path="pkg://verl.trainer.config", config_name="ppo_trainer", version_base=None)
def main(config: Any) -> None:
    """Train with verl's configuration."""
    main_ppo.auto_set_device(config)
    config = main_ppo.migrate_legacy_reward_impl(config)
    main_ppo.run_ppo(config, task_runner_class=ray.remote(num_cpus=1)(CurriculumTaskRunner))


if __name__ == "__main__":
    main()
