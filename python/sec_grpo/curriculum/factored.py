"""Independent curricula over the features of a prompt, multiplied.

K arms, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo import _core
from sec_grpo.curriculum._elementary import log
from sec_grpo.curriculum._labels import Label, added_arms, arms_and_codes
from sec_grpo.curriculum._shadow import Shadow
from sec_grpo.curriculum.strategy import Feedback, Strategy


class _Factor:
    """The strategy of one feature, over the labels of that feature.

    Args:
        strategy: a copy of it is bound.
        column: (K,) label of each arm.
        order: the labels in order, or None to sort them.
        sizes: (K,) prompts of each arm.
    """

    def __init__(
        self,
        strategy: Strategy,
        column: tuple[Label, ...],
        order: Sequence[Label] | None,
        sizes: NDArray[np.int64],
    ) -> None:
        self.labels, codes = arms_and_codes(column, order)
        self.codes = codes.astype(np.int64)
        # Weights of bincount are float64: exact for prompts far beyond 10**8.
        prompts = np.bincount(self.codes, weights=sizes, minlength=len(self.labels))
        self.shadow = Shadow(strategy, self.labels, prompts.astype(np.int64))
        kind = type(strategy)
        self.before_draw = kind.before_draw is not Strategy.before_draw
        self.after_draw = kind.after_draw is not Strategy.after_draw

    def grown(self, column: tuple[Label, ...], sizes: NDArray[np.int64], step: int) -> _Factor:
        """The same over more arms, new labels coming last; this one stays as it is."""
        grown = copy.copy(self)
        grown.labels, codes = added_arms(column, self.labels)
        grown.codes = codes.astype(np.int64)
        prompts = np.bincount(grown.codes, weights=sizes, minlength=len(grown.labels))
        grown.shadow = self.shadow.grown(grown.labels, prompts.astype(np.int64), step)
        return grown

    def log_probabilities(self) -> NDArray[np.float64]:
        """(K,) log p_f of each arm's label, -inf where it is 0."""
        return log(self.shadow.probabilities())[self.codes]


@dataclass(frozen=True)
class Factored(Strategy):
    """One strategy for each feature, where arms are tuples with one label of each feature.

    p(l_1, ..., l_F) = prod_f p_f(l_f) / Z over the arms that have prompts, p_f the probabilities
    of strategy f over the labels of feature f. Each strategy observes the whole batch, reduced to
    the labels of its feature: of 3 types x 5 difficulties 8 numbers are learned, not 15. What it
    cannot learn is that a difficulty teaches in one type only; joint arms can.

    Args:
        strategies: one strategy, of which each feature has a copy, or F of them.
        labels: for each feature its labels in order; by default sorted as `Curriculum` sorts.

    Raises TypeError for what is no strategy. Raises ValueError when a curriculum takes it, for
    arms that are not tuples of F labels, and whenever the strategies leave no arm that has prompts
    a probability: two schedules such as `Ordered` may meet at a tuple that no prompt has.
    """

    strategies: Strategy | Sequence[Strategy]
    labels: Sequence[Sequence[Label]] | None = None
    _factors: tuple[_Factor, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        single = isinstance(self.strategies, Strategy)
        given = (self.strategies,) if single else self.strategies
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise TypeError(
                "strategies must be a Strategy such as SEC(), or a list with one for each feature, "
                f"got {self.strategies!r:.60}"
            )
        for strategy in given:
            if not isinstance(strategy, Strategy):
                raise TypeError(
                    f"strategies must hold strategies such as SEC(), got {strategy!r:.60}"
                )
        if not single:
            object.__setattr__(self, "strategies", tuple(given))
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(map(tuple, self.labels)))

    def parameters(self) -> dict[str, Any]:
        """Names and parameters of the strategies, and the labels."""
        strategies = self.strategies
        described: Any
        if isinstance(strategies, Strategy):
            described = {"name": strategies.name, **strategies.parameters()}
        else:
            described = [{"name": one.name, **one.parameters()} for one in strategies]
        return {"strategies": described, "labels": self.labels}

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bind a strategy to the labels of each feature."""
        object.__setattr__(self, "_factors", self._made(self.labels))
        return self._log_weights()

    def _made(self, labels: Sequence[Sequence[Label]] | None) -> tuple[_Factor, ...]:
        """A fresh factor for each feature of the arms, over its labels in order."""
        columns = _columns(self.arms)
        strategies = self.strategies
        if isinstance(strategies, Strategy):
            strategies = [strategies] * len(columns)
        orders = [None] * len(columns) if labels is None else labels
        for name, given in (("strategies", strategies), ("labels", orders)):
            if len(given) != len(columns):
                raise ValueError(
                    f"{name} must be one for each of the {len(columns)} features of the arms, got "
                    f"{len(given)}"
                )
        return tuple(
            _Factor(strategy, column, order, self.sizes)
            for strategy, column, order in zip(strategies, columns, orders, strict=True)
        )

    def _bind_for_state(
        self, engine: _core.Engine, arms: tuple[Label, ...], sizes: NDArray[np.int64]
    ) -> None:
        # Without the factors, which the state makes: schedules that grew may by now have nothing
        # in common at their start.
        self._attach(engine, arms, sizes)

    def _grown(
        self, arms: tuple[Label, ...], sizes: NDArray[np.int64], num_arms_before: int, step: int
    ) -> Strategy:
        columns = _columns(arms)
        factors = tuple(
            factor.grown(column, sizes, step)
            for factor, column in zip(self._factors, columns, strict=True)
        )
        grown = copy.copy(self)
        object.__setattr__(grown, "_arms", arms)
        object.__setattr__(grown, "_sizes", sizes)
        object.__setattr__(grown, "_factors", factors)
        if self.labels is not None:
            # What a state is loaded into is bound anew, over the labels that there are by then.
            object.__setattr__(grown, "labels", tuple(factor.labels for factor in factors))
        return grown

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """The product over the arms there are."""
        return self._log_weights()

    def before_draw(self, step: int) -> NDArray[np.float64] | None:
        """Forward to the strategies that have this hook."""
        having = [factor for factor in self._factors if factor.before_draw]
        return self._forward(having, lambda factor: factor.shadow.before_draw(step))

    def after_draw(self, step: int) -> NDArray[np.float64] | None:
        """Forward to the strategies that have this hook."""
        having = [factor for factor in self._factors if factor.after_draw]
        return self._forward(having, lambda factor: factor.shadow.after_draw(step))

    def observe(self, feedback: Feedback) -> NDArray[np.float64] | None:
        """Give every strategy the batch; when one refuses it, none has seen it."""
        arms = feedback.arm_indices()
        return self._forward(
            self._factors, lambda factor: factor.shadow.observe(feedback, factor.codes[arms])
        )

    def values(self) -> NDArray[np.float64] | None:
        """(K,) sum over the features of what their strategies hold; None if one holds nothing.

        With SEC of one temperature p = softmax(values / temperature) over the arms with prompts.
        """
        total = np.zeros(len(self.sizes))
        for factor in self._factors:
            values = factor.shadow.values()
            if values is None:
                return None
            total += np.asarray(values, dtype=np.float64)[factor.codes]
        return total

    def feature_tables(self) -> tuple[dict[str, Any], ...]:
        """For each feature its labels, their probability p_f, and value (None if there is none)."""
        return tuple(
            {
                "labels": factor.labels,
                "probability": factor.shadow.probabilities(),
                "value": factor.shadow.values(),
            }
            for factor in self._factors
        )

    def state_dict(self) -> dict[str, Any]:
        """For each feature its labels, the state of its strategy and of the engine of that."""
        return {
            "factors": [
                {"labels": factor.labels, **factor.shadow.state()} for factor in self._factors
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, its labels in their order: those that grew come last."""
        factors = self._made([_plain(saved["labels"]) for saved in state["factors"]])
        for factor, saved in zip(factors, state["factors"], strict=True):
            factor.shadow.load(saved)
        object.__setattr__(self, "_factors", factors)

    def _forward(
        self, factors: Sequence[_Factor], hook: Callable[[_Factor], object]
    ) -> NDArray[np.float64] | None:
        """Call a hook of some strategies; when one raises, all are left as they were."""
        if not factors:
            return None
        # The labels never change; the states may share arrays with the strategies.
        before = [
            {"labels": factor.labels, **copy.deepcopy(factor.shadow.state())}
            for factor in self._factors
        ]
        try:
            for factor in factors:
                hook(factor)
            return self._log_weights()
        except Exception:
            self.load_state_dict({"factors": before})
            raise

    def _log_weights(self) -> NDArray[np.float64]:
        weights = np.sum([factor.log_probabilities() for factor in self._factors], axis=0)
        if not np.isfinite(weights[self.sizes > 0]).any():
            raise ValueError(
                "the strategies of the features leave no arm that has prompts a probability: each "
                "gives some labels 0, and no prompt has the others together; use joint arms, or "
                "strategies that leave every label a chance, such as SEC"
            )
        return weights


def _columns(arms: tuple[Label, ...]) -> list[tuple[Label, ...]]:
    """For each feature the label of every arm."""
    lengths = {len(arm) if isinstance(arm, tuple) else 0 for arm in arms}
    if len(lengths) != 1 or lengths == {0}:
        odd = next(arm for arm in arms if not isinstance(arm, tuple) or len(lengths) > 1)
        raise ValueError(
            "the arms must be tuples with one label for each feature, as many in every arm, got "
            f"{odd!r}"
        )
    return [tuple(column) for column in zip(*arms, strict=True)]


def _plain(label: Any) -> Any:
    """A label, or a sequence of them, with tuples for the lists that a state has in their place."""
    return tuple(map(_plain, label)) if isinstance(label, (list, tuple)) else label
