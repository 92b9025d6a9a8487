"""The update phase: which rows are run together, their loss, and log-probabilities.

An optimizer step of `gradient_accumulation_steps` micro-batches is one set of rows to the loss,
whose denominators are counts of the whole step. So the rows that can have a gradient are packed
anew, by length, into as few forward passes as the same memory allows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sec_grpo.distributed import Processes
from sec_grpo.trainer.batch import (
    Rollouts,
    loss_inputs,
    packed_inputs,
    padded_inputs,
    plan_packed,
    plan_padded,
    to_device,
)
from sec_grpo.trainer.config import GRPOConfig
from sec_grpo.trainer.critic import generalized_advantages, value_head, whitened
from sec_grpo.trainer.entropy import EntropyBonus
from sec_grpo.trainer.layout import Layout
from sec_grpo.trainer.loss import PackLoss, fused_loss, whole_logits_loss
from sec_grpo.trainer.metrics import MetricStore, clip_extremes, loss_metrics
from sec_grpo.trainer.policy import (
    call_through,
    completion_hidden_states,
    fused_logprobs,
    uncompiled,
    whole_logprobs,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

# Below this many tokens a forward pass takes as long however few they are.
SMALL_PACK = 2048

Pack = dict[str, Any]


class PolicyUpdate:
    """Makes the packs of an optimizer step from rollouts, and the loss of each.

    Args:
        layout: how rows are laid out for the model.
        sharded: whether every forward is a collective of all processes (FSDP, ZeRO-3), which then
            need the same number of packs.
        entropy_bonus: its weight.
        has_dropout: whether two forwards of one row differ in training.
    """

    def __init__(
        self,
        *,
        args: GRPOConfig,
        accelerator: Accelerator,
        processes: Processes,
        metrics: MetricStore,
        pad_token_id: int,
        layout: Layout,
        sharded: bool,
        has_dropout: bool,
        entropy_bonus: EntropyBonus,
    ) -> None:
        self._args = args
        self._accelerator = accelerator
        self._processes = processes
        self._metrics = metrics
        self._pad_token_id = pad_token_id
        self._layout = layout
        self._sharded = sharded
        self._entropy_bonus = entropy_bonus
        self._entropy_sums: list[torch.Tensor] = []
        self._policy_losses: list[torch.Tensor] = []
        # Without dropout the first update finds the very log-probabilities that a pass before it
        # would; later updates need them.
        self._remembers = args.num_iterations > 1 and not has_dropout

    # ---- Packs --------------------------------------------------------------------------------

    def packs(self, rollouts: Rollouts, position: int) -> tuple[list[Pack], int]:
        """The packs of a generation's update number `position`, and the step's tokens.

        Every row counts in the denominators, whether it is run or not: dead groups with their
        tokens, masked completions as sequences only (as in TRL). The tokens are those of all
        processes.
        """
        self._entropy_sums = []
        self._policy_losses = []
        micro_batches = self._micro_batches(position)
        tokens = [rollouts.num_tokens(rows) for rows in micro_batches]
        num_tokens = max(self._processes.sum(sum(tokens))[0], 1)
        plan: list[tuple[list[int], int]] = []
        for pool, denominator in self._pools(rollouts, micro_batches, tokens, num_tokens):
            plan += [(rows, denominator) for rows in pool]
        idle = self._idle_row(rollouts, micro_batches)
        wanted = max(len(plan), 1)
        if self._sharded:
            wanted = max(self._processes.gather(torch.tensor([wanted])).tolist())
        packs = [self._pack(rollouts, rows, denominator) for rows, denominator in plan]
        entropy_coef = self._entropy_bonus.applied
        for pack in packs:
            pack |= {"num_tokens": num_tokens, "entropy_coef": entropy_coef}
        for _ in range(wanted - len(plan)):
            pack = self._pack(rollouts, [idle], num_tokens)
            unused = {"num_tokens": num_tokens, "entropy_coef": 0.0}
            packs.insert(0, {**pack, **unused, "in_loss": False, "in_metrics": not plan})
        return packs, num_tokens

    def _micro_batches(self, position: int) -> list[range]:
        """The rows of each micro-batch of an update."""
        args = self._args
        assert args.steps_per_generation is not None
        count, size = args.gradient_accumulation_steps, args.per_device_train_batch_size
        first = (position % (args.steps_per_generation // count)) * count
        return [range(i * size, (i + 1) * size) for i in range(first, first + count)]

    def _pools(
        self,
        rollouts: Rollouts,
        micro_batches: list[range],
        tokens: list[int],
        num_tokens: int,
    ) -> Iterator[tuple[list[list[int]], int]]:
        """Packs of rows, with their num_items_in_batch.

        Rows may go together across micro-batches, but for two definitions that name the
        micro-batch: bnpo's mean over its tokens, and the share of its tokens of highest entropy.
        """
        args = self._args
        everything = [i for rows in micro_batches for i in rows]
        alive = self.alive(rollouts, everything)
        if args.loss_type != "bnpo" and args.top_entropy_quantile >= 1:
            yield self._plan(rollouts, alive, everything), num_tokens
            return
        for rows, kept in zip(micro_batches, tokens, strict=True):
            mine = [i for i in alive if i in rows]
            # TRL's bnpo is the mean over micro-batches of the mean over a micro-batch's tokens.
            bnpo = max(kept, 1) * len(micro_batches) * self._processes.size
            denominator = bnpo if args.loss_type == "bnpo" else num_tokens
            if args.top_entropy_quantile < 1:
                yield ([mine] if mine else []), denominator
            else:
                yield self._plan(rollouts, mine, everything), denominator

    def alive(self, rollouts: Rollouts, rows: Sequence[int]) -> list[int]:
        """The rows that have to be run.

        Every policy term is A times something: a row with advantage 0 has a gradient through the
        KL term, the entropy bonus or the critic only.
        """
        args = self._args
        policy_alone = args.beta == 0 and args.advantage_estimator != "ppo"
        policy_alone = policy_alone and not self._entropy_bonus.is_on
        return rollouts.learnable(rows, skip_zero_advantages=policy_alone)

    def _plan(
        self, rollouts: Rollouts, rows: Sequence[int], step: Sequence[int]
    ) -> list[list[int]]:
        """`rows` in packs, within the memory that the rows of a whole `step` would take."""
        lengths = {i: rollouts.length(i) for i in step}
        budget = self._budget([lengths[i] for i in step])
        plan = plan_packed if self._layout.packed else plan_padded
        return plan([rollouts.length(i) for i in range(len(rollouts))], rows, budget)

    def _budget(self, lengths: Sequence[int]) -> int:
        """Most tokens of a pack.

        By default what a micro-batch holds on average, but enough to keep the device busy, and
        never more than a micro-batch padded to its longest row.
        """
        args = self._args
        longest = max(lengths)
        if args.max_tokens_per_micro_batch is not None:
            return max(args.max_tokens_per_micro_batch, longest)
        average = math.ceil(sum(lengths) / args.gradient_accumulation_steps)
        padded = args.per_device_train_batch_size * longest
        return max(longest, min(max(average, SMALL_PACK), padded))

    def _idle_row(self, rollouts: Rollouts, micro_batches: list[range]) -> int:
        """The shortest row: what a process without work runs for the sake of the collectives."""
        return min((i for rows in micro_batches for i in rows), key=rollouts.length)

    def _pack(self, rollouts: Rollouts, rows: list[int], denominator: int) -> Pack:
        args = self._args
        return {
            **self._model_inputs(rollouts, rows),
            **loss_inputs(rollouts, rows),
            "rows": rows,
            "rollouts": rollouts,
            "in_metrics": True,
            "num_items_in_batch": denominator,
            "num_sequences_in_batch": args.per_device_train_batch_size
            * args.gradient_accumulation_steps
            * self._processes.size,
        }

    def _model_inputs(self, rollouts: Rollouts, rows: Sequence[int]) -> dict[str, Any]:
        if self._layout.packed:
            return packed_inputs(rollouts, rows)
        return padded_inputs(rollouts, rows, self._pad_token_id, mask=self._layout.mask_padding)

    # ---- Loss ---------------------------------------------------------------------------------

    def loss(self, model: nn.Module, inputs: Pack) -> torch.Tensor:
        """A pack's part of the step's loss.

        Nothing is read back from the device. Gradients are averaged over processes, while the
        denominators are global already: hence the factor.
        """
        model = uncompiled(model)
        unwrapped = self._accelerator.unwrap_model(model)
        compute = fused_loss if self._args.fused_lm_head else whole_logits_loss
        found: list[PackLoss] = []

        def forward() -> torch.Tensor:
            with self._accelerator.autocast():
                found.append(compute(unwrapped, self._args, inputs))
            return found[0].loss

        loss = call_through(model, unwrapped, forward)
        if inputs["in_metrics"]:
            self._record(found[0], inputs)
        if not inputs["in_loss"]:
            # Run for its collectives only.
            return loss * 0.0
        rollouts = inputs["rollouts"]
        if self._remembers and inputs["old_logprobs"] is None:
            assign_rows(rollouts.old_logprobs, rollouts, inputs["rows"], found[0].logprobs)
        return loss * self._processes.size

    def _record(self, found: PackLoss, inputs: Pack) -> None:
        args = self._args
        metrics = loss_metrics(found.metrics, loss_type=args.loss_type, has_kl=args.beta > 0)
        if "clip_ratio/low_mean" in metrics:
            metrics |= clip_extremes(
                found.logprobs,
                inputs["old_logprobs"],
                inputs["advantages"],
                inputs["cu_seqlens"],
                epsilon_low=args.epsilon,
                epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
                sequence_level=args.importance_sampling_level == "sequence",
            )
        weight = float(inputs["targets"].numel())
        for name, value in {**metrics, "entropy": found.metrics["entropy"]}.items():
            self._metrics.add(name, value, weight)
        if self._entropy_bonus.is_on and inputs["in_loss"]:
            bonus = 0.0 if found.bonus is None else found.bonus
            self._policy_losses.append(found.loss.detach().float() + bonus)
        if self._entropy_bonus.is_adaptive:
            self._entropy_sums.append(found.metrics["entropy"].float() * weight)
            self._entropy_sums.append(torch.full_like(self._entropy_sums[-1], weight))

    def end_step(self) -> None:
        """Let the entropy bonus follow the entropy of the step's tokens, of all processes."""
        bonus = self._entropy_bonus
        if not bonus.is_on:
            return
        # The mean over processes, which the log takes, is then the sum of their parts.
        self._metrics.add("policy_loss", sum(self._policy_losses) * self._processes.size)
        self._metrics.add("entropy_coef", bonus.coefficient)
        if not bonus.is_adaptive:
            return
        sums = torch.stack(self._entropy_sums).reshape(-1, 2).sum(dim=0)
        total, count = self._processes.gather(sums).reshape(-1, 2).sum(dim=0).tolist()
        bonus.observe(total / max(count, 1))

    # ---- Log-probabilities --------------------------------------------------------------------

    def add_logprobs(
        self, model: nn.Module, reference: nn.Module | None, rollouts: Rollouts
    ) -> None:
        """Fill in the log-probabilities that the updates of a generation batch will need.

        Those of the sampling policy only for rows whose first update comes after another, when the
        policy is another one; those of the reference where there is a KL term.

        Args:
            model: as the loss is called with.
            reference: None where the model is its own, with the adapter off.
        """
        args = self._args
        everything = range(len(rollouts))
        if args.updates_per_generation > 1:
            first = {i for rows in self._micro_batches(0) for i in rows}
            on_policy = first if args.num_iterations == 1 or self._remembers else set()
            later = [i for i in everything if i not in on_policy]
            rollouts.old_logprobs = self.logprobs(model, rollouts, self.alive(rollouts, later))
        if args.beta == 0:
            return
        rows = self.alive(rollouts, everything)
        rows += sorted(self._idle_rows(rollouts) - set(rows))
        if reference is not None:
            rollouts.ref_logprobs = self.logprobs(reference, rollouts, rows)
            return
        with self._accelerator.unwrap_model(uncompiled(model)).disable_adapter():
            rollouts.ref_logprobs = self.logprobs(model, rollouts, rows)

    def _idle_rows(self, rollouts: Rollouts) -> set[int]:
        """The rows that updates may run for nothing, because they have no others."""
        found = set()
        for position in range(self._args.updates_per_generation):
            micro_batches = self._micro_batches(position)
            rows = [i for micro_batch in micro_batches for i in micro_batch]
            if self._sharded or not self.alive(rollouts, rows):
                found.add(self._idle_row(rollouts, micro_batches))
        return found

    def logprobs(
        self, model: nn.Module, rollouts: Rollouts, rows: Sequence[int]
    ) -> list[torch.Tensor | None]:
        """B entries: log-probabilities (T_i,) float32 of `rows` without gradients, else None.

        The rows should be those that are `alive`.
        """
        compute = fused_logprobs if self._args.fused_lm_head else whole_logprobs
        temperature = self._args.temperature

        def of_pack(unwrapped: nn.Module, inputs: Pack) -> torch.Tensor:
            return compute(unwrapped, inputs, temperature)[0]

        return self._of_tokens(model, rollouts, rows, of_pack)

    def add_values(self, model: nn.Module, rollouts: Rollouts, rewards: torch.Tensor) -> None:
        """Fill in values, returns and token advantages from rewards (B,) of these rows.

        `rollouts.advantages` become the means over the completions' tokens.
        """
        args = self._args

        def of_pack(unwrapped: nn.Module, inputs: Pack) -> torch.Tensor:
            head = value_head(unwrapped)
            assert head is not None
            values: torch.Tensor = head(completion_hidden_states(unwrapped, inputs))
            return values

        found = self._of_tokens(model, rollouts, range(len(rollouts)), of_pack)
        rollouts.old_values = [values.cpu() for values in found if values is not None]
        pairs = [
            generalized_advantages(values, reward, gamma=args.gamma, lam=args.lam)
            for values, reward in zip(rollouts.old_values, rewards.tolist(), strict=True)
        ]
        advantages = [advantages for advantages, _ in pairs]
        if args.scale_rewards == "batch":
            advantages = whitened(advantages, self._processes)
        rollouts.token_advantages = advantages
        rollouts.returns = [returns for _, returns in pairs]
        rollouts.advantages = torch.stack([a.mean() for a in advantages])

    def _of_tokens(
        self,
        model: nn.Module,
        rollouts: Rollouts,
        rows: Sequence[int],
        of_pack: Callable[[nn.Module, Pack], torch.Tensor],
    ) -> list[torch.Tensor | None]:
        """B entries: what `of_pack` (N,) says of the tokens of `rows`, else None."""
        out: list[torch.Tensor | None] = [None] * len(rollouts)
        plan = self._plan(rollouts, rows, range(len(rollouts)))
        if self._sharded:
            wanted = max(self._processes.gather(torch.tensor([len(plan)])).tolist())
            idle = self._idle_row(rollouts, [range(len(rollouts))])
            plan += [[idle]] * (wanted - len(plan))
        model = uncompiled(model)
        unwrapped = self._accelerator.unwrap_model(model)
        # DDP's forward would synchronise buffers, as many times as the process has packs.
        wrapper = model if self._sharded else unwrapped
        with self._inference(model):
            for pack in plan:
                inputs = {**self._model_inputs(rollouts, pack), **loss_inputs(rollouts, pack)}
                inputs = to_device(inputs, self._args.device)
                found: list[torch.Tensor] = []

                def forward(inputs: Pack = inputs, found: list[torch.Tensor] = found) -> Any:
                    found.append(of_pack(unwrapped, inputs))
                    return found[0]

                call_through(wrapper, unwrapped, forward)
                assign_rows(out, rollouts, pack, found[0])
        return out

    @contextlib.contextmanager
    def _inference(self, model: nn.Module) -> Iterator[None]:
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), self._accelerator.autocast():
                yield
        finally:
            model.train(was_training)


def assign_rows(
    target: list[torch.Tensor | None],
    rollouts: Rollouts,
    rows: Sequence[int],
    values: torch.Tensor,
) -> None:
    """Put a pack's values (N,) at its rows; they stay on their device."""
    lengths = [len(rollouts.completion_ids[i]) for i in rows]
    for i, part in zip(rows, values.split(lengths), strict=True):
        target[i] = part.clone()
