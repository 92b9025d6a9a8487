"""What `log_completions` prints, writes and sends."""

from __future__ import annotations

import io
import math
import sys
from types import SimpleNamespace

import pyarrow.dataset
import pyarrow.parquet
import pytest
from rich.console import Console

from sec_grpo.errors import RewardError
from sec_grpo.trainer.completions import SHOWN_CHARACTERS, CompletionLog


def read(path):
    return pyarrow.parquet.read_table(path).to_pydict()


class Judge:
    """Two columns beside its rewards; keeps what it saw."""

    __name__ = "judge"

    def __init__(self):
        self.rows = []

    def __call__(self, prompts, completions, completion_ids, difficulty, log_extra, **columns):
        scores = [0.5 * i + len(text) for i, text in enumerate(completions)]
        log_extra("length", [len(text) for text in completions])
        log_extra("first", [text[:1] for text in completions])
        if completion_ids[0]:
            self.rows += list(zip(prompts, completions, scores, difficulty, strict=True))
        return scores


def short(completions, **columns):
    return [1.0 if len(text) < 4 else None for text in completions]


def names(folder):
    return sorted(path.name for path in (folder / "completions").iterdir())


def test_files_hold_every_completion(make_trainer, tmp_path):
    judge = Judge()
    options = {"log_completions": True, "num_completions_to_print": 0, "reward_weights": [1.0, 0.5]}
    trainer = make_trainer(reward_funcs=[judge, short], num_iterations=2, max_steps=4, **options)
    trainer.train()
    # One a generation batch, by the first optimizer step that trains on it.
    assert names(tmp_path / "run") == ["completions_00001.parquet", "completions_00003.parquet"]
    seen = iter(judge.rows)
    for step in (1, 3):
        table = read(tmp_path / "run" / "completions" / f"completions_{step:05d}.parquet")
        columns = ["judge", "short", "length", "first", "total_reward", "advantage", "arm"]
        assert list(table) == ["step", "prompt", "completion", *columns]
        rows = [next(seen) for _ in range(8)]
        assert table["step"] == [step] * 8
        assert table["prompt"] == [row[0] for row in rows]
        assert table["completion"] == [row[1] for row in rows]
        assert table["judge"] == [row[2] for row in rows]
        assert table["arm"] == [str(row[3]) for row in rows]
        assert table["short"] == [1.0 if len(row[1]) < 4 else None for row in rows]
        totals = [row[2] + (0.5 if len(row[1]) < 4 else 0) for row in rows]
        assert table["total_reward"] == pytest.approx(totals)
        assert table["length"] == [len(row[1]) for row in rows]
        assert table["first"] == [row[1][:1] for row in rows]
    assert table["advantage"] == trainer._rollouts.advantages.tolist()
    assert next(seen, None) is None


def test_files_read_as_one_data_set(make_trainer, tmp_path):
    """A column that is empty in one file has its type there all the same."""
    calls = []

    def rare(completions, **columns):
        calls.append(1)
        return [1.0 if len(calls) > 3 else None] * len(completions)

    make_trainer(reward_funcs=[Judge(), rare], max_steps=4, log_completions=True).train()
    table = pyarrow.dataset.dataset(tmp_path / "run" / "completions").to_table()
    assert table.column("step").to_pylist() == [step for step in (1, 2, 3, 4) for _ in range(8)]
    assert table.column("rare").to_pylist() == [None] * 16 + [1.0] * 16


def test_resume_neither_repeats_nor_loses_rows(make_trainer, tmp_path):
    options = {"max_steps": 6, "num_iterations": 2, "save_strategy": "steps", "save_steps": 1}
    options |= {"log_completions": True, "num_completions_to_print": 0}
    straight = make_trainer(output_dir=str(tmp_path / "straight"), **options)
    straight.train()
    make_trainer(**{**options, "max_steps": 5}).train()
    assert "completions_00005.parquet" in names(tmp_path / "run")
    leftover = tmp_path / "run" / "completions" / ".completions_00005.parquet.7.tmp"
    leftover.write_bytes(b"half")
    # In the middle of the second generation batch: its file stays, the third's goes.
    resumed = make_trainer(**options)
    seen = []
    add = resumed._completion_log.add

    def noting(step, **columns):
        seen.append((step, names(tmp_path / "run")))
        add(step, **columns)

    resumed._completion_log.add = noting
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert seen == [(5, ["completions_00001.parquet", "completions_00003.parquet"])]
    assert names(tmp_path / "run") == names(tmp_path / "straight")
    for name in names(tmp_path / "run"):
        files = [tmp_path / run / "completions" / name for run in ("run", "straight")]
        assert read(files[0]) == read(files[1])


def test_a_new_run_puts_the_old_files_aside(make_trainer, tmp_path):
    for _ in range(3):
        make_trainer(max_steps=1, log_completions=True).train()
    for folder in ("completions", "completions.1", "completions.2"):
        assert [p.name for p in (tmp_path / "run" / folder).iterdir()] == [
            "completions_00001.parquet"
        ]


def test_nothing_is_written_without_it(make_trainer, tmp_path, capsys):
    make_trainer(max_steps=1, reward_funcs=Judge()).train()
    assert not (tmp_path / "run" / "completions").exists()
    assert "completion │" not in capsys.readouterr().out


def test_chat_keeps_its_messages(tmp_path):
    log = CompletionLog(tmp_path, num_to_print=4)
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("2", "3")]
    add(log, prompts=[prompt] * 2, completions=answers)
    table = read(tmp_path / "completions" / "completions_00007.parquet")
    assert table["prompt"] == [prompt] * 2
    assert table["completion"] == answers
    text = shown(log)
    assert "user: 1 + 1?" in text
    assert "assistant: 3" in text


def add(log, prompts, completions, **changes):
    count = len(prompts)
    columns = {
        "rewards": {"accuracy": [float(i) for i in range(count)]},
        "total_rewards": [0.5 * i for i in range(count)],
        "extra": {},
        "advantages": [-0.25] * count,
        "arms": ["easy"] * count,
        **changes,
    }
    log.add(7, prompts=prompts, completions=completions, **columns)


def shown(log, width=120):
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    log.show(console)
    return console.export_text()


def test_the_table_shows_rows_spread_over_the_batch(tmp_path):
    log = CompletionLog(tmp_path, num_to_print=2)
    add(log, [f"prompt {i // 2}" for i in range(8)], [f"answer {i}" for i in range(8)])
    text = shown(log)
    assert "step 7" in text
    for part in ("prompt", "completion", "accuracy 4.00", "total_reward 2.00", "arm easy"):
        assert part in text
    assert [i for i in range(8) if f"answer {i}" in text] == [0, 4]
    assert text.count("advantage -0.25") == 2
    assert shown(log) == "", "once each"


def test_all_unique_and_no_rows(tmp_path):
    for options, expected in (
        ({"num_to_print": None}, list(range(8))),
        ({"num_to_print": None, "unique_prompts": True}, [0, 2, 4, 6]),
        ({"num_to_print": 0}, []),
        ({"num_to_print": 100}, list(range(8))),
    ):
        log = CompletionLog(tmp_path, **options)
        add(log, [f"prompt {i // 2}" for i in range(8)], [f"answer {i}" for i in range(8)])
        text = shown(log)
        assert [i for i in range(8) if f"answer {i}" in text] == expected, options
        assert len(read(tmp_path / "completions" / "completions_00007.parquet")["step"]) == 8


def test_hostile_completions(tmp_path):
    """Markup, terminal commands, bidirectional overrides, lone surrogates, and a long text."""
    texts = ["[bold]x[/bold", "\x1b]0;title\x07\x9b2J\r", "a‮b", "\ud800", "y" * 5000 + "\x00"]
    log = CompletionLog(tmp_path, num_to_print=None)
    add(log, ["p"] * 5, texts, extra={"mixed": [1, "two", None, {"a": object()}, [3]]})
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    log.show(console)
    out = console.file.getvalue()
    assert "[bold]x[/bold" in out
    assert not any(c in out for c in "\x1b\x07\x9b\r‮\x00")
    assert out.count("y") < SHOWN_CHARACTERS + 10
    assert "[4,401 characters]" in out
    table = read(tmp_path / "completions" / "completions_00007.parquet")
    assert table["completion"] == [*texts[:3], "?", texts[4]]
    assert table["mixed"][:3] == ["1", '"two"', "null"]


def test_names_of_columns(tmp_path):
    """A reward function may have the name of a column; what it logs beside may not."""
    log = CompletionLog(tmp_path, num_to_print=None)
    add(log, ["p"], ["c"], rewards={"arm": [3.0], "advantage": [None]}, extra={"arm_reward": [9]})
    table = read(tmp_path / "completions" / "completions_00007.parquet")
    assert (table["arm"], table["arm_reward"], table["advantage_reward"]) == (["easy"], [3], [None])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("step", [1] * 8, "column must not be one of step, prompt, completion"),
        ("note", [1], "column 'note' must have 8 values, one a completion, got 1"),
    ],
)
def test_bad_extra_columns_name_the_function(make_trainer, column, values, message):
    def careless(completions, completion_ids, log_extra, **columns):
        if completion_ids[0]:
            log_extra(column, values)
        return [float(len(text)) for text in completions]

    trainer = make_trainer(reward_funcs=careless, max_steps=1)
    with pytest.raises(RewardError, match=f"'careless' raised ValueError: log_extra: {message}"):
        trainer.train()


def test_trackers_get_the_table(tmp_path, monkeypatch):
    """wandb where a run is active, and trackio; the others have no tables."""
    sent = []
    for name in ("wandb", "trackio"):
        module = SimpleNamespace(
            run=None, Table=lambda dataframe: dataframe, log=lambda d, n=name: sent.append((n, d))
        )
        monkeypatch.setitem(sys.modules, name, module)
    arguments = {"num_to_print": 0, "unique_prompts": True}
    log = CompletionLog(tmp_path, report_to=["tensorboard", "trackio", "wandb"], **arguments)
    for _ in range(2):
        add(log, ["p", "p", "q"], ["a", "b", "c"])
        log.show()
        sys.modules["wandb"].run = object()
    assert [name for name, _ in sent] == ["trackio", "wandb", "trackio"]
    for _, content in sent:
        frame = content["completions"]
        assert frame["completion"].tolist() == ["a", "c"]
        assert frame["accuracy"].tolist() == [0.0, 2.0]
    add(log, ["p"], ["a"])
    CompletionLog(tmp_path, num_to_print=0, report_to=["tensorboard"]).show()


@pytest.mark.parametrize(
    ("value", "expected"), [(-1, "0 or above, or None"), (-math.inf, "an integer or None")]
)
def test_refused_settings(make_trainer, value, expected):
    with pytest.raises(ValueError, match=f"num_completions_to_print must be {expected}"):
        make_trainer(num_completions_to_print=value)
