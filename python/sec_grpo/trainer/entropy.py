"""The weight of the entropy bonus, fixed or following the entropy (Skywork-OR1, 2505.22312)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sec_grpo.trainer.config import GRPOConfig


class EntropyBonus:
    """The coefficient that the next optimizer step uses.

    Adaptive, it goes up by `entropy_coef_delta` after a step whose mean entropy is at most
    `entropy_target`, else down by as much, within its bounds; and it is applied only after such a
    step, so not in the first.
    """

    def __init__(self, args: GRPOConfig) -> None:
        self._args = args
        self.coefficient = args.entropy_coef
        self._last_entropy = math.inf
        self.is_adaptive = args.use_adaptive_entropy
        self.is_on = args.entropy_coef > 0 or args.use_adaptive_entropy
        """whether tokens may have a gradient through the entropy at all in this run"""

    @property
    def applied(self) -> float:
        """The coefficient of this step."""
        if self.is_adaptive and self._last_entropy > self._args.entropy_target:
            return 0.0
        return self.coefficient

    def observe(self, entropy: float) -> None:
        """Take in the mean entropy of the step's tokens, in nats."""
        args, delta = self._args, self._args.entropy_coef_delta
        if entropy <= args.entropy_target:
            self.coefficient = min(self.coefficient + delta, args.entropy_coef_max)
        else:
            self.coefficient = max(self.coefficient - delta, args.entropy_coef_min)
        self._last_entropy = entropy

    def state_dict(self) -> dict[str, float]:
        """What the next steps depend on."""
        return {"coefficient": self.coefficient, "last_entropy": self._last_entropy}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from `state_dict`."""
        self.coefficient, self._last_entropy = state["coefficient"], state["last_entropy"]
