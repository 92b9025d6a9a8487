"""The curriculum: a data set's categories, a strategy, and the native core that draws.

N prompts, K arms, B prompts a batch, G rollouts a prompt.
"""

from __future__ import annotations

import copy
import math
import operator
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sec_grpo import _core
from sec_grpo._core import CurriculumStateError
from sec_grpo.curriculum import _codec
from sec_grpo.curriculum._arrays import as_groups, as_indices
from sec_grpo.curriculum._labels import Label, added_arms, arms_and_codes, label_text, labels_hash
from sec_grpo.curriculum.factored import Factored
from sec_grpo.curriculum.features import Bins, Feature, read_categories
from sec_grpo.curriculum.sec import SEC
from sec_grpo.curriculum.strategy import Feedback, Strategy

_FORMAT = "sec_grpo.curriculum"
# Above this many arms a dict of one metric an arm is a table, which is what arm_table() is for.
_MAX_ARMS_IN_METRICS = 64


class Curriculum:
    """Draws batches of prompts, arm by arm, and learns from their rollouts.

    Each of the B slots of a batch draws an arm i.i.d. from `probabilities()`, then a prompt of
    that arm uniformly without replacement; an arm whose prompts are used up is reshuffled on its
    own and starts its next epoch. Hence a prompt occurs twice in a batch only if an epoch of its
    arm ends inside the batch, and must when the arm has fewer prompts than slots.

    With the same categories, strategy, seed and observations the draws are the same on every
    platform, of one's own strategies too where these keep to arithmetic and square roots (numpy's
    exp and log differ between processors). All methods may be called from several threads.

    Args:
        categories: (N,) sequence or array with the label of each prompt: integers, floats,
            strings, or tuples of these.
        strategy: how the arms are chosen; `SEC()` by default. A copy is bound.
        seed: integer in [0, 2**64).
        arms: the labels in the order of the arms, which may include labels that no prompt has.
            By default the distinct labels: numbers by value, then strings with the digits in
            them read as numbers ("level 2" before "level 10"), then tuples element by element.

    Raises ValueError or TypeError, with the position, for a label that is None, NaN, of another
    type or missing in `arms`, and for what `strategy` refuses.
    """

    def __init__(
        self,
        categories: Any,
        strategy: Strategy | None = None,
        seed: int = 0,
        *,
        arms: Sequence[Any] | None = None,
    ) -> None:
        strategy = SEC() if strategy is None else strategy
        if not isinstance(strategy, Strategy):
            raise TypeError(
                f"strategy must be a Strategy such as SEC(), got {strategy!r:.60}; "
                "get_strategy(name) makes one from its name"
            )
        distinct, codes = arms_and_codes(categories, arms)
        self._start(distinct, codes, strategy, _seed(seed))

    def _start(
        self, arms: tuple[Label, ...], codes: NDArray[np.int32], strategy: Strategy, seed: int
    ) -> None:
        self._arms, self._given = arms, strategy
        self._engine = _core.Engine(codes, len(arms), seed, labels_hash(arms))
        self._sizes = self._engine.sizes()
        self._sizes.flags.writeable = False
        # Python code of strategies runs under this lock; the core has its own.
        self._lock = threading.RLock()
        self._use(copy.copy(strategy))
        self._identity = f"{strategy.name} {_codec.text(strategy.parameters())}"
        self._assign(self._strategy._bind(self._engine, self._arms, self._sizes))

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        features: Feature | Sequence[Feature] = ("difficulty", "type"),
        *,
        strategy: Strategy | None = None,
        seed: int = 0,
        arms: Literal["joint", "independent"] = "joint",
        bins: Mapping[str, Bins] | None = None,
    ) -> Curriculum:
        """A curriculum over the rows of a data set, with one or several of its columns as features.

        Only these columns are read, not the prompts, unless a feature is a function of the row.

        Args:
            dataset: a datasets.Dataset, a pandas DataFrame, a pyarrow Table, a dict of columns, or
                a list of dicts, one a row. Prompt i of the curriculum is row i.
            features: a column's name or a function of the row, whose values are the arms' labels;
                or a list of these, also of one, whose tuples of values are. A dotted name reaches
                into dicts: "extra_info.difficulty". The arms are sorted by the first feature, then
                by the second, and so on.
            strategy, seed: as in `Curriculum`.
            arms: "joint" learns about each tuple that occurs on its own; "independent" about each
                feature on its own, with a copy of the strategy for each (see `Factored`).
            bins: for features that are numbers, by name: how many bins of about equally many rows
                to make of them, at least 2, labelled by their least and greatest value, "0.1..0.35"
                (fewer where many rows share a value, which is never split); or the edges of bins
                low <= value < high, the last with its upper edge, labelled by these.

        Raises ValueError or TypeError, naming the row and the column, for a missing value, a value
        that is no number, string or tuple of these, or one outside the edges of its bins; for a
        column that is not there, and for what `Curriculum` refuses.
        """
        if arms not in ("joint", "independent"):
            raise ValueError(f'arms must be "joint" or "independent", got {arms!r}')
        found = read_categories(dataset, features, bins)
        if arms == "independent" and found.features:
            # Sorted labels are left to be sorted: a state is then that of any data set with them.
            is_sorted = all(arms_and_codes(labels, None)[0] == labels for labels in found.features)
            strategy = Factored(
                SEC() if strategy is None else strategy, None if is_sorted else found.features
            )
        return cls(found.coded, strategy, seed)

    def __repr__(self) -> str:
        return (
            f"Curriculum({self.num_prompts} prompts, {self.num_arms} arms, {self._strategy!r}, "
            f"seed={self.seed}, step={self.step})"
        )

    @property
    def arms(self) -> tuple[Label, ...]:
        """The K labels, plain Python objects, in the order of the arms."""
        return self._arms

    @property
    def num_arms(self) -> int:
        """K."""
        return len(self._arms)

    @property
    def num_prompts(self) -> int:
        """N."""
        return self._engine.num_prompts

    @property
    def seed(self) -> int:
        """Seed of the draws; that of the state after `load_state_dict`."""
        return self._engine.seed

    @property
    def step(self) -> int:
        """Number of draws made."""
        return self._engine.step

    @property
    def strategy(self) -> Strategy:
        """The bound copy of the strategy."""
        return self._strategy

    def add(self, categories: Any) -> NDArray[np.int64]:
        """Take in more prompts; returns the (M,) int64 indices that they get, N to N + M - 1.

        A label that no arm has makes a new arm, after the others. New prompts join the current
        epoch of their arm: its prompts not drawn yet and the new ones are equally likely next. The
        order of the prompts of the other arms does not change.

        To load a state that was saved afterwards, build the curriculum on all prompts in the same
        order, with `arms=` where the new labels do not sort last, or add them again first.

        Args:
            categories: (M,) labels of the new prompts, as in the constructor.

        Raises what the constructor raises for labels, and what the strategy raises when it cannot
        take the new arms; then nothing has changed.
        """
        with self._lock:
            arms, codes = added_arms(categories, self._arms)
            before = self._engine.num_prompts
            sizes = np.bincount(codes, minlength=len(arms)).astype(np.int64)
            sizes[: len(self._sizes)] += self._sizes
            sizes.flags.writeable = False
            step = self._engine.step
            strategy = self._strategy._grown(arms, sizes, self.num_arms, step)
            weights = strategy.on_grow(step)
            if weights is not None:
                _check_weights(weights, sizes, strategy.name)
            # Nothing from here on is refused.
            self._engine.add(codes, len(arms), labels_hash(arms))
            self._arms, self._sizes = arms, sizes
            self._use(strategy)
            self._assign(weights)
            return np.arange(before, before + len(codes))

    def draw(self, batch_size: int) -> NDArray[np.int64]:
        """(batch_size,) int64 prompt indices of the next batch.

        Raises TypeError unless batch_size is an integer, ValueError unless it is in [1, 2**31).
        """
        size = _batch_size(batch_size)
        with self._lock:
            engine = self._engine
            if self._before_draw is not None:
                self._assign(self._before_draw(engine.step))
            indices = engine.draw(size)
            if self._after_draw is not None:
                self._assign(self._after_draw(engine.step))
        return indices

    def observe(self, indices: Any, *, advantages: Any = None, rewards: Any = None) -> None:
        """Learn from the rollouts of a batch.

        Args:
            indices: (B,) prompt indices, not necessarily those of the last draw.
            advantages: (B, G) group-relative advantages, row i those of the group of indices[i].
            rewards: (B, G) rewards of the same rollouts.

        At least one of the arrays is needed; SEC needs the advantages. Groups that a trainer
        drops, because all their rewards are equal, belong into the batch all the same. Raises
        ValueError for wrong shapes and for NaN, infinity and values above 1e30 in size, TypeError
        for values that are not numbers, IndexError for an index outside [0, N); then nothing of
        the batch was used.
        """
        index_array = as_indices(indices)
        advantage_array = as_groups("advantages", advantages)
        reward_array = as_groups("rewards", rewards)
        with self._lock:
            engine = self._engine
            reduction = engine.reduce(index_array, advantage_array, reward_array)
            feedback = Feedback(
                engine, reduction, engine.step, index_array, advantage_array, reward_array
            )
            self._assign(self._strategy.observe(feedback))
            engine.record(reduction)

    def probabilities(self) -> NDArray[np.float64]:
        """(K,) float64 probability of each arm: the integer weights sampled from, over their sum.

        Exactly 0 for an arm without prompts.
        """
        return self._engine.probabilities()

    def values(self) -> NDArray[np.float64]:
        """(K,) float64 what the strategy holds of each arm (Q in SEC); NaN if it holds nothing."""
        with self._lock:
            values = self._strategy.values()
            num_arms = self.num_arms
        if values is None:
            return np.full(num_arms, np.nan)
        return np.array(values, dtype=np.float64)

    def arm_indices(self, indices: Any) -> NDArray[np.int64]:
        """(B,) int64 arm number of each prompt; IndexError for one outside [0, N)."""
        return self._engine.arm_indices(as_indices(indices))

    def arm_table(self) -> dict[str, NDArray[Any]]:
        """One (K,) array a column, aligned with `arms`; the last observations in float32.

        probability; value; draws, cumulative; epochs, completed plus the fraction of the current
        one; prompts; abs_advantage, reward and dead_groups, the mean |A|, mean reward and share
        of groups that teach nothing at the last observation of the arm, NaN before the first;
        last_drawn_step, the draw (from 0) that last took a prompt of the arm, -1 before.
        """
        with self._lock:
            return {
                "probability": self.probabilities(),
                "value": self.values(),
                **self._engine.arm_table(),
            }

    def metrics(self) -> dict[str, float]:
        """Scalars for a logger.

        step; observations, calls of observe; prompts_drawn; epochs = prompts_drawn / N;
        effective_arms = exp(-sum p ln p); max_probability; mean_arm = sum p(k) k over the arm
        numbers k; abs_advantage, reward and dead_groups of the last batch observed, where known;
        and, up to 64 arms, probability/LABEL and value/LABEL.
        """
        with self._lock:
            probabilities = self.probabilities()
            values = self._strategy.values()
            summary = self._engine.summary()
            arms, num_prompts = self._arms, self.num_prompts
        positive = probabilities[probabilities > 0.0]
        metrics = {name: float(value) for name, value in summary.items() if not math.isnan(value)}
        metrics["epochs"] = metrics["prompts_drawn"] / num_prompts
        metrics["effective_arms"] = float(np.exp(-np.sum(positive * np.log(positive))))
        metrics["max_probability"] = float(probabilities.max())
        metrics["mean_arm"] = float(probabilities @ np.arange(len(arms)))
        if len(arms) <= _MAX_ARMS_IN_METRICS:
            names = [label_text(label) for label in arms]
            metrics.update(
                (f"probability/{name}", p)
                for name, p in zip(names, probabilities.tolist(), strict=True)
            )
            if values is not None:
                value_list = np.asarray(values, dtype=np.float64).tolist()
                metrics.update(
                    (f"value/{name}", v) for name, v in zip(names, value_list, strict=True)
                )
        return metrics

    def to_bytes(self) -> bytes:
        """The whole state in one piece, with a checksum."""
        with self._lock:
            strategy_state = _codec.encode(self._strategy.state_dict())
            return self._engine.serialize(self._identity, strategy_state)

    def load_bytes(self, state: bytes) -> None:
        """Continue bit for bit from what `to_bytes` gave; the seed becomes that of the state.

        Raises CurriculumStateError, a ValueError, with the reason and the way out when the state
        is damaged, of a newer version, or of another data set, other arms or another strategy;
        the curriculum is then unchanged.
        """
        if not isinstance(state, (bytes, bytearray, memoryview)):
            raise CurriculumStateError(
                f"the state must be the bytes that to_bytes() gave, got a {type(state).__name__}"
            )
        with self._lock:
            parsed = self._engine.parse(bytes(state), self._identity)
            strategy = copy.copy(self._strategy)
            strategy._bind_for_state(self._engine, self._arms, self._sizes)
            try:
                strategy.load_state_dict(_codec.decode(parsed.strategy_state))
            except Exception as error:
                raise CurriculumStateError(
                    f"strategy {strategy.name} refuses its part of the state: {error}; load a "
                    "state that this version of the strategy saved, or start without it"
                ) from error
            self._engine.restore(parsed)
            self._use(strategy)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled or copied curriculum goes on bit for bit, with its prompts and strategy."""
        with self._lock:
            codes = self._engine.arm_indices(np.arange(self.num_prompts)).astype(np.int32)
            return _unpickled, (type(self), self._arms, codes, self._given, self.to_bytes())

    def state_dict(self) -> dict[str, Any]:
        """The state as a dict of a string and bytes, for torch.save and the like."""
        return {"format": _FORMAT, "core": self.to_bytes()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue bit for bit from what `state_dict` gave; see `load_bytes` for what is raised."""
        if not isinstance(state, Mapping) or state.get("format") != _FORMAT or "core" not in state:
            raise CurriculumStateError(
                "the state must be a dict that Curriculum.state_dict() gave, with format "
                f"{_FORMAT!r} and core, got {state!r:.60}"
            )
        self.load_bytes(state["core"])

    def _use(self, strategy: Strategy) -> None:
        self._strategy = strategy
        # A hook that the strategy does not override is not called: a draw takes microseconds.
        kind = type(strategy)
        before, after = kind.before_draw, kind.after_draw
        self._before_draw = None if before is Strategy.before_draw else strategy.before_draw
        self._after_draw = None if after is Strategy.after_draw else strategy.after_draw

    def _assign(self, weights: ArrayLike | None) -> None:
        if weights is None:
            return
        array = np.ascontiguousarray(weights, dtype=np.float64)
        if array.shape != (self.num_arms,):
            raise ValueError(
                f"strategy {self._strategy.name} must return log-weights of shape "
                f"({self.num_arms},), one an arm, or None, got {array.shape}"
            )
        self._engine.assign(array)


def _unpickled(
    cls: type[Curriculum],
    arms: tuple[Label, ...],
    codes: NDArray[np.int32],
    strategy: Strategy,
    state: bytes,
) -> Curriculum:
    made = cls.__new__(cls)
    made._start(arms, codes, strategy, 0)
    made.load_bytes(state)
    return made


def _check_weights(weights: ArrayLike, sizes: NDArray[np.int64], name: str) -> None:
    array = np.asarray(weights, dtype=np.float64)
    usable = array.shape == sizes.shape and not (np.isnan(array) | (array == np.inf)).any()
    if not usable or not np.isfinite(array[sizes > 0]).any():
        raise ValueError(
            f"strategy {name} must return log-weights of shape {sizes.shape}, numbers or -inf and "
            "finite for at least one arm that has prompts"
        )


def _batch_size(batch_size: int) -> int:
    if type(batch_size) is not int:
        try:
            if isinstance(batch_size, (bool, np.bool_)):
                raise TypeError
            batch_size = operator.index(batch_size)
        except TypeError:
            raise TypeError(
                f"batch_size must be an integer of at least 1, got {batch_size!r} of type "
                f"{type(batch_size).__name__}"
            ) from None
    if not 1 <= batch_size < 2**31:
        raise ValueError(f"batch_size must be an integer in [1, 2**31), got {batch_size}")
    return batch_size


def _seed(seed: int) -> int:
    try:
        if isinstance(seed, (bool, np.bool_)):
            raise TypeError
        number = operator.index(seed)
    except TypeError:
        raise TypeError(
            f"seed must be an integer in [0, 2**64), got {seed!r} of type {type(seed).__name__}"
        ) from None
    if not 0 <= number < 2**64:
        raise ValueError(f"seed must be an integer in [0, 2**64), got {seed!r}")
    return number
