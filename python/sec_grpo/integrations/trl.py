"""A curriculum and our log-probabilities inside TRL's GRPOTrainer.

What is private in TRL and used here: `_generate_and_score_completions` (the generation batch is put
in its place), `_calculate_rewards` (its gathered result is read), `_save_checkpoint`,
`_load_optimizer_and_scheduler`, `_metrics`; and for `use_fused_loss`
`trl.trainer.utils._ChunkedLogProbFunction`. Their presence is checked at import.

B completions of a process's generation batch, P prompts and G completions a prompt globally.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    import trl
    from trl import GRPOTrainer
except ImportError as error:
    raise ImportError(
        "sec_grpo.integrations.trl needs TRL: pip install 'sec-grpo[trl]' (tried with trl 1.16)"
    ) from error

from sec_grpo.curriculum import Curriculum, Strategy, get_strategy
from sec_grpo.distributed import DistributedCurriculum
from sec_grpo.errors import CheckpointError
from sec_grpo.ops import linear_logprob
from sec_grpo.report.atomic import write_atomically
from sec_grpo.trainer.prompts import Category, PromptDataset

STATE_FILE = "sec_grpo_curriculum.bin"
_PRIVATE = (
    "_generate_and_score_completions",
    "_calculate_rewards",
    "_save_checkpoint",
    "_load_optimizer_and_scheduler",
)

if _missing := [name for name in _PRIVATE if not hasattr(GRPOTrainer, name)]:
    raise ImportError(
        f"sec_grpo.integrations.trl does not fit trl {trl.__version__}: its GRPOTrainer has no "
        f"{', '.join(_missing)}; it is tried with trl 1.16"
    )


class CurriculumMixin:
    """Lets a curriculum choose the prompts of a `trl.GRPOTrainer` subclass; put it first.

    The data loader's rows are replaced by drawn ones just before the completions are generated, so
    no draw is ever stale, and the advantages go back to the curriculum right after. Every process
    draws the same global batch and takes its slice; the feedback is gathered, and a curriculum that
    differs between processes stops the run.

    Args:
        curriculum: a strategy (`SEC(temperature=0.2)`), its name, a dict with `name` and its
            parameters, or a `Curriculum` over the rows of train_dataset. None draws every prompt
            equally often.
        category: the column of the arms, several columns, a function of the row, or None for one.

    All other arguments are the trainer's. Raises ValueError for a data set without random access
    and for what the curriculum refuses.
    """

    def __init__(
        self,
        *args: Any,
        curriculum: Curriculum | Strategy | str | dict[str, Any] | None = None,
        category: Category = "difficulty",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._rows = PromptDataset(self.train_dataset, category)  # type: ignore[attr-defined]
        self.curriculum = _curriculum_of(curriculum, self._rows, self.args)  # type: ignore[attr-defined]
        self._shared = DistributedCurriculum(self.curriculum, accelerator=self.accelerator)  # type: ignore[attr-defined]
        self._last_rewards: torch.Tensor | None = None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:  # type: ignore[attr-defined]
            return super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        size = self.args.num_generations  # type: ignore[attr-defined]
        total = len(inputs) * self._shared.size
        indices = self._shared.draw(total // size)
        mine = self._shared.local_slice(np.repeat(indices, size))
        rows = [dict(self._rows.row(int(index))) for index in mine]
        output = super()._generate_and_score_completions(rows)  # type: ignore[misc]
        advantages = self.accelerator.gather(output["advantages"].contiguous())  # type: ignore[attr-defined]
        shape = (len(indices), size)
        self._shared.observe_gathered(
            indices,
            advantages=advantages.reshape(shape).float().cpu().numpy(),
            rewards=self._rewards_of(shape),
        )
        for name, value in self.curriculum.metrics().items():
            self._metrics["train"][f"curriculum/{name}"].append(value)  # type: ignore[attr-defined]
        return output

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        rewards = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        self._last_rewards = rewards[0] if isinstance(rewards, tuple) else rewards
        return rewards

    def _rewards_of(self, shape: tuple[int, int]) -> np.ndarray | None:
        """(P, G) weighted rewards; NaN, where no function applies, counts as 0."""
        found = self._last_rewards
        if found is None or found.shape[0] != shape[0] * shape[1]:
            return None
        weights = self.reward_weights.to(found.device)  # type: ignore[attr-defined]
        total = (found * weights).nansum(dim=1)
        return np.asarray(total.reshape(shape).float().cpu().numpy())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        if self.args.should_save:  # type: ignore[attr-defined]
            name = f"checkpoint-{self.state.global_step}"  # type: ignore[attr-defined]
            folder = Path(self._get_output_dir(trial=trial)) / name  # type: ignore[attr-defined]
            write_atomically(folder / STATE_FILE, self.curriculum.to_bytes())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{checkpoint} holds no {STATE_FILE}: it was saved without a curriculum, or before "
                "it was complete; resume from an earlier checkpoint"
            )
        self.curriculum.load_bytes(path.read_bytes())
        self._shared.check()


class CurriculumGRPOTrainer(CurriculumMixin, GRPOTrainer):
    """`trl.GRPOTrainer` with `curriculum=` and `category=`; see `CurriculumMixin`."""


def _curriculum_of(curriculum: Any, rows: PromptDataset, args: Any) -> Curriculum:
    if isinstance(curriculum, Curriculum):
        if curriculum.num_prompts != len(rows):
            raise ValueError(
                f"curriculum was made for {curriculum.num_prompts} prompts, train_dataset has "
                f"{len(rows)}; make it from the same rows"
            )
        return curriculum
    if curriculum is None or isinstance(curriculum, str):
        curriculum = get_strategy(curriculum or "random")
    elif isinstance(curriculum, dict):
        spec = dict(curriculum)
        if "name" not in spec:
            raise ValueError(f"curriculum needs a 'name', got {curriculum!r}")
        curriculum = get_strategy(spec.pop("name"), **spec)
    if not isinstance(curriculum, Strategy):
        raise ValueError(
            "curriculum must be a strategy such as SEC(), its name, a dict with its name and "
            f"parameters, or a Curriculum, got {curriculum!r:.60}"
        )
    return Curriculum(rows.categories, curriculum, seed=args.seed)


_NOT_COMPUTED = {"log_sum_sq_probs", "mean_logits", "is_top1"}


class _FusedLogProb:
    """Stands where TRL has its streamed log-probability, and computes it with `linear_logprob`."""

    @staticmethod
    def apply(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None,
        logit_scale: float,
        outputs: Sequence[str],
    ) -> tuple[torch.Tensor | None, ...]:
        """(log-probabilities, entropy, None, None, None); TRL's order of outputs."""
        if unknown := sorted(set(outputs) & _NOT_COMPUTED):
            raise NotImplementedError(
                f"use_fused_loss() does not compute {', '.join(unknown)}, which this trainer asks "
                "for; use it with GRPOTrainer only"
            )
        result = linear_logprob(
            hidden,
            weight.to(hidden.dtype),
            targets,
            bias=None if bias is None else bias.to(hidden.dtype),
            temperature=temperature,
            logit_scale=1.0 if logit_scale is None else float(logit_scale),
            softcap=final_logit_softcapping,
            return_entropy=True,
        )
        logprobs, entropy = result
        return logprobs, entropy if "entropy" in outputs else None, None, None, None


@contextlib.contextmanager
def use_fused_loss() -> Iterator[None]:
    """Inside, TRL's trainers take log-probabilities from `sec_grpo.linear_logprob`.

    TRL's losses and metrics stay as they are: only the function under them is another. Enter it
    around `trainer.train()`; for a whole program call `use_fused_loss().__enter__()`.

    Raises:
        ImportError: this version of TRL does not stream log-probabilities (before 1.15).
    """
    from trl.trainer import utils

    own = getattr(utils, "_ChunkedLogProbFunction", None)
    if own is None:
        raise ImportError(
            f"use_fused_loss() needs a TRL that streams log-probabilities, 1.15 or newer; got "
            f"{trl.__version__}"
        )
    utils._ChunkedLogProbFunction = _FusedLogProb
    try:
        yield
    finally:
        utils._ChunkedLogProbFunction = own


__all__ = ["STATE_FILE", "CurriculumGRPOTrainer", "CurriculumMixin", "use_fused_loss"]
