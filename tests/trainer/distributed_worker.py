"""Scenarios that test_distributed runs in two processes; each writes what it saw to a file."""

import copy
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from sec_grpo import SEC, GRPOConfig, GRPOTrainer
from sec_grpo.errors import CurriculumDesyncError, RewardError
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

RANK = int(os.environ.get("RANK", 0))
ROWS = [{"prompt": "abcdefgh"[: 2 + i % 4], "difficulty": i % 3, "row": i} for i in range(12)]


def graded(completions, **columns):
    return [sum(c <= "d" for c in text) / (1 + len(text)) for text in completions]


class Recorder(TrainerCallback):
    """Scores completions and keeps them, and the model and gradients of every optimizer step."""

    __name__ = "recorder"

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.generations, self.models, self.gradients = [], [], []

    def __call__(self, prompts, completions, completion_ids, **columns):
        scores = graded(completions)
        if completion_ids[0]:
            ids = [self.tokenizer(p)["input_ids"] for p in prompts]
            self.generations.append((ids, completion_ids, scores))
        return scores

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.models.append(copy.deepcopy(unwrap(model)).state_dict())

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [p.grad.flatten().clone() for p in unwrap(model).parameters()]
        self.gradients.append(torch.cat(grads))


def unwrap(model):
    return getattr(model, "module", model)


def make_model(tokenizer):
    model = tiny_qwen2(tokenizer, hidden_size=16, num_hidden_layers=1, intermediate_size=16)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4)
    return model


def make_trainer(output_dir, reward=None, **options):
    tokenizer = character_tokenizer("abcdefgh")
    recorder = Recorder(tokenizer)
    own = {
        name: options.pop(name)
        for name in ("eval_dataset", "eval_reward_funcs", "peft_config")
        if name in options
    }
    config = {
        "output_dir": str(output_dir),
        "max_steps": 4,
        "per_device_train_batch_size": 6,
        "num_generations": 4,  # 3 groups: the second spans the processes
        "max_completion_length": 5,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "num_iterations": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "log_completions": True,
        "num_completions_to_print": 0,
    }
    trainer = GRPOTrainer(
        make_model(tokenizer),
        recorder if reward is None else reward,
        GRPOConfig(**{**config, **options}),
        train_dataset=ROWS,
        processing_class=tokenizer,
        curriculum=SEC(temperature=0.3),
        callbacks=[recorder],
        **own,
    )
    return trainer, recorder


def result(trainer, recorder):
    return {
        "weights": {n: p.detach().clone() for n, p in trainer.model.named_parameters()},
        "curriculum": trainer.curriculum.to_bytes(),
        "step": trainer.state.global_step,
        "log": trainer.state.log_history,
        "generations": recorder.generations,
        "models": recorder.models,
        "gradients": recorder.gradients,
    }


def train(folder):
    trainer, recorder = make_trainer(folder / "train")
    trainer.train()
    return result(trainer, recorder)


def resume(folder):
    """From step 3, in the middle of a generation batch."""
    trainer, recorder = make_trainer(folder / "resume")
    trainer.train(resume_from_checkpoint=str(folder / "train" / "checkpoint-3"))
    return result(trainer, recorder)


def evaluate(folder):
    seen = []

    def reward(completions, row, **columns):
        seen.extend(row)
        return [float(r) for r in row]

    rows = [{**ROWS[0], "row": i, "difficulty": i % 2} for i in range(5)]
    trainer, _ = make_trainer(folder / "evaluate", per_device_eval_batch_size=2)
    trainer._eval_rewards = type(trainer._rewards)(reward, None)
    return {"metrics": trainer.evaluate(rows), "seen": seen}


def failing(folder):
    """A reward function fails in one process only, in the second generation."""
    calls = []

    def reward(completions, **columns):
        calls.append(0)
        if RANK == 1 and len(calls) == 3:
            raise KeyError("broken")
        return graded(completions)

    trainer, _ = make_trainer(folder / "failing", reward, save_strategy="no")
    try:
        trainer.train()
    except RewardError as error:
        return {"error": str(error), "step": trainer.state.global_step}
    return {"error": None}


def failing_evaluation(folder):
    def reward(completions, **columns):
        if RANK == 0 and any(completions):
            raise KeyError("broken")
        return graded(completions)

    trainer, _ = make_trainer(
        folder / "failing_evaluation",
        save_strategy="no",
        eval_dataset=ROWS[:3],
        eval_reward_funcs=reward,
        eval_strategy="steps",
        eval_steps=1,
    )
    try:
        trainer.train()
    except RewardError as error:
        return {"error": str(error), "step": trainer.state.global_step}
    return {"error": None}


def signalled(folder):
    """One process alone is told to stop, in the second generation."""
    calls = []

    def reward(completions, **columns):
        calls.append(0)
        if RANK == 1 and len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return graded(completions)

    trainer, _ = make_trainer(folder / "signalled", reward, save_strategy="no", max_steps=8)
    trainer.train()
    return {"stopped": trainer.stopped_by_signal, "step": trainer.state.global_step}


def ppo(folder):
    """Advantages are normalised over the tokens of both processes."""
    options = {"advantage_estimator": "ppo", "value_learning_rate": 0.1, "gamma": 0.9}
    trainer, recorder = make_trainer(folder / "ppo", save_strategy="no", **options)
    tokens = []
    add_values = trainer._update.add_values

    def noting(model, rollouts, rewards):
        add_values(model, rollouts, rewards)
        tokens.append(torch.cat(rollouts.token_advantages))

    trainer._update.add_values = noting
    trainer.train()
    return {**result(trainer, recorder), "tokens": tokens}


def entropy_bonus(folder):
    options = {"entropy_coef": 0.3, "num_iterations": 1, "max_steps": 2}
    trainer, recorder = make_trainer(folder / "bonus", save_strategy="no", **options)
    trainer.train()
    return result(trainer, recorder)


def unequal_feedback(folder):
    """Q is made to differ; every process must notice."""
    trainer, _ = make_trainer(folder / "unequal", save_strategy="no")
    values = trainer.curriculum.values
    trainer.curriculum.values = lambda: values() + RANK
    try:
        trainer.train()
    except CurriculumDesyncError as error:
        return {"error": str(error)}
    return {"error": None}


class DeadScorer(Recorder):
    """Rows of difficulty 0 have equal scores; those of the others differ, whatever is sampled."""

    __name__ = "dead_scorer"

    def __init__(self, tokenizer, fail_at=None):
        super().__init__(tokenizer)
        self.fail_at = fail_at

    def __call__(self, prompts, completions, completion_ids, difficulty, row, **columns):
        if not completion_ids[0]:
            return [0.0] * len(prompts)
        if RANK == 1 and len(self.generations) == self.fail_at:
            raise KeyError("broken")
        noise = [sum((k + 1) * token for k, token in enumerate(ids)) for ids in completion_ids]
        scores = [n + 0.5 if level else 0.5 for n, level in zip(noise, difficulty, strict=True)]
        self.generations.append((list(row), completion_ids, scores))
        return scores


def dynamic_trainer(folder, name, fail_at=None, **options):
    scorer = DeadScorer(character_tokenizer("abcdefgh"), fail_at)
    given = {"max_steps": 3, "num_iterations": 1, "dynamic_sampling_refills": 4, **options}
    trainer, _ = make_trainer(folder / name, scorer, save_strategy="no", **given)
    batches = []
    collect = trainer._collector.collect

    def noting(*args):
        batches.append(collect(*args))
        return batches[-1]

    trainer._collector.collect = noting
    return trainer, scorer, batches


def dynamic_result(trainer, scorer, batches):
    return {
        **result(trainer, scorer),
        "batches": [(b.prompt_ids, b.completion_ids, b.advantages.tolist()) for b in batches],
        "observations": trainer.curriculum.metrics()["observations"],
        "drawn": trainer.curriculum.metrics()["prompts_drawn"],
    }


def dynamic_sampling(folder):
    """Groups of four over two processes: every group of a refill spans both."""
    run = dynamic_trainer(folder, "dynamic")
    run[0].train()
    return dynamic_result(*run)


def dynamic_sampling_odd(folder):
    """Groups of three: prompts are drawn in pairs, so that each process has whole rows."""
    run = dynamic_trainer(folder, "odd", num_generations=3, per_device_train_batch_size=6)
    run[0].train()
    return dynamic_result(*run)


def dynamic_sampling_failing(folder):
    """The second draw of a generation fails in one process."""
    trainer, scorer, _ = dynamic_trainer(folder, "dynamic_failing", fail_at=1)
    before = trainer.curriculum.to_bytes()
    try:
        trainer.train()
    except RewardError as error:
        unchanged = trainer.curriculum.to_bytes() == before
        return {"error": str(error), "unchanged": unchanged, "calls": len(scorer.generations)}
    return {"error": None}


def one_process(folder):
    """Continue at a generation's end what two processes began."""
    trainer, recorder = make_trainer(folder / "one", per_device_train_batch_size=12)
    trainer.train(resume_from_checkpoint=str(folder / "train" / "checkpoint-2"))
    return result(trainer, recorder)


def one_process_midway(folder):
    trainer, _ = make_trainer(folder / "midway", per_device_train_batch_size=12)
    try:
        trainer.train(resume_from_checkpoint=str(folder / "train" / "checkpoint-3"))
    except ValueError as error:
        return {"error": str(error)}
    return {"error": None}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for name in sys.argv[2:]:
        torch.save(globals()[name](out), out / f"{name}_{RANK}.pt")
        print(name, "done", flush=True)
