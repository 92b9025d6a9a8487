"""A resumed run repeats the uninterrupted one bit for bit."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from sec_grpo import SEC
from sec_grpo.errors import CheckpointError
from sec_grpo.report import read_run

TIMES = ("time", "step_time")


def without_times(events):
    return [
        {k: v for k, v in event.items() if k not in TIMES and not k.startswith("time/")}
        for event in events
    ]


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def dropout_model(tokenizer):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            attention_dropout=0.2,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def random_reward(completions, **columns):
    """Depends on Python's generator, whose state the checkpoint holds as well."""
    return [len(text) + random.random() for text in completions]


CASES = {
    "plain": {},
    "steps_per_generation": {"steps_per_generation": 2},
    "num_iterations": {"num_iterations": 2, "gradient_accumulation_steps": 2},
    "many_updates": {"num_iterations": 2, "steps_per_generation": 2, "beta": 0.1},
    "dropout": {"model": dropout_model, "steps_per_generation": 2},
    "schedule": {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "optim": "adamw_torch",
        "weight_decay": 0.1,
        "max_grad_norm": 0.1,
    },
    "random_reward": {"reward_funcs": random_reward},
    "epochs": {"train_rows": 4},
    "sampled": {"top_k": 5, "top_p": 0.9, "rollout_batch_size": 3},
    "logging_steps": {"logging_steps": 4},
}


@pytest.fixture
def make_run(make_trainer, tokenizer, tmp_path):
    def make(case, folder, **changes):
        options = {**CASES[case], **changes}
        if callable(options.get("model")):
            options["model"] = options["model"](tokenizer)
        if rows := options.pop("train_rows", 0):
            letters = "abcdefgh"
            options["train_dataset"] = [
                {"prompt": letters[: i + 2], "difficulty": i % 2} for i in range(rows)
            ]
        options.setdefault("save_strategy", "steps")
        options.setdefault("save_steps", 3)
        options.setdefault("max_steps", 6)
        return make_trainer(
            output_dir=str(tmp_path / folder),
            learning_rate=1e-2,
            curriculum=SEC(alpha=0.5, temperature=0.3),
            **options,
        )

    return make


@pytest.mark.parametrize("case", CASES)
def test_resume_repeats_the_straight_run(make_run, read_events, tmp_path, case):
    random.seed(0)
    straight = make_run(case, "straight")
    straight.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    random.seed(0)
    first = make_run(case, "parts", callbacks=[Stop()])
    first.train()
    assert first.state.global_step == 3
    random.seed(99)
    torch.manual_seed(99)
    second = make_run(case, "parts")
    second.train(resume_from_checkpoint=True)

    assert_same_weights(weights(second), weights(straight))
    expected = without_times(read_events(tmp_path / "straight", "step"))
    got = without_times(read_events(tmp_path / "parts", "step"))
    assert got == expected
    assert second.state.epoch == straight.state.epoch
    assert second.curriculum.values().tolist() == straight.curriculum.values().tolist()
    assert second.curriculum.draw(50).tolist() == straight.curriculum.draw(50).tolist()
    if case == "many_updates":
        assert max(e["kl"] for e in got) > 0


def test_the_same_trainer_resumes_after_a_failed_step(make_run, read_events, tmp_path):
    """As in a notebook: what the failed step had counted is counted once."""

    class Fail(TrainerCallback):
        failed = False

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 4 and not self.failed:
                self.failed = True
                raise RuntimeError("interrupted")

    straight = make_run("logging_steps", "straight", logging_steps=6)
    straight.train()
    trainer = make_run("logging_steps", "failed", logging_steps=6, callbacks=[Fail()])
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert_same_weights(weights(trainer), weights(straight))
    expected = without_times(read_events(tmp_path / "straight", "step"))
    assert without_times(read_events(tmp_path / "failed", "step")) == expected


def test_runs_with_other_seeds_differ(make_run):
    """The comparisons above could fail."""
    one, other = make_run("plain", "one"), make_run("plain", "other", seed=4)
    one.train()
    other.train()
    name = "model.norm.weight"
    assert not torch.equal(weights(one)[name], weights(other)[name])


def test_report_on_a_resumed_run(make_run, tmp_path):
    straight = make_run("plain", "straight")
    straight.train()
    first = make_run("plain", "parts", save_steps=2)
    first.train()
    # Steps 5 and 6 of the first part are rolled back.
    second = make_run("plain", "parts")
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    whole, log = read_run(tmp_path / "straight"), read_run(tmp_path / "parts")
    assert log.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert log.scalar("loss").tolist() == whole.scalar("loss").tolist()
    assert log.draws.tolist() == whole.draws.tolist()
    assert log.draws[-1].sum() == 12
    assert (log.time[1:] > log.time[:-1]).all()


def test_renamed_checkpoint_resumes(make_run, tmp_path):
    first = make_run("plain", "run")
    first.train()
    (tmp_path / "run" / "checkpoint-3").rename(tmp_path / "best")
    second = make_run("plain", "other")
    second.train(resume_from_checkpoint=str(tmp_path / "best"))
    assert_same_weights(weights(first), weights(second))


def test_lora_resumes(make_run, tmp_path, read_events):
    peft = pytest.importorskip("peft")

    def lora():
        return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")

    torch.manual_seed(0)
    straight = make_run("plain", "straight", peft_config=lora(), beta=0.1)
    straight.train()
    torch.manual_seed(1)
    second = make_run("plain", "parts", peft_config=lora(), beta=0.1)
    second.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    assert_same_weights(weights(straight), weights(second))
    expected = without_times(read_events(tmp_path / "straight", "step"))[3:]
    assert without_times(read_events(tmp_path / "parts", "step")) == expected


@pytest.mark.parametrize("length", [{}, {"max_steps": -1, "num_train_epochs": 0.5}])
def test_finished_run_takes_no_step(make_run, tmp_path, length):
    first = make_run("plain", "run", **length)
    first.train()
    again = make_run("plain", "run", **length)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert_same_weights(weights(first), weights(again))


def test_what_evaluation_draws_leaves_dropout_alone(make_run):
    def reward(completions, **columns):
        return torch.rand(len(completions)).tolist()

    plain = make_run("dropout", "plain")
    plain.train()
    rows = [{"prompt": "ab", "difficulty": 0}] * 3
    options = {"eval_strategy": "steps", "eval_steps": 1}
    evaluated = make_run(
        "dropout", "evaluated", eval_dataset=rows, eval_reward_funcs=reward, **options
    )
    evaluated.train()
    assert_same_weights(weights(plain), weights(evaluated))


def test_save_only_model_cannot_be_resumed(make_run, tmp_path):
    make_run("plain", "run", save_only_model=True).train()
    with pytest.raises(CheckpointError, match="save_only_model=True"):
        make_run("plain", "run").train(resume_from_checkpoint=True)
