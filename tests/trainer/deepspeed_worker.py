"""One run of test_deepspeed in two processes: with DDP (stage 0) or with DeepSpeed ZeRO."""

import importlib.util
import sys
from pathlib import Path

import torch

spec = importlib.util.spec_from_file_location(
    "distributed_worker", Path(__file__).with_name("distributed_worker.py")
)
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)


class Recorder(base.Recorder):
    """Without models and gradients, which are shards."""

    def on_step_begin(self, args, state, control, **kwargs):
        pass

    on_pre_optimizer_step = on_step_begin


base.Recorder = Recorder


def config(stage):
    zero = {"stage": stage}
    if stage == 3:
        # Parameters this small would stay whole on every process.
        zero["stage3_param_persistence_threshold"] = 0
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    sizes = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": "auto",
        **dict.fromkeys(sizes, "auto"),
    }


def main(folder, name, stage, gather, resume):
    trainer, recorder = base.make_trainer(
        folder / name,
        deepspeed=config(stage) if stage else None,
        ds3_gather_for_generation=gather,
        gradient_accumulation_steps=2,
        max_tokens_per_micro_batch=20,
        optim="adamw_torch",
    )
    trainer.train(resume_from_checkpoint=resume)
    shapes = [tuple(p.shape) for p in trainer.model.parameters()]
    trainer.save_model(str(folder / f"{name}_saved"))
    torch.save(
        {
            "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            "generations": recorder.generations,
            "curriculum": trainer.curriculum.to_bytes(),
            "shapes": shapes,
        },
        folder / f"{name}_{base.RANK}.pt",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, run, zero_stage, whole = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    main(out, run, zero_stage, whole == "gather", sys.argv[5] if len(sys.argv) > 5 else None)
