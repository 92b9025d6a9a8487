"""Scenarios that test_distributed runs in two processes; each writes what it saw to a file."""

import importlib.util
import os
import sys
from pathlib import Path

import torch
import transformers
import trl

from sec_grpo import SEC, Curriculum
from sec_grpo.errors import CurriculumDesyncError
from sec_grpo.integrations.trl import use_fused_loss

RANK = int(os.environ.get("RANK", 0))
SAVING = {"save_strategy": "steps", "save_steps": 1, "num_iterations": 2}


def load_conftest():
    path = Path(__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("trl_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


common = load_conftest()


def make(folder, **options):
    """Three groups of four: the second spans both processes."""
    options.setdefault("curriculum", SEC(temperature=0.2))
    settings = {"per_device_train_batch_size": 6, "num_generations": 4, **options}
    if settings["curriculum"] is None:
        del settings["curriculum"]
    return common.make_trainer(folder, **settings)


def result(trainer):
    found = {
        "weights": common.flat_weights(trainer),
        "calls": trainer.reward_funcs[0].calls,
        "log": trainer.state.log_history,
    }
    if hasattr(trainer, "curriculum"):
        found["curriculum"] = trainer.curriculum.to_bytes()
        found["values"] = trainer.curriculum.values()
    return found


def train(folder):
    trainer = make(folder / "train")
    trainer.train()
    return result(trainer)


def saving(folder):
    trainer = make(folder / "saving", **SAVING, max_steps=4)
    trainer.train()
    return result(trainer)


def resume(folder):
    """From step 3, inside a generation batch."""
    trainer = make(folder / "resume", **SAVING, max_steps=4)
    try:
        trainer.train(resume_from_checkpoint=str(folder / "saving" / "checkpoint-3"))
    except RuntimeError as error:
        # transformers 4 cannot load an optimizer onto the device "cpu:0" of such a process.
        if "tagged with cpu:0" not in str(error) or transformers.__version__ >= "5":
            raise
        return {"skipped": str(error)}
    return result(trainer)


def one_process(folder):
    """What two processes began, from the end of a generation batch and from inside one."""
    found = []
    for step in (2, 3):
        # Not a batch of 12: transformers 4 goes on with the batch size of the checkpoint.
        options = {**SAVING, "max_steps": 4, "gradient_accumulation_steps": 2}
        trainer = make(folder / f"one_{step}", **options)
        trainer.train(resume_from_checkpoint=str(folder / "saving" / f"checkpoint-{step}"))
        found.append(result(trainer))
    return found


def own(folder):
    options = {"num_iterations": 2, "learning_rate": 1e-3, "beta": 0.04, "temperature": 0.8}
    model = str(folder / "model")
    trainer = make(folder / "own", kind=trl.GRPOTrainer, curriculum=None, model=model, **options)
    trainer.train()
    return result(trainer)


def fused(folder):
    with use_fused_loss():
        return own(folder)


def unequal_copies(folder):
    rows = common.ROWS
    curriculum = Curriculum(range(len(rows)), SEC(), seed=RANK)
    try:
        make(folder / "unequal", curriculum=curriculum)
    except CurriculumDesyncError as error:
        return {"error": str(error)}
    return {"error": None}


def local_feedback(folder):
    """What happens to a subclass that feeds its own process's advantages back."""
    trainer = make(folder / "local")
    gather = trainer.accelerator.gather

    def not_gathering(tensor):
        gathered = gather(tensor)
        if tensor.shape == (6,) and tensor.is_floating_point():
            return torch.cat([tensor, tensor])
        return gathered

    learn = trainer._learn

    def learning(indices, advantages):
        trainer.accelerator.gather = not_gathering
        learn(indices, not_gathering(advantages[6 * RANK : 6 * RANK + 6]))

    trainer._learn = learning
    try:
        trainer.train()
    except CurriculumDesyncError as error:
        return {"error": str(error), "step": trainer.state.global_step}
    return {"error": None}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for name in sys.argv[2:]:
        torch.save(globals()[name](out), out / f"{name}_{RANK}.pt")
        print(name, "done", flush=True)
    if torch.distributed.is_initialized():
        # A process that leaves first can abort the other, and torch's threads, of a training that
        # failed above all, now and then abort the interpreter's end: all results are on disk.
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)
