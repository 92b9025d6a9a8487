"""Signs that a run's curriculum went wrong, as plain sentences."""

from __future__ import annotations

import numpy as np

from sec_grpo.report.log import FloatArray, RunLog

DOMINANT_PROBABILITY = 0.8
DOMINANT_STEPS = 20  # logged steps in a row

# An arm is suspect when its |A| is high for this run's advantage estimator, whose scale differs
# (group-normalised |A| reaches 0.93 with G = 8, leave-one-out 0.57, raw 0.5), ...
HIGH_ADVANTAGE_SHARE = 0.5  # of the 95th percentile of |A| over all arms and steps
HIGH_ADVANTAGE_MIN = 0.2
# ... while its success does not rise. At 100 observations of 4 groups of 8 coin flips the change
# has a standard error of about 0.03, so noise escapes at one look in 40.
FLAT_OBSERVATIONS = (50, 100)  # fewest, most: the latest ones are used
FLAT_CHANGE = 0.1

STARVING_STEPS = 50
STARVING_PROBABILITY = 0.001  # used where draws were not logged

NAMED_ARMS = 8  # in one sentence

LATEST_STEPS = 50
DEAD_SHARE = 0.9
TRUNCATED_SHARE = 0.5

WATCHED_SCALARS = ("loss", "grad_norm", "reward")


def alarms(run: RunLog) -> list[str]:
    """Sentences for what a reader of ``run`` should look into; empty where nothing stands out.

    They cover: a loss, gradient norm or reward that is not finite; an arm above 80% probability for
    20 logged steps or more; an arm whose mean |A| stays high while its reward does not rise; arms
    not drawn for 50 steps; nine groups in ten without a gradient, or half of the completions
    truncated, over the last 50 logged steps; damaged lines of the log. Open-loop schedules
    (ordered, staged) cause dominant and starving arms by design.
    """
    found = _damaged(run)
    if len(run.steps):
        found += [*_non_finite(run), *_dominant(run), *_flat(run), *_starving(run)]
        found += [*_dead(run), *_truncated(run)]
    return found


def _damaged(run: RunLog) -> list[str]:
    if not run.damaged:
        return []
    lines = "1 damaged line" if len(run.damaged) == 1 else f"{len(run.damaged)} damaged lines"
    return [f"{lines} of the log left out, the first: {run.damaged[0]}."]


def _latest(run: RunLog, name: str) -> float:
    """Mean of a scalar over the last logged steps; NaN where they are too few."""
    values = run.scalar(name)[-LATEST_STEPS:]
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) >= LATEST_STEPS else float("nan")


def _dead(run: RunLog) -> list[str]:
    share = _latest(run, "frac_reward_zero_std")
    if not share >= DEAD_SHARE:
        return []
    passed = _latest(run, "groups/all_pass")
    why = f", in {passed:.0%} of all because every rollout succeeds" if np.isfinite(passed) else ""
    return [
        f"In {share:.0%} of the groups of the last {LATEST_STEPS} logged steps all rewards were "
        f"equal{why}: they teach nothing. Train on other levels, sample at a higher temperature, "
        "or set dynamic_sampling_refills."
    ]


def _truncated(run: RunLog) -> list[str]:
    share = _latest(run, "completions/clipped_ratio")
    if not share >= TRUNCATED_SHARE:
        return []
    return [
        f"{share:.0%} of the completions of the last {LATEST_STEPS} logged steps were cut at "
        "max_completion_length before they ended: raise it, or ask for shorter answers."
    ]


def _non_finite(run: RunLog) -> list[str]:
    found = []
    for name in WATCHED_SCALARS:
        steps = run.non_finite.get(name, ())
        if steps:
            found.append(
                f"{name} was NaN or infinite at {len(steps)} of {len(run.steps)} steps, "
                f"first at step {steps[0]}: lower the learning rate or look for overflow."
            )
    return found


def _longest_stretch(flags: np.ndarray) -> tuple[int, int]:
    """First and last index of the longest stretch of True; (0, -1) without one."""
    best = (0, -1)
    start = 0
    for i, flag in enumerate(flags):
        if not flag:
            start = i + 1
        elif i - start > best[1] - best[0]:
            best = (start, i)
    return best


def _dominant(run: RunLog) -> list[str]:
    if len(run.arms) == 1:
        return []
    found = []
    for k, arm in enumerate(run.arms):
        first, last = _longest_stretch(run.probability[:, k] > DOMINANT_PROBABILITY)
        if last - first + 1 >= DOMINANT_STEPS:
            found.append(
                f"Arm {arm} had more than {DOMINANT_PROBABILITY:.0%} probability from step "
                f"{run.steps[first]} to {run.steps[last]}: the other arms hardly train. "
                "Raise the temperature or set a floor probability."
            )
    return found


def _trend(steps: FloatArray, values: FloatArray) -> tuple[float, float]:
    """Change of the least-squares line over ``steps``, and its standard error."""
    x = steps - steps.mean()
    spread = float(np.sum(x**2))
    slope = float(np.sum(x * values)) / spread
    residual = values - values.mean() - slope * x
    error = float(np.sqrt(np.sum(residual**2) / (len(x) - 2) / spread))
    span = float(steps[-1] - steps[0])
    return slope * span, error * span


def _flat(run: RunLog) -> list[str]:
    observed = run.abs_advantage[np.isfinite(run.abs_advantage)]
    if observed.size == 0:
        return []
    high = max(HIGH_ADVANTAGE_MIN, HIGH_ADVANTAGE_SHARE * float(np.percentile(observed, 95)))
    fewest, most = FLAT_OBSERVATIONS
    found = []
    for k, arm in enumerate(run.arms):
        both = np.isfinite(run.abs_advantage[:, k]) & np.isfinite(run.reward[:, k])
        rows = np.flatnonzero(both)[-most:]
        if len(rows) < fewest:
            continue
        advantage = float(run.abs_advantage[rows, k].mean())
        change, error = _trend(run.steps[rows].astype(np.float64), run.reward[rows, k])
        # `<=` so that a reward that never moves, whose error is zero too, counts as flat.
        if advantage >= high and change < FLAT_CHANGE and change <= 2 * error:
            found.append(
                f"Arm {arm} kept a mean |A| of {advantage:.2f} over its last {len(rows)} "
                f"observations while its reward did not rise (mean "
                f"{run.reward[rows, k].mean():.2f}, change {change:+.2f}): a random reward or a "
                "broken verifier looks like this. Read some of its completions and their rewards."
            )
    return found


def _last_drawn(run: RunLog, k: int) -> int | None:
    """The last step that drew arm k, 0 for never, None where neither draws nor p tell."""
    draws = run.draws[:, k]
    known = np.flatnonzero(np.isfinite(draws))
    if len(known):
        grew = known[np.diff(draws[known], prepend=0.0) > 0]
    else:
        probability = run.probability[:, k]
        if not np.isfinite(probability).any():
            return None
        grew = np.flatnonzero(probability > STARVING_PROBABILITY)
    return int(run.steps[grew[-1]]) if len(grew) else 0


def _starving(run: RunLog) -> list[str]:
    arms = []
    for k, arm in enumerate(run.arms):
        last = _last_drawn(run, k)
        if last is None or int(run.steps[-1]) - last < STARVING_STEPS:
            continue
        rewards = run.reward[np.isfinite(run.reward[:, k]), k]
        reward = f", reward {rewards[-1]:.2f} then" if len(rewards) else ""
        arms.append(f"{arm} (never)" if last == 0 else f"{arm} (last at step {last}{reward})")
    if not arms:
        return []
    if len(arms) > NAMED_ARMS:
        arms[NAMED_ARMS:] = [f"and {len(arms) - NAMED_ARMS} more"]
    return [
        f"Not drawn for {STARVING_STEPS} steps or more: {', '.join(arms)}. Unless mastered, such "
        "an arm needs a floor probability or a higher temperature."
    ]
