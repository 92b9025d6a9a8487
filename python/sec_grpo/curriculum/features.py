"""Categories of prompts from the features of a data set's rows.

N rows, F features, K arms.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._labels import Coded, Label, _plain_label, arms_and_codes
from sec_grpo.curriculum.columns import Column, Rows, function_name

Feature = str | Callable[[Mapping[str, Any]], Any]
Bins = int | Sequence[float]


@dataclass(frozen=True)
class Categories:
    """Every row's label, and the order of the labels.

    Attributes:
        coded: K distinct labels, values of one feature or tuples with one value of each feature, in
            order by the first feature, then the second, and so on; and the number of each row's.
        features: the values of each feature in order; empty where labels are no tuples.
    """

    coded: Coded
    features: tuple[tuple[Label, ...], ...]

    @property
    def labels(self) -> list[Label]:
        """N labels."""
        return list(map(self.coded.arms.__getitem__, self.coded.codes.tolist()))


def read_categories(
    dataset: Any,
    features: Feature | Sequence[Feature],
    bins: Mapping[str, Bins] | None = None,
) -> Categories:
    """The categories that features of the rows make; see `Curriculum.from_dataset`."""
    single = isinstance(features, str) or callable(features)
    chosen = _features([features] if single else features)
    cuts = _bins(bins, [_name(feature) for feature in chosen])
    rows = Rows(dataset)
    orders, codes = [], []
    for feature in chosen:
        column = rows.column(feature) if isinstance(feature, str) else rows.computed(feature)
        _refuse_missing(column)
        cut = cuts.get(_name(feature))
        order, code = _labels(column) if cut is None else _binned(column, cut)
        orders.append(order)
        codes.append(code)
    if single:
        arms: tuple[Label, ...] = orders[0]
        cell = codes[0]
    else:
        cells, cell = _cells(codes, [len(order) for order in orders])
        columns = [
            map(order.__getitem__, places.tolist())
            for order, places in zip(orders, cells, strict=True)
        ]
        arms = tuple(zip(*columns, strict=True))
    coded = Coded(arms, np.ascontiguousarray(cell, dtype=np.int32))
    return Categories(coded, () if single else tuple(orders))


def _features(features: Any) -> list[Feature]:
    if isinstance(features, (Mapping, bytes)) or not isinstance(features, Iterable):
        raise TypeError(
            "features must be a column's name, a function of the row, or a list of these, got "
            f"{features!r:.60}"
        )
    chosen = list(features)
    for number, feature in enumerate(chosen):
        if not (isinstance(feature, str) or callable(feature)):
            raise TypeError(
                f"features[{number}] must be a column's name or a function of the row, got "
                f"{feature!r:.60}"
            )
    if not chosen:
        raise ValueError("features must name at least one column, got none")
    names = [_name(feature) for feature in chosen]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"features must be distinct, got {twice!r} more than once")
    return chosen


def _name(feature: Feature) -> str:
    return feature if isinstance(feature, str) else function_name(feature)


def _refuse_missing(column: Column) -> None:
    missing = [-1] if column.codes.min() < 0 else []
    for number, value in enumerate(column.distinct):
        if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
            missing.append(number)
    if missing:
        row = min(map(column.first_row, missing))
        raise ValueError(
            f"row {row}: {column.title} is missing; drop the rows without a value or give them one"
        )


def _labels(column: Column) -> tuple[tuple[Label, ...], NDArray[np.int64]]:
    """The distinct labels in order, and each row's place among them."""
    labels = []
    for number, value in enumerate(column.distinct):
        try:
            labels.append(_plain_label(value))
        except (TypeError, ValueError) as error:
            row = column.first_row(number)
            raise type(error)(f"row {row}: {column.title}: {error}") from None
    order, places = arms_and_codes(labels, None)
    return order, places.astype(np.int64)[column.codes]


def _cells(
    codes: list[NDArray[np.int64]], sizes: list[int]
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """F (K,) codes of the tuples that occur, in order, and the (N,) number of each row's tuple."""
    cells: list[NDArray[np.int64]] = []
    cell = np.zeros(len(codes[0]), np.int64)
    for code, size in zip(codes, sizes, strict=True):
        # Renumbered at each feature: the product of many sizes would not fit into 64 bits.
        found, cell = np.unique(cell * size + code, return_inverse=True)
        before, last = np.divmod(found, size)
        cells = [*(places[before] for places in cells), last]
    return cells, cell


# ---- Continuous features -----------------------------------------------------------------------


def _bins(bins: Any, names: list[str]) -> dict[str, Bins]:
    """The bins as given, once each is known to be a count or rising edges of a feature."""
    if bins is None:
        return {}
    if not isinstance(bins, Mapping):
        raise TypeError(
            "bins must be a dict of a feature's name to the number of its bins or their edges, "
            f"got {bins!r:.60}"
        )
    for name, cut in bins.items():
        if name not in names:
            raise ValueError(f"bins must name features ({', '.join(names)}), got {name!r}")
        must = f"bins[{name!r}] must be an integer of at least 2 or a list of rising edges"
        if isinstance(cut, (bool, str, bytes, Mapping)):
            raise TypeError(f"{must}, got {cut!r:.60}")
        if isinstance(cut, numbers.Integral):
            if cut < 2:
                raise ValueError(f"{must}, got {cut}")
            continue
        try:
            edges = np.asarray(cut, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"{must}, got {cut!r:.60}") from None
        if edges.ndim != 1 or len(edges) < 2 or not np.all(np.diff(edges) > 0):
            raise ValueError(f"{must}, got {cut!r:.60}")
    return dict(bins)


def _binned(column: Column, cut: Bins) -> tuple[tuple[Label, ...], NDArray[np.int64]]:
    """Labels "low..high" of the bins that have rows, in order, and each row's bin."""
    for number, value in enumerate(column.distinct):
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(
                f"row {column.first_row(number)}: {column.title} is {value!r:.60}; bins are for "
                "finite numbers"
            )
    values = np.array([float(value) for value in column.distinct])
    if isinstance(cut, numbers.Integral):
        counts = np.bincount(column.codes, minlength=len(values))
        bin_of, texts = _quantile_bins(values, counts, int(cut))
    else:
        bin_of, texts = _edge_bins(column, values, np.asarray(cut, dtype=np.float64))
    used, places = np.unique(bin_of, return_inverse=True)
    return tuple(texts[number] for number in used.tolist()), places[column.codes]


def _quantile_bins(
    values: NDArray[np.float64], counts: NDArray[np.int64], num_bins: int
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Bins of as equal numbers of rows as whole values allow: a value goes by its middle rank."""
    ascending = np.argsort(values)
    upto = np.cumsum(counts[ascending])
    # In integers: bin = floor(num_bins (rows below + rows of the value / 2) / N).
    middle = 2 * upto - counts[ascending]
    bin_of = np.empty(len(values), np.int64)
    bin_of[ascending] = middle * min(num_bins, int(upto[-1])) // (2 * upto[-1])
    used, first = np.unique(bin_of[ascending], return_index=True)
    last = np.append(first[1:], len(values)) - 1
    texts = _ranges(values[ascending][first], values[ascending][last])
    return bin_of, dict(zip(used.tolist(), texts, strict=True))


def _edge_bins(
    column: Column, values: NDArray[np.float64], edges: NDArray[np.float64]
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Bins low <= value < high, the last one with its upper edge."""
    outside = (values < edges[0]) | (values > edges[-1])
    if outside.any():
        number = int(np.argmax(outside))
        raise ValueError(
            f"row {column.first_row(number)}: {column.title} is {column.distinct[number]!r}, "
            f"outside the edges {edges[0]:g} to {edges[-1]:g}; widen them, to inf if need be"
        )
    bin_of = np.searchsorted(edges[1:-1], values, side="right").astype(np.int64)
    return bin_of, dict(enumerate(_ranges(edges[:-1], edges[1:])))


def _ranges(lows: NDArray[np.float64], highs: NDArray[np.float64]) -> list[str]:
    """ "low..high", or "low" where they are equal, in 3 digits or as many as tell all apart."""
    ends = np.concatenate([lows, highs])
    finite = ends[np.isfinite(ends)]
    whole = bool(np.all((finite == np.trunc(finite)) & (np.abs(finite) < 1e15)))
    for digits in range(3, 18):
        form = ".0f" if whole else f".{digits}g"
        texts = [
            f"{low:{form}}" if low == high else f"{low:{form}}..{high:{form}}"
            for low, high in zip(lows.tolist(), highs.tolist(), strict=True)
        ]
        if len(set(texts)) == len(texts):
            break
    return texts
