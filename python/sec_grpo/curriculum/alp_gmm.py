"""A teacher over continuous knobs of a task generator.

d knobs, n tasks asked for at once.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sec_grpo.curriculum._parameters import count_parameter, real_parameter

_FORMAT = "sec_grpo.alp_gmm"
_EPSILON = 1e-6
_LARGEST = 1e30


class ALPGMM:
    """Absolute learning progress under a Gaussian mixture: ALP-GMM (arXiv 1910.07224).

    A task is a point of knobs in a box, scaled to [0, 1]^d. Its absolute learning progress is
    |r - r'|, r' the reward of the nearest task observed before. Every `fit_every` observed tasks a
    Gaussian mixture is fitted to (task, ALP) of the last ones, with the number of components in
    2 .. max_components of the lowest AIC. A new task comes from a component chosen in proportion
    to its mean ALP, or with probability `random_share`, and always before the first fit, from the
    whole box.

    Departures: 1. a component's sample outside the box is clipped to it, as in the authors' code;
    2. "the last ones" are the last `fit_every` tasks, as there.

    Fitting needs scikit-learn: pip install 'sec-grpo[teachers]'.

    Args:
        low, high: (d,) bounds of the knobs, low < high; numbers for one knob.
        seed: of the tasks drawn.
        fit_every: observed tasks between fits, at least 2 * max_components.
        max_components: at least 2.
        random_share: in [0, 1].
        capacity: tasks remembered for finding the nearest; the oldest are forgotten.

    Raises TypeError or ValueError, naming the argument, for anything else, and ImportError without
    scikit-learn.
    """

    def __init__(
        self,
        low: ArrayLike,
        high: ArrayLike,
        *,
        seed: int = 0,
        fit_every: int = 250,
        max_components: int = 10,
        random_share: float = 0.2,
        capacity: int = 20_000,
    ) -> None:
        if importlib.util.find_spec("sklearn") is None:
            raise ImportError("ALPGMM needs scikit-learn: pip install 'sec-grpo[teachers]'")
        self._low, self._high = _bounds(low, high)
        self._max_components = count_parameter("max_components", max_components)
        if self._max_components < 2:
            raise ValueError(f"max_components must be at least 2, got {max_components}")
        self._fit_every = count_parameter("fit_every", fit_every)
        if self._fit_every < 2 * self._max_components:
            raise ValueError(
                f"fit_every must be at least 2 * max_components = {2 * self._max_components}, got "
                f"{fit_every}"
            )
        self._random_share = real_parameter("random_share", random_share, "a number in [0, 1]")
        if not 0.0 <= self._random_share <= 1.0:
            raise ValueError(f"random_share must be a number in [0, 1], got {random_share!r}")
        self._capacity = count_parameter("capacity", capacity)
        if self._capacity < self._fit_every:
            raise ValueError(
                f"capacity must be at least fit_every = {self._fit_every}, got {capacity}"
            )
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
        self._seed = int(seed)
        self._generator = np.random.Generator(np.random.Philox(key=self._seed))
        dim = len(self._low)
        self._tasks = np.zeros((0, dim))
        self._rewards = np.zeros(0)
        self._progress = np.zeros(0)
        self._observed = 0
        self._weights = np.zeros(0)
        self._means = np.zeros((0, dim))
        self._factors = np.zeros((0, dim, dim))

    def sample(self, n: int) -> NDArray[np.float64]:
        """(n, d) float64 knobs of the next tasks, in their own units."""
        count = count_parameter("n", n)
        dim = len(self._low)
        # As many random numbers whichever branch a task takes: draws of a state are comparable.
        branch, choice = self._generator.random((2, count))
        uniform = self._generator.random((count, dim))
        noise = self._generator.standard_normal((count, dim))
        if not self._weights.any():
            return self._low + uniform * (self._high - self._low)
        component = np.searchsorted(np.cumsum(self._weights), choice, side="right")
        component = np.minimum(component, len(self._weights) - 1)
        points = self._means[component] + np.einsum("nij,nj->ni", self._factors[component], noise)
        points = np.where((branch < self._random_share)[:, None], uniform, points)
        return self._low + np.clip(points, 0.0, 1.0) * (self._high - self._low)

    def observe(self, knobs: ArrayLike, rewards: ArrayLike) -> None:
        """Learn from tasks (n, d) and their mean rewards (n,), in order.

        Raises ValueError for wrong shapes, for NaN, infinity and rewards above 1e30 in size, and
        for knobs so far outside the box that no mixture fits; then nothing was used.
        """
        points, values = self._checked(knobs, rewards)
        points = (points - self._low) / (self._high - self._low)
        # Arrays are replaced, never written to.
        before, random_state = dict(vars(self)), self._generator.bit_generator.state
        try:
            for point, reward in zip(points, values, strict=True):
                self._add(point, reward)
                if self._observed % self._fit_every == 0:
                    self._fit()
        except Exception:
            vars(self).update(before)
            self._generator.bit_generator.state = random_state
            raise

    def metrics(self) -> dict[str, float]:
        """tasks, those observed; components, of the mixture (0 before the first fit); alp, mean of
        the last `fit_every`."""
        recent = self._progress[-self._fit_every :]
        alp = float(recent.mean()) if len(recent) else 0.0
        return {
            "tasks": float(self._observed),
            "components": float(len(self._weights)),
            "alp": alp,
        }

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from, in numbers, strings, lists and dicts."""
        return {
            "format": _FORMAT,
            "version": 1,
            "parameters": self._parameters(),
            "generator": _listed(self._generator.bit_generator.state),
            "observed": self._observed,
            **{name: getattr(self, f"_{name}").tolist() for name in self._ARRAYS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as the teacher that gave the state would.

        Raises ValueError with the reason for a state of another teacher or version, and for a
        damaged one; the teacher is then unchanged.
        """
        if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
            raise ValueError(f"the state must be what ALPGMM.state_dict() gave, got {state!r:.60}")
        if state.get("version") != 1:
            raise ValueError(
                f"the state has version {state.get('version')!r}, this version reads 1; update "
                "sec-grpo"
            )
        if state.get("parameters") != self._parameters():
            raise ValueError(
                f"the state is of another teacher: {state.get('parameters')}, this one has "
                f"{self._parameters()}"
            )
        try:
            arrays, observed, generator = self._read(state)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"the state is damaged: {reason}; load another one") from error
        self._generator = generator
        self._observed = observed
        for name, array in arrays.items():
            setattr(self, f"_{name}", array)

    _ARRAYS = ("tasks", "rewards", "progress", "weights", "means", "factors")

    def _read(
        self, state: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[np.float64]], int, np.random.Generator]:
        """The arrays, the number of tasks and the generator of a state, checked."""
        arrays = {name: np.array(state[name], dtype=np.float64) for name in self._ARRAYS}
        dim, tasks, components = len(self._low), len(arrays["tasks"]), len(arrays["weights"])
        shapes = {
            "tasks": (tasks, dim),
            "rewards": (tasks,),
            "progress": (tasks,),
            "weights": (components,),
            "means": (components, dim),
            "factors": (components, dim, dim),
        }
        for name, shape in shapes.items():
            if arrays[name].size == 0 == math.prod(shape):
                arrays[name] = np.zeros(shape)  # a list of no rows does not tell their length
            if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                raise ValueError(
                    f"{name} must be finite numbers of shape {shape}, got {arrays[name].shape}"
                )
        observed = int(state["observed"])
        if tasks != min(observed, self._capacity):
            raise ValueError(f"it holds {tasks} tasks of {observed} observed")
        generator = np.random.Philox()
        generator.state = state["generator"]
        return arrays, observed, np.random.Generator(generator)

    def _parameters(self) -> dict[str, Any]:
        return {
            "low": self._low.tolist(),
            "high": self._high.tolist(),
            "seed": self._seed,
            "fit_every": self._fit_every,
            "max_components": self._max_components,
            "random_share": self._random_share,
            "capacity": self._capacity,
        }

    def _checked(
        self, knobs: ArrayLike, rewards: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        points = np.asarray(knobs, dtype=np.float64)
        values = np.asarray(rewards, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != len(self._low):
            raise ValueError(f"knobs must have shape (n, {len(self._low)}), got {points.shape}")
        if values.shape != (len(points),):
            raise ValueError(f"rewards must have shape ({len(points)},), got {values.shape}")
        for name, array in (("knobs", points), ("rewards", values)):
            if not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite, got NaN or infinity")
        if (np.abs(values) > _LARGEST).any():
            largest = np.abs(values).max()
            raise ValueError(f"rewards must be at most 1e30 in size, got {largest:g}")
        return points, values

    def _add(self, point: NDArray[np.float64], reward: float) -> None:
        progress = 0.0
        if len(self._tasks):
            nearest = np.argmin(((self._tasks - point) ** 2).sum(axis=1))
            progress = abs(reward - self._rewards[nearest])
        keep = slice(-(self._capacity - 1) if self._capacity > 1 else None, None)
        self._tasks = np.vstack([self._tasks[keep], point])
        self._rewards = np.append(self._rewards[keep], reward)
        self._progress = np.append(self._progress[keep], progress)
        self._observed += 1

    def _fit(self) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits

        recent = slice(-self._fit_every, None)
        data = np.column_stack([self._tasks[recent], self._progress[recent]])
        seed = int(self._generator.integers(2**31))
        mixtures = [
            GaussianMixture(k, covariance_type="full", reg_covar=_EPSILON, random_state=seed)
            for k in range(2, self._max_components + 1)
        ]
        # Some hundred points: threads cost more than they compute, on a busy machine seconds.
        with threadpool_limits(1), warnings.catch_warnings():
            # Tasks on a grid, or repeated, have fewer places than components; AIC sees to it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            best = min((mixture.fit(data) for mixture in mixtures), key=lambda m: m.aic(data))
        progress = np.clip(best.means_[:, -1], 0.0, None)
        total = progress.sum()
        count = len(progress)
        self._weights = progress / total if total > 0.0 else np.full(count, 1.0 / count)
        self._means = best.means_[:, :-1]
        self._factors = np.linalg.cholesky(best.covariances_[:, :-1, :-1])


def _bounds(low: ArrayLike, high: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    bounds = []
    for name, value in (("low", low), ("high", high)):
        array = np.atleast_1d(np.asarray(value, dtype=np.float64))
        if array.ndim != 1 or not array.size or not np.isfinite(array).all():
            raise ValueError(f"{name} must be (d,) finite numbers, got {value!r:.60}")
        bounds.append(array)
    if bounds[0].shape != bounds[1].shape or not (bounds[0] < bounds[1]).all():
        raise ValueError(f"low must be below high in every knob, got {low!r:.60} and {high!r:.60}")
    return bounds[0], bounds[1]


def _listed(value: Any) -> Any:
    """The value with lists for its arrays, and numbers for those of numpy."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
