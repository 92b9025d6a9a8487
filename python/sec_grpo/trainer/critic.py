"""PPO's critic: a value head on the policy's hidden states, and advantages from its values.

PPO: arXiv 1707.06347; generalized advantage estimation (GAE): arXiv 1506.02438. N completion
tokens, T of a completion, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sec_grpo.distributed import Processes
from sec_grpo.trainer.estimators import EPS

ATTRIBUTE = "value_head"
"""where the head sits on the model: inside of it, so that wrappers reduce its gradients"""


class ValueHead(nn.Module):
    """V = w . h + b of the state h before each token, in float32; 0 at the start."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N,) values of hidden states (N, D)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)


def add_value_head(model: Any, hidden_size: int) -> None:
    """Put a new head on the model."""
    device = next(model.parameters()).device
    model.add_module(ATTRIBUTE, ValueHead(hidden_size).to(device))


def value_head(model: nn.Module) -> ValueHead | None:
    """The model's head, if it has one."""
    return getattr(model, ATTRIBUTE, None)


def without_value_head(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A model's state as other programs expect it."""
    return {k: v for k, v in state_dict.items() if not k.startswith(f"{ATTRIBUTE}.")}


def separate_group(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], learning_rate: float
) -> None:
    """Give parameters of an optimizer that has not stepped yet a learning rate of their own."""
    mine = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in mine]
    optimizer.add_param_group({"params": parameters, "lr": learning_rate, "weight_decay": 0.0})


def generalized_advantages(
    values: Tensor, reward: float, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (T,) of a completion whose reward comes with its last token.

    delta_t = r_t + gamma V_{t+1} - V_t with V_{T+1} = 0, A_t = sum_k (gamma lam)^k delta_{t+k} and
    R_t = A_t + V_t.

    Args:
        values: (T,) of the states before the tokens.
        gamma, lam: discount, and GAE's lambda, in [0, 1].
    """
    v = values.double().tolist()
    advantages = [0.0] * len(v)
    following = 0.0
    for t in reversed(range(len(v))):
        is_last = t == len(v) - 1
        delta = (reward if is_last else gamma * v[t + 1]) - v[t]
        following = advantages[t] = delta + gamma * lam * following
    found = torch.tensor(advantages, dtype=torch.float64)
    return found.float(), (found + values.double().cpu()).float()


def whitened(advantages: Sequence[Tensor], processes: Processes) -> list[Tensor]:
    """Advantages less their mean over all tokens of all processes, over their deviation."""
    values = torch.cat([a.double() for a in advantages])
    count, total = _sums(processes, values.numel(), float(values.sum()))
    mean = total / count
    (squares,) = _sums(processes, float(((values - mean) ** 2).sum()))
    std = (squares / max(count - 1, 1)) ** 0.5
    return [((a.double() - mean) / (std + EPS)).float() for a in advantages]


def _sums(processes: Processes, *numbers: float) -> list[float]:
    gathered = processes.gather(torch.tensor(numbers, dtype=torch.float64))
    total: list[float] = gathered.reshape(processes.size, -1).sum(dim=0).tolist()
    return total


class ValueLoss(NamedTuple):
    """What the critic adds to a pack."""

    loss: Tensor
    """scalar, a sum over the pack's tokens over the step's number of them"""
    metrics: dict[str, Tensor]
    """detached means over the tokens"""


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    clip_range: float | None,
    num_items_in_batch: float,
) -> ValueLoss:
    """PPO's clipped value loss: 1/2 max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2).

    Args:
        values: (N,), differentiable.
        old_values, returns: (N,), of the policy that sampled.
        clip_range: c; None does not clip.
        num_items_in_batch: tokens of the optimizer step.
    """
    squared = (values - returns) ** 2
    is_clipped = torch.zeros_like(squared, dtype=torch.bool)
    if clip_range is not None:
        near = old_values + (values - old_values).clamp(-clip_range, clip_range)
        clipped = (near - returns) ** 2
        is_clipped = clipped > squared
        squared = torch.maximum(squared, clipped)
    metrics = {
        "value_loss": 0.5 * squared.detach().mean(),
        "value_clip_ratio": is_clipped.float().mean(),
        "value_mean": values.detach().mean(),
        "return_mean": returns.mean(),
    }
    return ValueLoss(0.5 * squared.sum() / num_items_in_batch, metrics)
