"""The completions of an evaluation as a parquet file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sec_grpo.evaluation.journal import Sample
from sec_grpo.evaluation.judging import Judgement
from sec_grpo.tasks import answers
from sec_grpo.tasks.mixture import truth_of


class CompletionsTable:
    """One record for each completion: what was asked, answered, found, and the row's own columns.

    Args:
        rows: the rows of the data set.
        categories: the label of each row.
        texts: the prompt of each row as the model read it.
        solved: the least score of a solved completion.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        categories: Sequence[Any],
        texts: Sequence[str],
        solved: float,
    ) -> None:
        self._rows, self._categories, self._texts = rows, categories, texts
        self._solved = solved
        self._records: list[dict[str, Any]] = []

    def add(
        self,
        places: Sequence[tuple[int, int]],
        samples: Sequence[Sample],
        judgements: Sequence[Judgement],
    ) -> None:
        """Add a batch."""
        parts = zip(places, samples, judgements, strict=True)
        self._records += [self._record(*part) for part in parts]

    def _record(
        self, place: tuple[int, int], sample: Sample, judgement: Judgement
    ) -> dict[str, Any]:
        row = self._rows[place[0]]
        record = {
            "row": place[0],
            "sample": place[1],
            "level": str(self._categories[place[0]]),
            "prompt": self._texts[place[0]],
            "completion": sample.text,
            "answer": answers.last_answer(sample.text),
            "ground_truth": _shown(row),
            "score": float(judgement.score),
            "solved": judgement.score >= self._solved,
            "reason": judgement.reason,
            "well_formed": judgement.well_formed,
            "tokens": len(sample.ids),
            "finished": sample.finished,
            **{f"rewards/{name}": value for name, value in judgement.rewards.items()},
        }
        own = {name: value for name, value in row.items() if _is_plain(value)}
        return {**{name: own[name] for name in own if name not in record}, **record}

    def write(self, path: Path) -> Path:
        """Write the file, whole or not at all; the records in the order of rows and samples."""
        import pyarrow
        import pyarrow.parquet

        self._records.sort(key=lambda record: (record["row"], record["sample"]))
        names = dict.fromkeys(name for record in self._records for name in record)
        leading = [name for name in _LEADING if name in names]
        columns = {
            name: [_encodable(record.get(name)) for record in self._records]
            for name in (*leading, *(name for name in names if name not in leading))
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            pyarrow.parquet.write_table(
                pyarrow.table({name: _array(values) for name, values in columns.items()}), temporary
            )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path


# What a reader looks at first.
_LEADING = (
    "row",
    "sample",
    "level",
    "solved",
    "score",
    "reason",
    "answer",
    "ground_truth",
    "prompt",
    "completion",
)


def _shown(row: Mapping[str, Any]) -> str | None:
    try:
        truth = truth_of(row)
    except ValueError:
        return None
    return truth if isinstance(truth, str) else repr(truth)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))


def _encodable(value: Any) -> Any:
    """Text without lone surrogates, which UTF-8 and parquet do not have."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _array(values: list[Any]) -> Any:
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):
        # A column of the rows with values of several kinds.
        return pyarrow.array([None if value is None else str(value) for value in values])
