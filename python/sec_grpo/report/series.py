"""Numbers computed from a run's log. T logged steps, K arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sec_grpo.report.log import Evaluation, FloatArray, RunLog

SMOOTHING_SHARE = 0.08  # of the logged steps, on the whole window of a moving average
OUTCOMES = ("all_fail", "format_only", "mixed", "all_pass")
TIME_PARTS = ("rollout", "reward", "curriculum", "logprobs", "update")


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """The 95% Wilson score interval of a success share seen in ``count`` trials."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def smoothing_window(count: int) -> int:
    """The odd number of logged steps of a moving average over a run of ``count``."""
    return max(1, round(count * SMOOTHING_SHARE)) | 1


def _windowed(values: FloatArray, window: int) -> tuple[FloatArray, FloatArray]:
    """Sum and number of the finite values in a centred window of rows; (T,) or (T, K)."""
    seen = np.isfinite(values)
    zero = np.zeros((1, *values.shape[1:]))
    half = window // 2
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    first = np.maximum(np.arange(len(values)) - half, 0)

    def total(rows: FloatArray) -> FloatArray:
        sums = np.concatenate([zero, np.cumsum(rows, axis=0)])
        return sums[last] - sums[first]

    return total(np.where(seen, values, 0.0)), total(seen.astype(np.float64))


def smooth(values: FloatArray, window: int) -> FloatArray:
    """The centred mean of the finite values in ``window`` (odd) rows; the ends use what is there.

    NaN where a window holds no value. ``values`` is (T,) or (T, K).
    """
    sums, counts = _windowed(values, window)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0.5)


def drawn(run: RunLog) -> FloatArray:
    """Prompts drawn of each arm since the logged step before, (T, K)."""
    return np.diff(run.draws, axis=0, prepend=np.zeros((1, len(run.arms))))


def drawn_share(run: RunLog) -> FloatArray:
    """Each arm's share of the prompts drawn, over the smoothing window; (T, K)."""
    smoothed = smooth(drawn(run), smoothing_window(len(run.steps)))
    total = smoothed.sum(axis=1, keepdims=True)
    return np.divide(smoothed, total, out=np.full_like(smoothed, np.nan), where=total > 0)


def mean_advantage(run: RunLog) -> FloatArray:
    """Mean |A| over the prompts of each step, (T,)."""
    weights = np.where(np.isfinite(run.abs_advantage) & (drawn(run) > 0), drawn(run), 0.0)
    total = weights.sum(axis=1)
    weighted = (weights * np.nan_to_num(run.abs_advantage)).sum(axis=1)
    return np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0)


def effective_arms(run: RunLog) -> FloatArray:
    """exp of the entropy of the arms' probabilities: K when uniform, 1 on one arm; (T,)."""
    p = run.probability
    entropy = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), p), axis=1)
    return np.exp(entropy)


def mean_level(run: RunLog) -> FloatArray:
    """Mean rank of the arms under their probabilities, 1 the first; (T,)."""
    return run.probability @ np.arange(1.0, len(run.arms) + 1)


def staleness(run: RunLog) -> FloatArray:
    """Training steps since an arm was last drawn, since the start before that; (T, K).

    NaN where draws were not logged.
    """
    fresh = drawn(run) > 0
    steps = run.steps.astype(np.float64)[:, None]
    last = np.maximum.accumulate(np.where(fresh, steps, 0.0), axis=0)
    return np.where(np.isfinite(run.draws), steps - last, np.nan)


@dataclass(frozen=True)
class Success:
    """Success of the arms over the smoothing window; arrays (T, K)."""

    rate: FloatArray
    low: FloatArray
    high: FloatArray


def success(run: RunLog) -> Success:
    """Share of rollouts that succeed, with its 95% Wilson interval, over the smoothing window.

    NaN where the window holds no rollout of the arm. The rollouts of a prompt are taken as
    independent, which they are given the prompt only: with few prompts it is wider in truth.
    """
    window = smoothing_window(len(run.steps))
    count, _ = _windowed(run.rollouts, window)
    passed, _ = _windowed(run.successes, window)
    known = count > 0.5
    n = np.where(known, count, 1.0)
    rate = np.where(known, passed / n, np.nan)
    z2 = 1.959964**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    spread = np.maximum(rate * (1 - rate) / n + z2 / (4 * n**2), 0.0)
    half = math.sqrt(z2) * np.sqrt(spread) / (1 + z2 / n)
    return Success(rate, np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0))


def outcome_shares(run: RunLog) -> FloatArray:
    """Share of the groups of each of OUTCOMES, over the smoothing window; (T, 4)."""
    shares = np.stack([run.scalar(f"groups/{name}") for name in OUTCOMES], axis=1)
    return smooth(shares, smoothing_window(len(run.steps)))


def step_times(run: RunLog) -> dict[str, float]:
    """Mean seconds of an optimizer step by part, and "other"; empty where not logged.

    The first logged step is left out of a longer run: it compiles, allocates and loads.
    """
    rows = slice(1, None) if len(run.steps) > 2 else slice(None)
    total = run.scalar("step_time")[rows]
    parts = {name: run.scalar(f"time/{name}")[rows] for name in TIME_PARTS}
    known = np.isfinite(total) & np.isfinite(parts["update"])
    if not known.any():
        return {}
    means = {name: float(np.nan_to_num(values[known]).mean()) for name, values in parts.items()}
    means["other"] = max(0.0, float(total[known].mean()) - sum(means.values()))
    return means


def mean_accuracy(item: Evaluation, levels: Sequence[str]) -> float:
    """Mean over the levels that were measured, NaN without any."""
    values = np.array([item.accuracy.get(level, np.nan) for level in levels])
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else math.nan


def accuracy_curve(
    run: RunLog, levels: Sequence[str], against: str
) -> tuple[FloatArray, FloatArray]:
    """Evaluations of a run: steps or seconds, and the mean accuracy of ``levels``."""
    points = [(getattr(e, against), mean_accuracy(e, levels)) for e in run.evals]
    table = np.array([p for p in points if math.isfinite(p[0] + p[1])]).reshape(-1, 2)
    return table[:, 0], table[:, 1]
