"""What the adapter uses of slime, in a few lines of our own, for where slime is not installed.

Facts of THUDM/slime (August 2026), slime/rollout/data_source.py and slime/utils/types.py: names,
what the calls take and return, and the file that `save` writes.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


@dataclass
class Sample:
    group_index: int | None = None
    index: int | None = None
    prompt: str = ""
    response: str = ""
    reward: Any = None
    metadata: dict = field(default_factory=dict)

    def get_reward_value(self, args: Any) -> float:
        return self.reward[args.reward_key] if args.reward_key else self.reward


class Dataset:
    """`origin_samples` in the order of the file, `samples` in that of the epoch."""

    def __init__(self, path: str) -> None:
        lines = Path(path).read_text().splitlines()
        self.origin_samples = [
            Sample(prompt=row["prompt"], metadata=row["metadata"]) for row in map(json.loads, lines)
        ]
        self.samples = self.origin_samples[::-1]

    def __len__(self) -> int:
        return len(self.samples)


class RolloutDataSource:
    def __init__(self, args: Any) -> None:
        self.args = args
        self.sample_offset = self.sample_group_index = self.sample_index = 0
        self.dataset = Dataset(args.prompt_data) if args.prompt_data else None

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        start = self.sample_offset
        self.sample_offset += num_samples
        groups = []
        for prompt in self.dataset.samples[start : start + num_samples]:
            group = []
            for _ in range(self.args.n_samples_per_prompt):
                sample = copy.deepcopy(prompt)
                sample.group_index, sample.index = self.sample_group_index, self.sample_index
                self.sample_index += 1
                group.append(sample)
            self.sample_group_index += 1
            groups.append(group)
        return groups

    def _file(self, folder: str, rollout_id: int) -> Path:
        return Path(folder) / "rollout" / f"global_dataset_state_dict_{rollout_id}.pt"

    def save(self, rollout_id: int) -> None:
        path = self._file(self.args.save, rollout_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"sample_index": self.sample_index}, path)

    def load(self, rollout_id: int | None = None) -> None:
        if self.args.load is not None and self._file(self.args.load, rollout_id).exists():
            state = torch.load(self._file(self.args.load, rollout_id))
            self.sample_index = state["sample_index"]

    def __len__(self) -> int:
        return len(self.dataset)


class RolloutDataSourceWithBuffer(RolloutDataSource):
    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self.buffer: list[list[Sample]] = []

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        buffered, self.buffer = self.buffer[:num_samples], self.buffer[num_samples:]
        missing = num_samples - len(buffered)
        return buffered + (super().get_samples(num_samples=missing) if missing else [])

    def add_samples(self, samples: list[list[Sample]]) -> None:
        self.buffer += samples


def install() -> None:
    """Make this file importable as slime.rollout.data_source."""
    for name in ("slime", "slime.rollout"):
        sys.modules[name] = ModuleType(name)
    sys.modules["slime.rollout.data_source"] = sys.modules[__name__]


def uninstall() -> None:
    for name in list(sys.modules):
        if name == "slime" or name.startswith(("slime.", "sec_grpo.integrations.slime")):
            del sys.modules[name]
