"""Runs of the simulated learner under every curriculum, on equal terms.

T steps, B prompts a batch, G rollouts a prompt, L trained levels, K arms, S seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum import (
    Curriculum,
    DynamicSampling,
    Strategy,
    get_strategy,
    strategy_names,
)
from sec_grpo.simulation.learner import LearnerSettings, SimulatedLearner

Array = NDArray[np.float64]

# Apart, so that neither the search for static weights nor the prompts see the seeds compared.
_PROMPT_STREAM, _ROLLOUT_STREAM, _SEARCH_SEED = 1, 2, 1_000_000
_HELD_OUT_PROMPTS = 400
_SEARCH = {"mixtures": 24, "seeds": 2, "finalists": 5, "final_seeds": 6}
_FORMAT_REWARD = 0.1


@dataclass(frozen=True)
class Scenario:
    """What the learner starts from, and what else is in the data.

    Attributes:
        name: on the command line.
        title: in plots and tables.
        learner: the constants.
        extra: None, "noise" (an arm whose reward is a coin flip) or "unsolvable" (an arm that is
            never solved, with a format reward of 0.1 for half its rollouts).
    """

    name: str
    title: str
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    extra: str | None = None


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("base", "weak base"),
        Scenario("strong", "strong base", LearnerSettings(skills=(3.8, 2.8, 2.1, 1.6, 1.1))),
        Scenario("noise", "an arm of coin-flip rewards", extra="noise"),
        Scenario("unsolvable", "an unsolvable arm, format reward", extra="unsolvable"),
    )
}


@dataclass(frozen=True)
class Method:
    """A curriculum to compare.

    Attributes:
        name: in plots and tables.
        strategy: name of the strategy, and its parameters.
        gate: whether groups of equal rewards are refilled (`DynamicSampling`).
    """

    name: str
    strategy: str
    parameters: dict[str, Any] = field(default_factory=dict)
    gate: bool = False

    def make(self, steps: int) -> Strategy:
        """The strategy; a schedule without its length gets that of the run."""
        parameters = dict(self.parameters)
        if self.strategy in ("ordered", "reverse", "e2h_gaussian"):
            parameters.setdefault("steps", steps)
        if self.strategy == "staged":
            parameters.setdefault("stages", max(1, steps // 8))
        return get_strategy(self.strategy, **parameters)


def default_methods() -> list[Method]:
    """Every built-in strategy in one untuned setting, SEC also at the authors' other end."""
    named = {"static_weights", "composed"}
    methods = [Method(name, name) for name in strategy_names() if name not in named]
    methods += [
        Method("sec tau=0.2", "sec", {"temperature": 0.2}),
        Method(
            "raw |A| tau=0.2",
            "composed",
            {"signal": "abs_deviation", "allocator": {"name": "softmax", "temperature": 0.2}},
        ),
        Method("random + gate", "random", gate=True),
        Method("sec + gate", "sec", gate=True),
    ]
    return methods


@dataclass(frozen=True)
class Protocol:
    """What every method gets alike; `steps * batch_size * num_generations` rollouts in all."""

    seeds: int = 20
    steps: int = 150
    batch_size: int = 64
    num_generations: int = 8
    prompts_per_level: int = 300
    first_seed: int = 0

    @property
    def rollouts(self) -> int:
        """Rollouts of a run; refills are paid out of them."""
        return self.steps * self.batch_size * self.num_generations


@dataclass
class Outcome:
    """One run: accuracies at its end, and where its prompts went.

    Attributes:
        held_out: probability of solving a prompt of the held-out level.
        trained: the same averaged over the trained levels.
        mean_level: (T,) mean trained level of each step's batch.
        allocation: (T, K) share of each arm in the prompts generated.
        rollouts: generated, with refills.
    """

    held_out: float
    trained: float
    mean_level: Array
    allocation: Array
    rollouts: int

    @property
    def extra_share(self) -> float:
        """Share of the last arm over the run."""
        return float(self.allocation[:, -1].mean())


class _World:
    """The prompts of a scenario and a learner, for one seed."""

    def __init__(self, scenario: Scenario, protocol: Protocol, seed: int) -> None:
        settings, count = scenario.learner, protocol.prompts_per_level
        self.num_levels = len(settings.skills) - 1
        generator = np.random.default_rng([_PROMPT_STREAM, seed])
        self.levels = np.repeat(np.arange(self.num_levels), count)
        self.arms = self.levels
        if scenario.extra is not None:
            self.levels = np.concatenate([self.levels, np.full(count, -1)])
            self.arms = np.where(self.levels < 0, self.num_levels, self.levels)
        self.difficulties = generator.normal(0.0, settings.prompt_spread, len(self.levels))
        self.probes = generator.normal(0.0, settings.prompt_spread, _HELD_OUT_PROMPTS)
        self._generator = np.random.default_rng([_ROLLOUT_STREAM, seed, 1])
        self.learner = SimulatedLearner(settings, [_ROLLOUT_STREAM, seed, 0])
        self._extra_reward = _FORMAT_REWARD if scenario.extra == "unsolvable" else 1.0

    def rollouts(self, indices: NDArray[np.int64], size: int) -> tuple[NDArray[np.bool_], Array]:
        """(B, G) whether solved, and rewards."""
        levels = self.levels[indices]
        known = levels >= 0
        solved = np.zeros((len(indices), size), dtype=bool)
        solved[known] = self.learner.answer(levels[known], self.difficulties[indices][known], size)
        rewards = solved.astype(np.float64)
        coins = self._generator.random((len(indices), size)) < 0.5
        rewards[~known] = self._extra_reward * coins[~known]
        return solved, rewards

    def accuracy(self, level: int) -> float:
        """Mean probability of solving a prompt of the level."""
        levels = np.full(len(self.probes), level)
        return float(self.learner.success(levels, self.probes).mean())


def group_normalised(rewards: Array) -> Array:
    """(B, G) (r - mean) / (std + 1e-4), unbiased std: the advantage of GRPO."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return np.asarray(centred / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4))


def run(
    strategy: Strategy, scenario: Scenario, protocol: Protocol, seed: int, gate: bool = False
) -> Outcome:
    """One run of a strategy through the public `Curriculum`."""
    world = _World(scenario, protocol, seed)
    curriculum = Curriculum(world.arms, strategy, seed)
    refills = DynamicSampling() if gate else DynamicSampling(max_refills=0)
    used, size = 0, protocol.num_generations
    mean_level, allocation = [], []
    while used < protocol.rollouts:
        batch = refills.start(protocol.batch_size)
        solved_rounds = []
        while batch.num_missing:
            indices = curriculum.draw(batch.num_missing)
            solved, rewards = world.rollouts(indices, size)
            solved_rounds.append(solved)
            batch.add(indices, rewards=rewards)
        indices, solved = batch.indices, np.concatenate(solved_rounds)
        advantages = group_normalised(batch.rewards)
        curriculum.observe(indices, advantages=advantages, rewards=batch.rewards)
        kept = batch.selected()
        levels = world.levels[indices]
        world.learner.learn(
            levels[kept], world.difficulties[indices[kept]], solved[kept], advantages[kept]
        )
        used += len(indices) * size
        known = levels[levels >= 0]
        mean_level.append(float(known.mean()) if known.size else np.nan)
        counts = np.bincount(world.arms[indices], minlength=curriculum.num_arms)
        allocation.append(counts / len(indices))
    trained = float(np.mean([world.accuracy(level) for level in range(world.num_levels)]))
    return Outcome(
        world.accuracy(world.num_levels),
        trained,
        np.asarray(mean_level),
        np.asarray(allocation),
        used,
    )


@dataclass
class Comparison:
    """Outcomes of all methods in one scenario, seed by seed.

    Attributes:
        outcomes: method -> S outcomes, in the order of the seeds.
        best_static: the best fixed mixture found, its weights and its S outcomes.
    """

    scenario: Scenario
    protocol: Protocol
    outcomes: dict[str, list[Outcome]]
    best_static: tuple[list[float], list[Outcome]] | None


def simulate(
    methods: Sequence[Method],
    scenarios: Sequence[Scenario],
    protocol: Protocol,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Comparison]:
    """All methods in all scenarios, on the same seeds.

    Args:
        methods: names must differ; one called "random" is what the others are compared with.
        scenarios, protocol: what to run.
        processes: worker processes.
        progress: called with (runs done, runs in all).

    Raises ValueError for bad arguments, before anything runs.
    """
    _check(methods, protocol, processes)
    tasks: list[tuple[str, str, Callable[..., Any], tuple[Any, ...]]] = []
    for scenario in scenarios:
        for method in methods:
            for seed in range(protocol.first_seed, protocol.first_seed + protocol.seeds):
                tasks.append(
                    (scenario.name, method.name, _run_method, (method, scenario, protocol, seed))
                )
        tasks.append((scenario.name, "", _best_static, (scenario, protocol)))
    found: dict[tuple[str, str], list[Any]] = {}
    for (scenario_name, method_name, _, _), result in zip(
        tasks, _all(tasks, processes, progress), strict=True
    ):
        found.setdefault((scenario_name, method_name), []).append(result)
    return [
        Comparison(
            scenario,
            protocol,
            {method.name: found[scenario.name, method.name] for method in methods},
            found[scenario.name, ""][0],
        )
        for scenario in scenarios
    ]


def _check(methods: Sequence[Method], protocol: Protocol, processes: int) -> None:
    if not methods:
        raise ValueError("methods must hold at least one method, got none")
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"methods must have different names, got {', '.join(names)}")
    minimum = {"seeds": 2, "steps": 1, "batch_size": 1, "num_generations": 2}
    for name, least in minimum.items():
        if getattr(protocol, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(protocol, name)}")
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    for method in methods:
        method.make(protocol.steps)


def _all(
    tasks: Sequence[tuple[str, str, Callable[..., Any], tuple[Any, ...]]],
    processes: int,
    progress: Callable[[int, int], None] | None,
) -> list[Any]:
    report = progress or (lambda done, total: None)
    if processes == 1:
        results = []
        for _, _, function, arguments in tasks:
            results.append(function(*arguments))
            report(len(results), len(tasks))
        return results
    results = [None] * len(tasks)
    # Spawned, not forked: the parent may hold threads. The long searches go first.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        order = sorted(range(len(tasks)), key=lambda i: tasks[i][1] != "")
        futures = {pool.submit(tasks[i][2], *tasks[i][3]): i for i in order}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                results[futures[future]] = future.result()
                report(done, len(tasks))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _run_method(method: Method, scenario: Scenario, protocol: Protocol, seed: int) -> Outcome:
    return run(method.make(protocol.steps), scenario, protocol, seed, method.gate)


def _best_static(scenario: Scenario, protocol: Protocol) -> tuple[list[float], list[Outcome]]:
    """The best of random mixtures on seeds of their own, and its outcomes on the compared ones."""
    num_arms = len(scenario.learner.skills) - 1 + (scenario.extra is not None)
    generator = np.random.default_rng(_SEARCH_SEED)
    mixtures = list(generator.dirichlet(np.ones(num_arms), _SEARCH["mixtures"]))
    mixtures += [np.full(num_arms, 1.0 / num_arms)]
    seeds = itertools.count(_SEARCH_SEED)

    def score(mixture: Array, count: int) -> float:
        return float(np.mean([one(mixture, next(seeds)).held_out for _ in range(count)]))

    def one(mixture: Array, seed: int) -> Outcome:
        strategy = get_strategy("static_weights", weights=mixture.tolist())
        return run(strategy, scenario, protocol, seed)

    first = sorted(mixtures, key=lambda m: -score(m, _SEARCH["seeds"]))
    best = max(first[: _SEARCH["finalists"]], key=lambda m: score(m, _SEARCH["final_seeds"]))
    compared = range(protocol.first_seed, protocol.first_seed + protocol.seeds)
    return [round(float(w), 3) for w in best], [one(best, seed) for seed in compared]


def settings_of(scenario: Scenario) -> dict[str, Any]:
    """The constants of a scenario, for a file of results."""
    return dataclasses.asdict(scenario.learner)
