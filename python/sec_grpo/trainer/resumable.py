"""A `transformers.Trainer` whose checkpoints are whole or absent and resume exactly."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from sec_grpo.distributed import Processes
from sec_grpo.errors import CheckpointError
from sec_grpo.trainer import checkpoint as checkpoints
from sec_grpo.trainer.signals import StopOnSignal

logger = logging.get_logger(__name__)


class ResumableTrainer(Trainer):
    """Saves into a staging folder that is renamed when whole, and stops on signals.

    A subclass says what its checkpoints hold beside the model, the optimizer, the schedule and the
    random states (`own_state`, `restore_own_state`, `pending_state`), and what must not change
    between the parts of a run (`layout`). It has to call `restore_random_states` before anything
    of a step is random.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._processes = Processes(self.accelerator)
        self._stop = StopOnSignal(lambda stop: self._processes.sum(int(stop)) != [0])
        self.add_callback(self._stop)
        self._staging: str | None = None
        self._training = False
        self._rng_states: str | None = None

    # ---- What a subclass fills in -------------------------------------------------------------

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """What the first process saves; plain containers and tensors."""

    @abstractmethod
    def restore_own_state(self, state: dict[str, Any], path: Path) -> None:
        """Continue from what `own_state` gave; CheckpointError if it does not fit."""

    @abstractmethod
    def pending_state(self) -> dict[str, Any] | None:
        """What this process has yet to use up, or None."""

    @abstractmethod
    def restore_pending_state(self, state: dict[str, Any] | None) -> None:
        """Continue from what `pending_state` gave on this process."""

    @abstractmethod
    def layout(self) -> dict[str, int | str | None]:
        """What must not change between the parts of a resumed run."""

    @abstractmethod
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""

    def before_training(self, path: Path | None, step: int) -> None:
        """Called once everything is checked and restored, with the checkpoint's step or 0."""

    # ---- Training -----------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; see `transformers.Trainer.train`.

        Ctrl-C or SIGTERM finishes the optimizer step, saves a checkpoint and returns; a second one
        raises KeyboardInterrupt.

        Raises:
            CheckpointError: `resume_from_checkpoint` is not a whole checkpoint of this data set,
                strategy and batch layout; nothing is changed.
        """
        output_dir = Path(self.args.output_dir)
        self.restore_pending_state(None)
        if self.args.should_save:
            checkpoints.recover(output_dir)
        self.accelerator.wait_for_everyone()
        path = checkpoints.find(output_dir, resume_from_checkpoint)
        self.check_before_training()
        step = 0
        if path is not None:
            self._restore(path)
            self.state = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
            step = self.state.global_step
            if step >= self.total_steps():
                # Trainer would take one more step before it looked.
                self._load_from_checkpoint(str(path))
                if (
                    self.args.load_best_model_at_end
                    and self.state.best_model_checkpoint is not None
                ):
                    self._load_best_model()
                logger.warning("%s is the end of the run already: nothing to train", path)
                return TrainOutput(step, 0.0, {})
        self.before_training(path, step)
        self._rng_states = None if path is None else str(path)
        self._training = True
        try:
            with self._stop:
                return super().train(
                    resume_from_checkpoint=None if path is None else str(path), **kwargs
                )
        finally:
            self._training = False
            self.after_training()

    def check_before_training(self) -> None:
        """Checks that come after the checkpoint is found and before it is loaded."""

    def after_training(self) -> None:
        """Called when `train` ends, in whatever way."""

    @property
    def stopped_by_signal(self) -> bool:
        """Whether the last `train` ended early because of Ctrl-C or SIGTERM."""
        return self._stop.stopped

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: Trainer calls this after the first rollouts, which need the states already."""

    def restore_random_states(self) -> None:
        """Restore those of the checkpoint that is resumed from, once."""
        if self._rng_states is not None:
            super()._load_rng_state(self._rng_states)
            self._rng_states = None

    def save_before_stopping(self, what: str) -> None:
        """Save the last finished step when `what` has failed in training."""
        if self._training and self.state.global_step > 0:
            self._save_checkpoint(self.model, None)
            logger.error(
                "%s failed; saved %s/checkpoint-%d before stopping",
                what,
                self.args.output_dir,
                self.state.global_step,
            )

    # ---- Checkpoints --------------------------------------------------------------------------

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a whole checkpoint into a staging folder, then rename it into place."""
        output_dir = Path(self.args.output_dir)
        staging = output_dir / checkpoints.STAGING_DIR
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            checkpoints.clear(staging)
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self._name_best_checkpoint(staging, output_dir)
        pending = self.pending_state()
        if pending is not None:
            checkpoints.save_rollouts(staging / name, pending, self.args.process_index)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            state = {
                **self.own_state(),
                "layout": self.layout(),
                "save_only_model": self.args.save_only_model,
            }
            checkpoints.save_state(staging / name, state)
            checkpoints.publish(staging / name, output_dir / name)
            checkpoints.clear(staging)
            checkpoints.rotate(self, output_dir)
        self.accelerator.wait_for_everyone()

    def _finalize_training(self, *args: Any) -> TrainOutput:
        """Delete what Trainer would, but so that a kill leaves no half of a checkpoint."""
        best = self.state.best_model_checkpoint
        if self.args.should_save and best is not None and self.args.save_total_limit == 1:
            for path in checkpoints.saved(Path(self.args.output_dir)):
                if not path.samefile(best):
                    checkpoints.remove(path)
        return super()._finalize_training(*args)

    def _name_best_checkpoint(self, staging: Path, output_dir: Path) -> None:
        """Undo the staging folder's name where Trainer has noted this checkpoint as the best."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent == staging:
            self.state.best_model_checkpoint = str(output_dir / Path(best).name)
            if self.args.should_save:
                self.state.save_to_json(str(staging / Path(best).name / TRAINER_STATE_NAME))

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging if self._staging is not None else super()._get_output_dir(trial)

    def _restore(self, path: Path) -> None:
        state = checkpoints.load_state(path)
        if state["save_only_model"]:
            raise CheckpointError(
                f"{path} was saved with save_only_model=True and has no optimizer state to resume "
                "from; start a new run from its weights"
            )
        checkpoints.check_layout(path, state["layout"], self.layout())
        pending = checkpoints.load_rollouts(path, self.args.process_index, self.args.world_size)
        self.restore_own_state(state, path)
        self.restore_pending_state(pending)
