"""What the adapter adds to TRL's checkpoints: the curriculum, and completions still to be used."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sec_grpo.curriculum import Curriculum
from sec_grpo.errors import CheckpointError
from sec_grpo.report.atomic import write_atomically

STATE_FILE = "sec_grpo_curriculum.bin"
"""name of the curriculum's state in a checkpoint"""


def folder_of(trainer: Any, trial: Any) -> Path:
    """Where the trainer is about to write its checkpoint."""
    run = Path(trainer._get_output_dir(trial=trial))
    return run / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"


def save(trainer: Any, trial: Any, curriculum: Curriculum) -> None:
    """Write the curriculum (one process) and this process's completions still to be used."""
    folder = folder_of(trainer, trial)
    if trainer.args.should_save:
        write_atomically(folder / STATE_FILE, curriculum.to_bytes())
    path = _pending_file(folder, trainer.accelerator.process_index)
    pending = None if trainer.args.save_only_model else _pending(trainer, curriculum)
    if pending is not None:
        stream = io.BytesIO()
        torch.save(pending, stream)
        write_atomically(path, stream.getvalue())
    else:
        # An earlier run may have left one in a folder of this name.
        path.unlink(missing_ok=True)


def load_curriculum(trainer: Any, checkpoint: str, curriculum: Curriculum) -> None:
    """Continue from the checkpoint's curriculum, which the first process reads for all.

    Raises:
        CheckpointError: on every process, and the curriculum is unchanged: the checkpoint has
            none, or one that does not fit.
    """
    from accelerate.utils import broadcast_object_list

    path = Path(checkpoint) / STATE_FILE
    content: list[bytes | str | None] = [None]
    if trainer.accelerator.process_index == 0:
        try:
            content = [path.read_bytes()]
        except FileNotFoundError:
            pass
        except OSError as error:
            content = [str(error)]
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(content, from_process=0)
    state = content[0]
    if state is None:
        raise CheckpointError(
            f"{checkpoint} holds no {STATE_FILE}: it was saved without a curriculum. Resume from a "
            "checkpoint of this trainer, or start a new run with the folder as its model"
        )
    if isinstance(state, str):
        raise CheckpointError(f"{path} cannot be read: {state}")
    try:
        curriculum.load_bytes(state)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit: {error}") from error


def load_pending(trainer: Any, checkpoint: str, curriculum: Curriculum) -> bool:
    """Put the completions still to be used into the trainer, if every process has its own.

    Returns whether it did. Without them TRL samples new completions, for new draws, at once.

    Raises:
        CheckpointError: on every process, a file is there but not readable.
    """
    from accelerate.utils import gather_object, send_to_device

    accelerator = trainer.accelerator
    path = _pending_file(Path(checkpoint), accelerator.process_index)
    saved: tuple[Any, int, Any] | None = None
    failure = ""
    if path.is_file():
        try:
            # By way of the CPU: torch.load takes no map_location such as cpu:0.
            state = torch.load(path, map_location="cpu", weights_only=True)
            saved = state["layout"], state["step"], state["inputs"]
        # Damage may raise anything, and the other processes wait to hear of it.
        except Exception as error:
            failure = f"{path} cannot be read: {error!r}. Remove it to sample new completions"
    fits = saved is not None and saved[0] == _layout(trainer, curriculum)
    states = [(fits, failure)]
    if accelerator.num_processes > 1:
        states = gather_object(states)
    for _, reason in states:
        if reason:
            raise CheckpointError(reason)
    if not all(fit for fit, _ in states):
        return False
    assert saved is not None
    _, trainer._step, inputs = saved
    trainer._buffered_inputs = send_to_device(inputs, accelerator.device)
    return True


def _pending_file(folder: Path, rank: int) -> Path:
    return folder / f"sec_grpo_generation_{rank}.pt"


def _layout(trainer: Any, curriculum: Curriculum) -> dict[str, int]:
    """What must be as it was for the completions to be the ones that come next."""
    args = trainer.args
    return {
        "draws": curriculum.step,
        "processes": trainer.accelerator.num_processes,
        "rows": args.per_device_train_batch_size,
        "num_generations": args.num_generations,
        "steps_per_generation": args.steps_per_generation,
        "num_iterations": args.num_iterations,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
    }


def _pending(trainer: Any, curriculum: Curriculum) -> dict[str, Any] | None:
    """The completions that TRL will go on with, or None at the end of a generation batch.

    None also for batches that hold more than tensors and numbers, such as images: reading them
    back would need pickle, which runs what a file says.
    """
    args, step, inputs = trainer.args, trainer._step, trainer._buffered_inputs
    at_end = step % (args.steps_per_generation * args.num_iterations) == 0
    if at_end or inputs is None or not _is_plain(inputs):
        return None
    return {"layout": _layout(trainer, curriculum), "step": step, "inputs": inputs}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (torch.Tensor, bool, int, float, str)
