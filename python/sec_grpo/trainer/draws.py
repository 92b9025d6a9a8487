"""The draws that make a generation batch: the first, and the refills of dynamic sampling.

m prompts in a draw, G completions each, dealt to the processes as b = m G / processes rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sec_grpo.distributed import Processes


@dataclass
class Draw:
    """The completions of the prompts of one draw."""

    indices: NDArray[np.int64]
    """(m,) prompts of all processes"""
    completion_ids: list[list[int]]
    """b completions of this process"""
    rewards: torch.Tensor
    """(m, G) float32, of all processes"""
    each: NDArray[np.float64]
    """(m, G, F) the reward of each function, of all processes; NaN where it does not apply"""
    num_prompt_tokens: int
    """of this process, a prompt counted once a completion"""
    logged: dict[str, list[Any]] | None = None
    """columns of the completions table, m G values of all processes"""


def dealable(num_prompts: int, num_generations: int, num_processes: int) -> int:
    """The least number of prompts from `num_prompts` up whose rows can be dealt evenly."""
    unit = num_processes // math.gcd(num_generations, num_processes)
    return math.ceil(num_prompts / unit) * unit


def deal(draws: Sequence[Draw], rows: NDArray[np.int64], processes: Processes) -> list[list[int]]:
    """The completions of this process's part of some rows, wherever they were sampled.

    Args:
        rows: (B,) positions among the completions of all processes, draw after draw and in each
            in the order of the processes; the same on every process, which all must call this.
    """
    if len(draws) == 1 and len(rows) == draws[0].rewards.numel():
        return draws[0].completion_ids  # every row, where it is already
    parts = processes.gather_objects([draw.completion_ids for draw in draws])
    everything = [ids for number in range(len(draws)) for part in parts for ids in part[number]]
    return [everything[row] for row in processes.local_slice(rows).tolist()]
