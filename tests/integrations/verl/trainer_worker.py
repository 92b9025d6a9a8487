"""Scenarios of verl 0.9's trainer on a local Ray and TransferQueue; see test_trainer."""

import sys
from pathlib import Path

import ray
import torch
import transfer_queue as tq

sys.path.insert(0, str(Path(__file__).parent))
from common import Answers, Workers, make_config, write_inputs
from verl.trainer.ppo.v1 import get_trainer_cls

from sec_grpo.errors import CheckpointError

BYPASS = "algorithm.rollout_correction.bypass_mode=True"


class AnsweringManager:
    """Puts finished trajectories into the transfer queue, as verl's agent loops do."""

    def __init__(self, answers, lose=None, outputs=1):
        self.answers, self.lose, self.outputs = answers, lose, outputs

    def generate_sequences(self, prompts):
        numbers = [info["number"] for info in prompts["extra_info"]]
        uids, step = list(prompts["uid"]), int(prompts["global_steps"])
        for uid, rewards in zip(uids, self.answers.answer(numbers), strict=True):
            for session, reward in enumerate(rewards):
                if self.lose != (len(self.answers.asked), session):
                    self.put(uid, session, reward, step)
            status = {"status": "finished", "is_prompt": True, "global_steps": step}
            tq.kv_put(key=uid, partition_id="train", tag=status)

    def put(self, uid, session, reward, step):
        for index in range(self.outputs):
            length = 2 + (session + index) % 3
            scores = torch.zeros(length)
            scores[-1] = reward if index == self.outputs - 1 else -9.0
            fields = {
                "uid": uid,
                "prompts": torch.tensor([4, 5]),
                "responses": torch.full((length,), 6),
                "input_ids": torch.full((length + 2,), 6),
                "attention_mask": torch.ones(length + 2, dtype=torch.int64),
                "position_ids": torch.arange(length + 2),
                "response_mask": torch.ones(length, dtype=torch.int64),
                "loss_mask": torch.ones(length, dtype=torch.int64),
                "rollout_log_probs": torch.full((length,), -1.0),
                "rm_scores": scores,
                "num_turns": torch.tensor(2),
                "extra_fields": {"reward_extra_info": {"acc": reward}},
            }
            tag = {
                "status": "success", "prompt_len": 2, "response_len": length,
                "seq_len": length + 2, "global_steps": step, "min_global_steps": step - 1,
                "max_global_steps": step - 1,
            }  # fmt: skip
            tq.kv_put(key=f"{uid}_{session}_{index}", partition_id="train", fields=fields, tag=tag)


def make_trainer(folder, name, *overrides):
    """verl's own trainer, as its task runner makes it, with stand-ins for what needs GPUs."""
    config = make_config(folder, name, BYPASS, "trainer.v1.trainer_mode=sec_grpo", *overrides)
    kind = get_trainer_cls(config.trainer.v1.trainer_mode)

    class Trainer(kind):
        def _setup(self):
            self._init_tokenizer()
            self._init_dataloader()
            self._init_dump_executor()
            workers = Workers()
            self.actor_rollout_wg = self.reward_loop_manager = workers
            self.checkpoint_manager = self.resource_pool_manager = workers
            self._load_checkpoint()

    trainer = Trainer(config)
    trainer.replay_buffer.poll_interval = 0.05
    logged = []
    compute = trainer._compute_metrics

    def keeping(batch, metrics, *args, **kwargs):
        compute(batch, metrics, *args, **kwargs)
        logged.append({k: v for k, v in metrics.items() if k.startswith("curriculum/")})

    trainer._compute_metrics = keeping
    return trainer, logged


def train(folder, name, *overrides, before=0, **manager):
    answers = Answers(before)
    trainer, logged = make_trainer(folder, name, *overrides)
    trainer.init()
    trainer.fit(AnsweringManager(answers, **manager))
    return {
        "asked": answers.asked,
        "rewards": answers.rewards,
        "state": trainer.curriculum.to_bytes(),
        "values": trainer.curriculum.values(),
        "draws": trainer.curriculum.step,
        "logged": logged,
        "updates": trainer.actor_rollout_wg.updates,
        "left": (len(trainer._row_of), len(trainer._queue), len(trainer._dead)),
        "table": trainer.curriculum.arm_table(),
    }


def plain(folder):
    return train(folder, "plain")


def resumed(folder):
    """Two steps, and from their checkpoint the other two."""
    first = train(folder, "resumed", "trainer.total_training_steps=2")
    path = folder / "resumed" / "global_step_2"
    again = [
        f"trainer.resume_from_path={path}",
        "trainer.resume_mode=resume_path",
        "trainer.default_local_dir=" + str(folder / "elsewhere"),
    ]
    last = train(folder, "resumed", before=2)
    return first, last, train(folder, "again", *again, before=2)


def chunks(folder):
    """Batches fetched in parts, and sessions with several outputs of which the last counts."""
    return train(folder, "chunks", "data.gen_batch_size=2", outputs=2)


def lost(folder):
    """A session of the second generation's prompts is missing."""
    return train(folder, "lost", lose=(2, 1))


def filtered(folder):
    """Dynamic sampling: groups of equal rewards are dropped and others drawn."""
    return train(
        folder, "filtered", "algorithm.filter_groups.enable=True",
        "algorithm.filter_groups.metric=acc", "trainer.total_training_steps=2",
    )  # fmt: skip


def refused(folder):
    """Checkpoints and configurations that do not fit."""
    messages = []
    for break_it, overrides in (
        ("delete", []),
        ("damage", []),
        (None, ["data.curriculum.temperature=0.3"]),
    ):
        name = f"refused_{break_it}"
        train(folder, name, "trainer.total_training_steps=1")
        path = folder / name / "global_step_1" / "sec_grpo_curriculum.bin"
        if break_it == "delete":
            path.unlink()
        elif break_it == "damage":
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        trainer, _ = make_trainer(folder, name, *overrides)
        try:
            trainer.init()
        except CheckpointError as error:
            messages.append(str(error))
    for override in ("~data.curriculum", "data.curriculum.category=extra_info.nothing"):
        trainer, _ = make_trainer(folder, "none", override)
        try:
            trainer.init()
        except ValueError as error:
            messages.append(str(error))
    return messages


if __name__ == "__main__":
    out = Path(sys.argv[1])
    write_inputs(out)
    # CPUs are what the queue's actors ask for, not what they use.
    ray.init(num_cpus=8, include_dashboard=False, object_store_memory=2 * 10**8)
    units = "transfer_queue.backend.SimpleStorage.num_data_storage_units=1"
    config = make_config(out, "none", units)
    config.transfer_queue.enable = True
    tq.init(config.transfer_queue)
    for scenario in sys.argv[2:]:
        torch.save(globals()[scenario](out), out / f"{scenario}.pt")
        print(scenario, "done", flush=True)
    tq.close()
    ray.shutdown()
