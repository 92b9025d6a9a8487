"""Both trainers log the same names, and for the same batch the same numbers."""

from __future__ import annotations

import pytest

pytest.importorskip("trl", reason="needs TRL: pip install 'sec-grpo[trl]'")

import torch
import transformers
import trl
from datasets import Dataset
from packaging.version import Version
from peft import LoraConfig

import sec_grpo
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

torch.set_num_threads(1)

# Two completions of each of two prompts, with and without the end token (1), of unequal length.
BATCHES = [
    [[3, 4, 1], [5, 5, 5, 3, 3, 4], [4, 1], [3, 3, 3, 1]],
    [[5, 1], [3, 1], [4, 4, 4, 4, 4, 4], [3, 5, 1]],
]
# Only ours: the ratio's range, tokens of completions alone, where the time goes, kinds of groups.
OURS_ALONE = ("ratio/", "time/", "groups/", "curriculum/", "num_completion_tokens")
# The bound `delta`, which TRL does not report; and TRL leaves out num_tokens at a step that
# generates nothing.
OURS_AT_TIMES = {"clip_ratio/cap_mean", "num_tokens"}
RENAMED = {"vespo/phi_seq_mean": "vespo/phi_mean"}  # TRL's over sequences, ours over tokens
# Those that depend on the batch alone, or on it and the first step's weights.
EQUAL = [
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "rewards/length_reward/mean",
    "rewards/length_reward/std",
    "rewards/letter_reward/mean",
    "rewards/letter_reward/std",
    *(f"completions/{kind}_length" for kind in ("mean", "min", "max")),
    *(f"completions/{kind}_terminated_length" for kind in ("mean", "min", "max")),
    "completions/clipped_ratio",
    "num_tokens",
]
CLIPPING = [f"clip_ratio/{kind}" for kind in ("low_mean", "low_min", "high_mean", "high_max")]
if Version(trl.__version__) < Version("1.12"):
    # Older ones take the least and the largest over processes, not over sequences.
    CLIPPING = [name for name in CLIPPING if name.endswith("mean")]
# transformers 4 rounds the loss to four decimals.
LOSS_ERROR = 1.01e-4 if Version(transformers.__version__) < Version("5") else 1e-5


def length_reward(completions, log_metric, **columns):
    log_metric("mine/longest", max(map(len, completions)))
    return [0.1 * len(text) for text in completions]


def letter_reward(completions, **columns):
    return [float("a" in text) if "c" not in text else None for text in completions]


def logged(kind, config, folder, monkeypatch, **options):
    """The log of a short run whose completions are BATCHES."""
    tokenizer = character_tokenizer("abc>")
    # A wide init and a large rate, so that the second pass over a batch is clipped.
    model = tiny_qwen2(tokenizer, seed=1, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "learning_rate": 5e-2,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    trainer = kind(
        model=model,
        reward_funcs=[length_reward, letter_reward],
        args=config(**{**settings, **options}),
        train_dataset=Dataset.from_list([{"prompt": "ab>"}] * 4),
        processing_class=tokenizer,
        # An adapter, because TRL would load the reference from the Hub.
        peft_config=LoraConfig(task_type="CAUSAL_LM") if "beta" in options else None,
        **({"category": None} if kind is sec_grpo.GRPOTrainer else {}),
    )
    batches = iter(BATCHES)
    if kind is sec_grpo.GRPOTrainer:
        monkeypatch.setattr(
            "sec_grpo.trainer.rollout.sample_completions", lambda *_, **__: next(batches)
        )
    else:
        trainer._generate_single_turn = lambda *_, **__: (next(batches), None)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


LOSSES = {
    "dapo": {},
    "grpo, two passes": {"loss_type": "grpo", "num_iterations": 2},
    "with a reference": {"beta": 0.1},
    "sequence level": {"num_iterations": 2, "importance_sampling_level": "sequence"},
    "cispo": {"loss_type": "cispo", "num_iterations": 2, "epsilon_high": 1.001},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "entropy bonus": {"entropy_coef": 0.01},
    "bnpo": {"loss_type": "bnpo", "scale_rewards": "batch"},
}


@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES.keys())
def test_same_batch_same_metrics(options, tmp_path, monkeypatch) -> None:
    if "entropy_coef" in options and "entropy_coef" not in trl.GRPOConfig.__dataclass_fields__:
        pytest.skip("this TRL has no entropy bonus")
    ours = logged(
        sec_grpo.GRPOTrainer, sec_grpo.GRPOConfig, tmp_path / "ours", monkeypatch, **options
    )
    theirs = logged(trl.GRPOTrainer, trl.GRPOConfig, tmp_path / "trl", monkeypatch, **options)
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        expected = {RENAMED.get(name, name) for name in other}
        extra = {name for name in mine if not name.startswith(OURS_ALONE)} - expected
        assert extra <= OURS_AT_TIMES
        assert not expected - mine.keys()
        assert step == 1 or set(EQUAL) <= other.keys()
        for name in [name for name in (*EQUAL, "mine/longest") if name in other]:
            assert mine[name] == pytest.approx(other[name], abs=1e-5), (step, name)
        if step == 0:
            assert mine["entropy"] == pytest.approx(other["entropy"], rel=1e-4)
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=LOSS_ERROR)
            if "policy_loss" in other:
                assert mine["policy_loss"] == pytest.approx(other["policy_loss"], abs=1e-5)
    if options.get("num_iterations") == 2 and "clip_ratio/low_mean" in theirs[1]:
        sequences = options.get("importance_sampling_level") == "sequence"
        for name in CLIPPING:
            if sequences and name.endswith("mean"):
                continue
            assert ours[1][name] == pytest.approx(theirs[1][name], abs=1e-6), name
        assert any(theirs[1][name] for name in CLIPPING), "the second pass should be clipped"
    if options.get("loss_type") == "cispo":
        assert ours[1]["cispo_clip_ratio"] == pytest.approx(theirs[1]["cispo_clip_ratio"])
        assert ours[1]["cispo_clip_ratio"] > 0
