"""A curriculum as slime's data source.

::

    --data-source-path sec_grpo.integrations.slime.CurriculumDataSource
    --rollout-all-samples-process-path sec_grpo.integrations.slime.observe
    --custom-config-path curriculum.yaml    # curriculum: {name: sec, category: difficulty}

slime asks its data source for groups of samples, and hands every finished group, also those that a
dynamic filter drops, to a function of the user's: `observe` takes the rewards from there. Importing
this module imports slime.

P groups, G samples of each.
"""

from __future__ import annotations

import copy
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sec_grpo.curriculum import Curriculum
from sec_grpo.errors import CheckpointError
from sec_grpo.integrations.curriculum import Pace, curriculum_over
from sec_grpo.integrations.feedback import group_feedback
from sec_grpo.integrations.methods import lacking
from sec_grpo.ops import group_advantages
from sec_grpo.report.atomic import write_atomically

try:
    from slime.rollout.data_source import RolloutDataSource, RolloutDataSourceWithBuffer
except ImportError as error:
    raise ImportError(
        f"sec_grpo.integrations.slime needs slime (https://github.com/THUDM/slime) with a "
        f"slime.rollout.data_source: {error}. It is not the package slime of the Python index",
        name="slime",
    ) from error

# The release, and for each method its arguments after self.
_TESTED = "0.3.1"
_OVERRIDDEN = {
    "get_samples": ("num_samples",),
    "save": ("rollout_id",),
    "load": ("rollout_id",),
    "add_samples": ("samples",),
}


def _check_installed() -> None:
    """ImportError, with the version, where slime's data source has other methods."""
    if (reason := lacking(RolloutDataSourceWithBuffer, _OVERRIDDEN)) is None:
        return
    try:
        version = metadata.version("slime")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    raise ImportError(
        f"sec_grpo.integrations.slime does not fit slime {version}: {reason}. It is tested with "
        f"slime {_TESTED}; install it, or a newer sec-grpo",
        name="slime",
    )


_check_installed()

_ROW = "sec_grpo_row"
"""the key in a sample's metadata that says which row of the data set it is"""


class _DrawnDataSource(RolloutDataSource):
    """slime's data source, of which every call reads the rows that a curriculum draws."""

    curriculum: Curriculum
    dataset: Any

    def get_samples(self, num_samples: int) -> list[list[Any]]:
        rows = self.curriculum.draw(num_samples).tolist()
        whole = self.dataset
        self.dataset = _Drawn([_numbered(whole.origin_samples[row], row) for row in rows])
        self.sample_offset = 0
        try:
            return super().get_samples(num_samples)
        finally:
            self.dataset, self.sample_offset = whole, 0


class CurriculumDataSource(RolloutDataSourceWithBuffer, _DrawnDataSource):
    """slime's default data source on prompts that a curriculum chooses.

    Aborted groups of partial rollouts go first, as before; the rest is drawn in one draw. The state
    is kept beside slime's own, in ``rollout/`` of its checkpoints.

    Args:
        args: slime's. ``args.curriculum``, which ``--custom-config-path`` sets, is a dict with
            `name` (the strategy), `category` (a key of a sample's metadata, or a list of them;
            dots reach into dicts), `seed` (``args.rollout_seed`` without it) and the parameters of
            the strategy.

    Raises:
        ValueError, TypeError: args.curriculum is missing or does not fit the metadata.
    """

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        spec = getattr(args, "curriculum", None)
        if not isinstance(spec, dict) or not {"name", "category"} <= spec.keys():
            raise ValueError(
                "args.curriculum must be a dict with a name and a category, got "
                f"{spec!r:.60}; set it in the file of --custom-config-path, for example "
                "curriculum: {name: sec, category: difficulty}"
            )
        if self.dataset is None:
            raise ValueError("a curriculum needs a global data set: give --prompt-data")
        spec = dict(spec)
        category, seed = spec.pop("category"), spec.pop("seed", args.rollout_seed)
        rows = [sample.metadata or {} for sample in self.dataset.origin_samples]
        self.curriculum = curriculum_over(
            spec,
            category,
            rows,
            seed=seed,
            pace=Pace(getattr(args, "num_rollout", None) or -1),
            rows_name="the metadata of --prompt-data",
        )

    def save(self, rollout_id: int) -> None:
        """Write the state of a rollout, ours before slime's."""
        write_atomically(_path(self.args.save, rollout_id), self.curriculum.to_bytes())
        super().save(rollout_id)

    def load(self, rollout_id: int | None = None) -> None:
        """Continue from the state of a rollout, if slime has one.

        Raises:
            CheckpointError: slime has one, but there is none of the curriculum, or it does not
                fit.
        """
        super().load(rollout_id)
        if self.args.load is None:
            return
        path = _path(self.args.load, rollout_id)
        slime_s = path.with_name(f"global_dataset_state_dict_{rollout_id}.pt")
        if not path.exists() and not slime_s.exists():
            return
        try:
            self.curriculum.load_bytes(path.read_bytes())
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}. Start without --load to begin a curriculum"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{path} does not fit: {error}") from error


def observe(args: Any, groups: list[list[Any]], data_source: Any) -> None:
    """Teach the curriculum the rewards of all finished groups of a rollout.

    The advantages are slime's: the reward less the mean of its group, over its standard deviation
    where ``args.grpo_std_normalization`` holds. Samples without a reward (aborted, failed) are left
    out; of a sample that fans out into several the last counts.

    Args:
        args: slime's.
        groups: (P, G) samples.
        data_source: a `CurriculumDataSource`, or its `get_samples`, which is what slime passes.

    Raises:
        ValueError: the data source has no curriculum, or a sample does not say which row it is.
    """
    source = getattr(data_source, "__self__", data_source)
    curriculum = getattr(source, "curriculum", None)
    if not isinstance(curriculum, Curriculum):
        raise ValueError(
            "the data source has no curriculum; give --data-source-path "
            "sec_grpo.integrations.slime.CurriculumDataSource with this function"
        )
    keys, rewards = [], []
    for number, group in enumerate(groups):
        for entry in group:
            sample = entry[-1] if isinstance(entry, list) else entry
            if sample.reward is not None:
                keys.append((number, _row_of(sample)))
                rewards.append(float(sample.get_reward_value(args)))
    if not keys:
        return
    values = torch.tensor(rewards, dtype=torch.float64)
    advantages = group_advantages(
        values.float(),
        torch.tensor([number for number, _ in keys]),
        scale="group" if getattr(args, "grpo_std_normalization", True) else "none",
        eps=1e-6,
    ).advantages
    found = group_feedback(keys, advantages.double().numpy(), values.numpy())
    curriculum.observe(
        [row for _, row in found.keys], advantages=found.advantages, rewards=found.rewards
    )


class _Drawn:
    """A data set of the drawn samples, as slime reads it."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)


def _numbered(sample: Any, row: int) -> Any:
    """A copy of the sample that says which row it is."""
    numbered = copy.copy(sample)
    numbered.metadata = {**(sample.metadata or {}), _ROW: row}
    return numbered


def _row_of(sample: Any) -> int:
    row = (sample.metadata or {}).get(_ROW)
    if row is None:
        raise ValueError(
            f"a sample has lost metadata[{_ROW!r}], by which the curriculum knows its row; a "
            "custom generate function must keep the metadata of the sample it was given"
        )
    return int(row)


def _path(folder: str, rollout_id: int | None) -> Path:
    return Path(folder) / "rollout" / f"sec_grpo_curriculum_{rollout_id}.bin"
