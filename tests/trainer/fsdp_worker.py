"""Scenarios that test_fsdp runs in two processes; each writes what it saw to a file.

accelerate has FSDP on GPUs only: for the CPU it is told that this is one of those. What it then
calls, torch's fully_shard with gloo, is the same.
"""

import functools
import importlib.util
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from sec_grpo.errors import RewardError

spec = importlib.util.spec_from_file_location(
    "distributed_worker", Path(__file__).with_name("distributed_worker.py")
)
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)

_init = AcceleratorState.__init__


@functools.wraps(_init)
def _with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def reset():
    """Let the next trainer choose how it runs: accelerate keeps that for the whole program."""
    AcceleratorState._reset_state()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_USE_FSDP", "FSDP_")):
            del os.environ[name]


FSDP = {
    "fsdp": "full_shard",  # transformers 5.20 takes True as well
    "fsdp_config": {
        "version": 2,
        "transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"],
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
    },
}
SHARDED = {**FSDP, "fsdp_config": {**FSDP["fsdp_config"], "state_dict_type": "SHARDED_STATE_DICT"}}


def whole(model):
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


class Recorder(base.Recorder):
    """Without the models, whose shards say nothing; with whole gradients."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        pass

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        grads = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
        self.gradients.append(torch.cat([g.flatten() for g in grads]).clone())


base.Recorder = Recorder


def run(folder, resume=None, **options):
    given = {"learning_rate": 1e-2, "max_tokens_per_micro_batch": 20, **options}
    torch.manual_seed(0)  # adapters are drawn
    trainer, recorder = base.make_trainer(folder, **given)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, {
        "weights": whole(trainer.model),
        "curriculum": trainer.curriculum.to_bytes(),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "generations": recorder.generations,
        "gradients": recorder.gradients,
        "kinds": sorted({type(m).__name__ for m in trainer.model.modules()}),
    }


def pair(name, **options):
    """The same run with DDP and with FSDP2."""

    def scenario(folder):
        _, ddp = run(folder / f"{name}_ddp", save_strategy="no", **options)
        reset()
        _, fsdp = run(folder / f"{name}_fsdp", **{"save_strategy": "no", **options, **FSDP})
        return {"ddp": ddp, "fsdp": fsdp}

    return scenario


def lora(folder):
    """Adapters on top of frozen, sharded weights; the reference is the model without them."""
    from peft import LoraConfig

    config = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="gaussian"
    )
    return pair("lora", peft_config=config, beta=0.1)(folder)


def adapter(folder):
    """An adapter that was trained before, which the reference has as well."""
    from peft import LoraConfig, get_peft_model

    plain = base.make_model

    def adapted(tokenizer):
        config = LoraConfig(
            r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
        )
        return get_peft_model(plain(tokenizer), config)

    base.make_model = adapted
    try:
        return pair("adapter", beta=0.1)(folder)
    finally:
        base.make_model = plain


def resume(folder):
    """From step 3, in the middle of a generation batch, with both kinds of checkpoint."""
    out = {}
    for kind, options in (("full", FSDP), ("sharded", SHARDED)):
        straight = run(folder / f"resume_{kind}", **options)[1]
        checkpoint = str(folder / f"resume_{kind}" / "checkpoint-3")
        resumed = run(folder / f"again_{kind}", checkpoint, save_strategy="no", **options)[1]
        out[kind] = {"straight": straight, "resumed": resumed}
    return out


def export(folder):
    trainer, out = run(folder / "export", save_strategy="no", **FSDP)
    trainer.save_model(str(folder / "exported"))
    rows = [{**base.ROWS[0], "row": i, "difficulty": i % 2} for i in range(5)]
    seen = []

    def reward(completions, row, **columns):
        seen.extend(row)
        return [float(r) for r in row]

    trainer._eval_rewards = type(trainer._rewards)(reward, None)
    return {**out, "metrics": trainer.evaluate(rows), "seen": seen}


def failing(folder):
    """A reward function fails in one process, in the second generation; then one of evaluation."""
    calls = []

    def reward(completions, **columns):
        calls.append(0)
        if base.RANK == 1 and len(calls) == 3:
            raise KeyError("broken")
        return base.graded(completions)

    trainer, _ = base.make_trainer(folder / "failing", reward, save_strategy="no", **FSDP)
    errors = []
    try:
        trainer.train()
    except RewardError as error:
        errors.append(str(error))
    calls[:] = [0, 0]
    try:
        trainer.evaluate(base.ROWS[:5])
    except RewardError as error:
        errors.append(str(error))
    return {"errors": errors, "step": trainer.state.global_step}


def refused(folder):
    found = []
    for options in (
        {"advantage_estimator": "ppo"},
        {"beta": 0.1, "sync_ref_model": True},
    ):
        try:
            base.make_trainer(folder / "refused", **{**FSDP, **options})
        except ValueError as error:
            found.append(str(error))
    try:
        trainer, _ = base.make_trainer(folder / "refused", **FSDP)
        trainer.evaluate(base.ROWS[:2])
    except ValueError as error:
        found.append(str(error))
    AcceleratorState.__init__ = _init
    reset()
    try:
        base.make_trainer(folder / "refused", **FSDP)
    except ValueError as error:
        found.append(str(error))
    return {"errors": found}


SCENARIOS = {
    "plain": pair("plain"),
    "reference": pair("reference", beta=0.2, fused_lm_head=False),
    "packed": pair("packed", padding_free=True, loss_type="grpo"),
    "layer_by_layer": pair("layer", ds3_gather_for_generation=False, max_steps=2),
    "lora": lora,
    "adapter": adapter,
    "resume": resume,
    "export": export,
    "failing": failing,
    "refused": refused,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    AcceleratorState.__init__ = _with_fsdp
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        outcome = SCENARIOS[name](folder)
        torch.save(outcome, folder / f"{name}_{base.RANK}.pt")
        reset()
