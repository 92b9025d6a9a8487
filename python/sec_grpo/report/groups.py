"""Which runs belong together, and what each is called."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sec_grpo.report.log import RunLog

SEEDS = ("seed", "data_seed", "generation_seed")
# Where a run writes and what it is called do not make it another experiment.
_PLACES = ("output_dir", "run_name", "logging_dir", "hub_model_id", "trackio_space_id")
_SEED_SUFFIX = re.compile(r"(?:^|(?<=[A-Za-z])(?=\d)|[-_. ])(?:seed|s|run)?[-_. ]?\d+$", re.I)


@dataclass(frozen=True)
class RunGroup:
    """Runs of one experiment, which differ in their seeds at most."""

    label: str  # of no other group
    runs: tuple[RunLog, ...]
    number: int  # position among the groups, which decides the colour


def settings(run: RunLog) -> dict[str, Any]:
    """What defines a run's experiment: strategy and config, seeds and places left out."""
    ignored = {*SEEDS, *_PLACES}
    config = {name: value for name, value in run.config.items() if name not in ignored}
    return {"strategy": run.strategy, **config}


def differing_settings(runs: Sequence[RunLog]) -> dict[str, list[Any]]:
    """The settings, seeds included, in which runs differ: name -> value of each run."""
    each = [{**settings(run), **{s: run.config.get(s) for s in SEEDS}} for run in runs]
    names = dict.fromkeys(name for one in each for name in one)
    found = {name: [one.get(name) for one in each] for name in names}
    return {
        name: values
        for name, values in found.items()
        if len({json.dumps(v, sort_keys=True, default=str) for v in values}) > 1
    }


def _stem(run: RunLog) -> str:
    """The run's name without the number of a seed; the folder above where nothing else is left."""
    stem = _SEED_SUFFIX.sub("", run.name).rstrip("-_. ")
    return stem or run.path.parent.parent.name


def _replicates(runs: Sequence[RunLog]) -> bool:
    """Whether runs of one stem and equal settings differ in their seeds alone."""
    seeds = [tuple(run.config.get(name) for name in SEEDS) for run in runs]
    return len(set(seeds)) == len(seeds)


def group_runs(runs: Sequence[RunLog]) -> list[RunGroup]:
    """The runs by experiment, in the order of their first.

    Runs belong together when arms and settings are equal, and their names are, or differ in a
    number at the end while their seeds differ too.
    """
    by_stem: dict[str, list[RunLog]] = {}
    for run in runs:
        key = [_stem(run), list(run.arms), settings(run)]
        by_stem.setdefault(json.dumps(key, sort_keys=True, default=str), []).append(run)
    found: list[tuple[str, list[RunLog]]] = []
    for alike in by_stem.values():
        if len(alike) > 1 and _replicates(alike):
            found.append((_stem(alike[0]), alike))
            continue
        by_name: dict[str, list[RunLog]] = {}
        for run in alike:
            by_name.setdefault(run.name, []).append(run)
        found += by_name.items()
    found.sort(key=lambda group: min(runs.index(run) for run in group[1]))
    labels = _distinct([name for name, _ in found], [group[0] for _, group in found])
    return [
        RunGroup(label, tuple(group), i)
        for i, (label, (_, group)) in enumerate(zip(labels, found, strict=True))
    ]


def run_labels(runs: Sequence[RunLog]) -> list[str]:
    """A name for each run; what tells apart runs that share one is added."""
    return _distinct([run.name for run in runs], runs)


_DETAILS: tuple[Callable[[RunLog], str], ...] = (
    lambda run: str(run.strategy.get("name", "")),
    lambda run: run.path.parent.name,
    lambda run: f"{run.path.parent.parent.name}/{run.path.parent.name}",
)


def _distinct(names: Sequence[str], runs: Sequence[RunLog]) -> list[str]:
    labels = list(names)
    for name in dict.fromkeys(names):
        same = [i for i, other in enumerate(names) if other == name]
        if len(same) == 1:
            continue
        numbered = [str(n) for n in range(1, len(same) + 1)]
        tried = [[detail(runs[i]) for i in same] for detail in _DETAILS]
        details = next((d for d in tried if len(set(d)) == len(d) and all(d)), numbered)
        for i, detail in zip(same, details, strict=True):
            labels[i] = f"{name} ({detail})"
    return labels
