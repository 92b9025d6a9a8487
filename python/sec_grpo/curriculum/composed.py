"""A strategy put together from a signal, an estimator and an allocator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._labels import Label
from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum.allocators import ALLOCATORS, Allocator, Softmax
from sec_grpo.curriculum.estimators import EMA, ESTIMATORS, DiscountedBeta, Estimator
from sec_grpo.curriculum.signals import SIGNALS
from sec_grpo.curriculum.strategy import Feedback, Strategy


def _part(kind: str, value: Any, known: dict[str, type[Any]]) -> Any:
    """The part itself, or that of a name or of a mapping {name, parameters}."""
    if isinstance(value, tuple(known.values())):
        return value
    parameters: dict[str, Any] = {}
    name = value
    if isinstance(value, Mapping):
        parameters = dict(value)
        name = parameters.pop("name", None)
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{kind} must be one of {', '.join(known)}, by name, as {{'name': ..., parameters}}, "
            f"or an object of its class; got {value!r:.60}"
        )
    fields = [f.name for f in dataclasses.fields(known[name])]
    if unknown := sorted(set(parameters) - set(fields)):
        raise ValueError(
            f"unknown parameters of {kind} {name}: {', '.join(unknown)}; it has: "
            f"{', '.join(fields) or 'none'}"
        )
    return known[name](**parameters)


@dataclass(frozen=True)
class Composed(Strategy):
    """signal -> estimator -> allocator: the strategies of the literature differ in these three.

    p = allocator(score(estimate)), the estimate of each arm made from what the signal measures in
    its groups. SEC is ("abs_advantage", EMA(0.5), Softmax(1.0)), DUMP ("abs_advantage",
    Window(300), UCB(1.0, 0.1)), `Learnability` ("success_variance", EMA(0.5), Softmax(0.05)).

    Args:
        signal: "abs_advantage", "abs_deviation", "success_variance", "learning_progress" or
            "regret"; see `sec_grpo.curriculum.signals`.
        estimator: EMA, Window, DiscountedBeta or Gaussian; an object, a name ("ema") or a mapping
            ({"name": "ema", "alpha": 0.3}).
        allocator: Softmax, UCB, Thompson or Greedy, given likewise.
        success_threshold: a rollout is a success when its reward is at least this.

    With "success_variance", Thompson samples the variance itself, taking the deviation of the
    success rate for that of the score.

    Raises TypeError or ValueError, naming the parameter, for anything else.
    """

    signal: str = "abs_advantage"
    estimator: Estimator = field(default_factory=EMA)
    allocator: Allocator = field(default_factory=Softmax)
    success_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise ValueError(f"signal must be one of {', '.join(SIGNALS)}, got {self.signal!r}")
        estimator = _part("estimator", self.estimator, ESTIMATORS)
        if isinstance(estimator, DiscountedBeta) and SIGNALS[self.signal].relative:
            raise ValueError(
                "estimator discounted_beta needs a signal in [0, 1], such as success_variance, not "
                f"{self.signal}, whose changes may be negative"
            )
        object.__setattr__(self, "estimator", estimator)
        object.__setattr__(self, "allocator", _part("allocator", self.allocator, ALLOCATORS))
        threshold = real_parameter("success_threshold", self.success_threshold, "a finite number")
        object.__setattr__(self, "success_threshold", threshold)

    def parameters(self) -> dict[str, Any]:
        """Names and parameters of the parts."""
        parts: dict[str, Any] = {"signal": self.signal, "success_threshold": self.success_threshold}
        for kind in ("estimator", "allocator"):
            part = getattr(self, kind)
            parts[kind] = {"name": type(part).__name__, **dataclasses.asdict(part)}
        return parts

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Nothing seen of any arm."""
        signal = SIGNALS[self.signal]
        self.memory["observed"] = np.zeros(len(arms), dtype=np.int64)
        if signal.relative:
            self.memory["last"] = np.full(len(arms), np.nan)
        self.estimator.start(self.memory, len(arms), signal.prior)
        return self._weights()

    def observe(self, feedback: Feedback) -> NDArray[np.float64]:
        """Measure, estimate, allocate."""
        signal = SIGNALS[self.signal]
        values = signal.measure(feedback, self.success_threshold)
        arms = feedback.arm_indices()
        observed = np.bincount(arms, minlength=len(self.memory["observed"]))
        some = feedback.advantages if feedback.rewards is None else feedback.rewards
        assert some is not None
        seen = arms
        if signal.relative:
            last = self.memory["last"]
            means = np.bincount(arms, weights=values, minlength=len(last))[feedback.arms]
            change = values - last[arms]
            # An arm's first batch has nothing to be compared with.
            known = ~np.isnan(change)
            seen, values = arms[known], change[known]
        if len(seen):
            self.estimator.update(self.memory, seen, values, some.shape[1])
        # Nothing is kept of a batch that the estimator refuses.
        if signal.relative:
            last[feedback.arms] = means / observed[feedback.arms]
        self.memory["observed"] += observed
        return self._weights()

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """Weigh the new arms too."""
        return self._weights()

    def values(self) -> NDArray[np.float64]:
        """(K,) scores."""
        return np.asarray(SIGNALS[self.signal].score(self.estimator.mean(self.memory)))

    def _weights(self) -> NDArray[np.float64]:
        return self.allocator.log_weights(
            self.values(),
            self.estimator.deviation(self.memory),
            self.memory["observed"],
            self.sizes > 0,
        )
