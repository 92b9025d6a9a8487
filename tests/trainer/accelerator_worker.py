"""Runs that test_accelerator compares: `accelerator_worker.py FOLDER cpu|pretend`.

Each writes its log, its completions and who read the device to FOLDER/cpu.json or pretend.json.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import peft
import torch

from sec_grpo import SEC, GRPOConfig, GRPOTrainer
from sec_grpo.tiny import character_tokenizer


def load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


base = load("distributed_worker")
LORA = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
CONFIG = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 5,
    "num_iterations": 2,
    "learning_rate": 0.1,
    "optim": "sgd",  # Adam makes large steps of rounding errors where gradients are 0
    "logging_steps": 1,
    "save_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
SCENARIOS = {
    "default": {"num_iterations": 1},
    "reused": {"loss_type": "vespo"},
    "sequence": {"importance_sampling_level": "sequence", "delta": 2.0, "loss_type": "bnpo"},
    "reference": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2},
    "entropy": {"entropy_coef": 0.1, "use_adaptive_entropy": True},
    "masks": {
        "top_entropy_quantile": 0.5,
        "off_policy_mask_threshold": 0.1,
        "mask_truncated_completions": True,
    },
    "value_head": {"advantage_estimator": "ppo", "gamma": 0.9},
    "role": {"advantage_estimator": "role", "baseline_column": "difficulty"},
    "refills": {"dynamic_sampling_refills": 2},
    "whole_logits": {"fused_lm_head": False},
    "padded": {"padding_free": False, "max_tokens_per_micro_batch": 40},
    "checkpointed": {"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
    "lora": {"peft_config": LORA, "beta": 0.1},
    "sampling": {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1},
    "evaluated": {
        "eval_dataset": base.ROWS[:6],
        "eval_strategy": "steps",
        "eval_steps": 2,
        "log_completions": True,
    },
}


def lasting(trainer):
    """The log without times, which are never the same."""
    times = ("time", "runtime", "per_second")
    return [
        {key: value for key, value in entry.items() if not any(word in key for word in times)}
        for entry in trainer.state.log_history
    ]


def make_trainer(output_dir, device, options, reward):
    tokenizer = character_tokenizer("abcdefgh")
    model = base.make_model(tokenizer).to(device)
    model.tie_weights()  # which a move to a device from outside of torch unties
    model.set_attn_implementation("eager")  # the CPU has kernels of its own for the others
    options = dict(options)
    own = {name: options.pop(name) for name in ("eval_dataset", "peft_config") if name in options}
    config = {**CONFIG, "output_dir": str(output_dir), "use_cpu": device == "cpu", **options}
    trainer = GRPOTrainer(
        model,
        reward,
        GRPOConfig(**config),
        train_dataset=base.ROWS,
        processing_class=tokenizer,
        curriculum=SEC(temperature=0.3),
        **own,
    )
    assert trainer.args.device.type == device
    return trainer


def run(output_dir, device, options, reads):
    seen = []

    def reward(completions, **columns):
        seen.append(completions)
        return base.graded(completions)

    trainer = make_trainer(output_dir, device, options, reward)
    reads.clear()
    trainer.train()
    read = {" ".join(key): count for key, count in sorted(reads.items())}
    resumed = make_trainer(output_dir, device, options, reward)
    resumed.train(resume_from_checkpoint=str(output_dir / "checkpoint-2"))
    return {
        "log": lasting(trainer),
        "resumed": lasting(resumed),
        "completions": seen,
        "reads": read,
    }


def main():
    folder, device = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    reads = Counter()
    if device == "pretend":
        reads = load("accelerator").install(folder / "build")
    found = {
        name: run(folder / device / name, device, options, reads)
        for name, options in SCENARIOS.items()
    }
    (folder / f"{device}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
