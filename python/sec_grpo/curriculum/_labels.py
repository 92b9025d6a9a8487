"""Categories of prompts to arms: distinct labels in order, and the arm number of each prompt."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo import _core

Label = int | float | str | tuple["Label", ...]


@dataclass(frozen=True)
class Coded:
    """Labels as K distinct ones in order, plain objects, and the (N,) number of each prompt's."""

    arms: tuple[Label, ...]
    codes: NDArray[np.int32]


_DIGITS = re.compile("([0-9]+)")


def _plain_label(label: Any) -> Label:
    """The label as a plain Python object; TypeError or ValueError with the reason otherwise."""
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, tuple):
        return tuple(_plain_label(part) for part in label)
    if isinstance(label, bool):
        return label
    if isinstance(label, str):
        return label if type(label) is str else str.__str__(label)
    if isinstance(label, int):
        return int(label)
    if isinstance(label, float):
        if math.isnan(label):
            raise ValueError("got NaN; drop the prompts without a category or give them one")
        return float(label)
    if label is None:
        raise ValueError("got None; drop the prompts without a category or give them one")
    raise TypeError(
        f"got {label!r:.60} of type {type(label).__name__}; a label must be a number, a string or "
        "a tuple of these"
    )


def _sort_key(label: Label) -> tuple[Any, ...]:
    """Numbers by value, then strings with their digits read as numbers, then tuples by element."""
    if isinstance(label, tuple):
        return (2, tuple(_sort_key(part) for part in label))
    if isinstance(label, str):
        parts = _DIGITS.split(label)
        digits = (part.lstrip("0") for part in parts[1::2])
        return (
            1,
            parts[0],
            tuple(zip(((len(d), d) for d in digits), parts[2::2], strict=True)),
            label,
        )
    return (0, label)


def _sorted(labels: Iterable[Label]) -> list[Label]:
    labels = list(labels)
    # One type of number needs no keys; with 10^6 arms the keys would take seconds.
    if all(type(label) in (int, float) for label in labels):
        return sorted(labels)
    return sorted(labels, key=_sort_key)


def _is_listing(value: Any) -> bool:
    """Whether the value is iterable with an order of its own, and no text."""
    try:
        iter(value)
    except TypeError:
        return hasattr(value, "detach")  # a tensor without dimensions
    return not isinstance(value, (str, bytes, Mapping, Set))


def _as_items(categories: Any) -> NDArray[Any] | list[Any]:
    """A numeric array, or a list of labels."""
    if not _is_listing(categories):
        raise TypeError(
            "categories must be a sequence with one label a prompt, got a "
            f"{type(categories).__name__}"
        )
    if hasattr(categories, "detach"):
        categories = categories.detach().cpu().numpy()
    elif hasattr(categories, "to_pylist"):  # pyarrow, whose to_numpy refuses what it has to copy
        categories = categories.to_pylist()
    elif hasattr(categories, "to_numpy"):
        categories = categories.to_numpy()
    if not isinstance(categories, np.ndarray):
        return list(categories)
    if categories.ndim != 1:
        raise ValueError(
            f"categories must have shape (N,), got {categories.shape}; make a tuple of the "
            "features of each prompt: [tuple(row) for row in categories.tolist()]"
        )
    return categories if categories.dtype.kind in "iuf" else categories.tolist()


def _distinct(items: NDArray[Any] | list[Any]) -> tuple[list[Any], NDArray[Any]]:
    """The distinct labels, unchecked, and for each prompt the place of its label among them.

    Those of an array are in order.
    """
    if isinstance(items, np.ndarray):
        if items.dtype.kind in "iu":
            low, high = int(items.min()), int(items.max())
            if high - low < 2 * len(items) + 1024:
                return _distinct_in_range(items, low, high)
        values, codes = np.unique(items, return_inverse=True)
        return values.tolist(), codes
    seen: dict[Any, int] = {}
    number: Callable[[Any, int], int] = seen.setdefault
    try:
        codes = np.fromiter((number(item, len(seen)) for item in items), np.int32, len(items))
    except TypeError:
        for position, item in enumerate(items):
            try:
                hash(item)
            except TypeError:
                raise TypeError(
                    f"categories[{position}] must be a number, a string or a tuple of these, got "
                    f"{item!r:.60} of type {type(item).__name__}"
                ) from None
        raise
    return list(seen), codes


def _distinct_in_range(
    items: NDArray[Any], low: int, high: int
) -> tuple[list[Any], NDArray[np.int32]]:
    """`_distinct` of integers in [low, high], without sorting."""
    native = np.ascontiguousarray(items, dtype=items.dtype.newbyteorder("="))
    offsets, codes = _core.distinct_in_range(native, low, high - low + 1)
    if len(offsets) == high - low + 1:
        return list(range(low, high + 1)), codes
    return [low + offset for offset in offsets.tolist()], codes


def _checked(labels: Sequence[Any], where: Callable[[int], str]) -> list[Label]:
    checked = []
    for number, label in enumerate(labels):
        try:
            checked.append(_plain_label(label))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where(number)}: {error}") from None
    return checked


def arms_and_codes(
    categories: Any, arms: Sequence[Any] | None
) -> tuple[tuple[Label, ...], NDArray[np.int32]]:
    """The arms in order and the (N,) int32 arm number of each prompt."""
    if isinstance(categories, Coded):
        return categories.arms, categories.codes
    items = _as_items(categories)
    if len(items) == 0:
        raise ValueError("categories must hold the label of at least one prompt, got none")
    distinct, codes = _distinct(items)
    if arms is None and isinstance(items, np.ndarray) and items.dtype.kind in "iu":
        # Plain integers in order: with 10^6 of them the checks below would take a second.
        return tuple(distinct), np.ascontiguousarray(codes, dtype=np.int32)

    def position(number: int) -> str:
        return f"categories[{int(np.argmax(codes == number))}]"

    labels = _checked(distinct, position)
    if arms is None:
        order = _sorted(labels)
    else:
        if not _is_listing(arms):
            raise TypeError(f"arms must be a list of labels, got a {type(arms).__name__}")
        order = _checked(list(arms), lambda number: f"arms[{number}]")
    number_of = {label: number for number, label in enumerate(order)}
    if len(number_of) != len(order):
        twice = next(label for i, label in enumerate(order) if number_of[label] != i)
        raise ValueError(f"arms must be distinct, got {twice!r} more than once")
    for number, label in enumerate(labels):
        if label not in number_of:
            raise ValueError(
                f"{position(number)} is {label!r}, which is not among the {len(order)} arms; add "
                "it to arms or drop the prompt"
            )
    place = np.fromiter((number_of[label] for label in labels), np.int32, len(labels))
    if (place == np.arange(len(place))).all():
        return tuple(order), np.ascontiguousarray(codes, dtype=np.int32)
    return tuple(order), place[codes]


def added_arms(
    categories: Any, arms: tuple[Label, ...]
) -> tuple[tuple[Label, ...], NDArray[np.int32]]:
    """`arms` with the labels that are new in order at the end, and the (M,) arm of each prompt."""
    fresh, codes = arms_and_codes(categories, None)
    known = set(arms)
    grown = (*arms, *(label for label in fresh if label not in known))
    number_of = {label: number for number, label in enumerate(grown)}
    place = np.fromiter((number_of[label] for label in fresh), np.int32, len(fresh))
    return grown, place[codes]


def labels_hash(arms: tuple[Label, ...]) -> int:
    """A 64-bit fingerprint of the labels in their order."""
    digest = hashlib.blake2b(repr(arms).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def listed(arms: Sequence[Label]) -> str:
    """The first labels, for a message."""
    return ", ".join(map(repr, arms[:8])) + (", ..." if len(arms) > 8 else "")


def label_text(label: Label) -> str:
    """The label as part of a metric's name; the elements of a tuple joined by commas."""
    return ",".join(map(label_text, label)) if isinstance(label, tuple) else str(label)
