"""The curriculum beside verl's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sec_grpo.curriculum import Curriculum
from sec_grpo.errors import CheckpointError
from sec_grpo.report.atomic import write_atomically

STATE_FILE = "sec_grpo_curriculum.bin"
"""name of the curriculum's state in the folder of a step"""


def save(trainer: Any, curriculum: Curriculum) -> None:
    """Write the curriculum into the folder in which verl is about to save the step."""
    write_atomically(_folder(trainer) / STATE_FILE, curriculum.to_bytes())


def load(trainer: Any, curriculum: Curriculum) -> None:
    """Continue from the step that verl has loaded; nothing at the start of a run.

    Raises:
        CheckpointError: that step has no curriculum, or one that does not fit.
    """
    if trainer.global_steps == 0:
        return
    folder = _folder(trainer)
    if trainer.config.trainer.resume_mode == "resume_path":
        folder = Path(trainer.config.trainer.resume_from_path)
    path = folder / STATE_FILE
    try:
        curriculum.load_bytes(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Set trainer.resume_mode=disable and the folder's "
            "actor as the model to start a curriculum anew"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit: {error}") from error


def _folder(trainer: Any) -> Path:
    """The folder of the step, where verl has it."""
    return Path(trainer.config.trainer.default_local_dir) / f"global_step_{trainer.global_steps}"
