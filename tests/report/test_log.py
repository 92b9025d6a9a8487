import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sec_grpo.report import EmptyLogError, MetricsWriter, read_run

ARMS = ["2", "4", "6"]


def write_run_line(writer, arms=ARMS, **fields):
    writer.write(
        "run",
        **{
            "schema": 1,
            "version": "0.1.0",
            "name": "sec",
            "arms": arms,
            "strategy": {"name": "sec", "alpha": 0.5},
            "max_steps": 9,
            "config": {"seed": 3},
            "time": 0.0,
            **fields,
        },
    )


def write_step(writer, step, loss=0.0, time=None):
    time = float(step) if time is None else time
    writer.write("step", step=step, time=time, loss=loss, arms={"probability": [0.2, 0.3, 0.5]})


def write_eval(writer, step, accuracy, time=None):
    writer.write(
        "eval",
        step=step,
        time=float(step) if time is None else time,
        accuracy={"2": accuracy, "8": 0.25},
        num_prompts={"2": 48, "8": 16},
        held_out=["8"],
    )


def test_round_trip_of_every_field(tmp_path):
    with MetricsWriter(tmp_path / "new" / "run") as writer:
        write_run_line(writer)
        write_eval(writer, 0, 0.5)
        writer.write(
            "step",
            **{
                "step": 1,
                "time": 2.5,
                "loss": -0.125,
                "completions/mean_length": 7.0,
                "arms": {
                    "probability": [0.2, 0.3, 0.5],
                    "value": [0.0, 0.1, 0.2],
                    "draws": [1, 2, 5],
                    "epochs": [0, 0, 1],
                    "abs_advantage": [None, 0.5, 0.25],
                    "reward": [None, 1.0, 0.5],
                    "dead_groups": [None, 0.5, 0.0],
                },
            },
        )
    run = read_run(tmp_path / "new" / "run")
    assert writer.path == run.path == tmp_path / "new" / "run" / "metrics.jsonl"
    assert (run.name, run.version, run.max_steps) == ("sec", "0.1.0", 9)
    assert run.strategy == {"name": "sec", "alpha": 0.5}
    assert run.config == {"seed": 3}
    assert run.arms == ("2", "4", "6")
    assert run.steps.tolist() == [1]
    assert run.time.tolist() == [2.5]
    assert {k: v.tolist() for k, v in run.scalars.items()} == {
        "loss": [-0.125],
        "completions/mean_length": [7.0],
    }
    assert run.probability.tolist() == [[0.2, 0.3, 0.5]]
    assert run.value.tolist() == [[0.0, 0.1, 0.2]]
    assert run.draws.tolist() == [[1, 2, 5]]
    assert run.epochs.tolist() == [[0, 0, 1]]
    np.testing.assert_array_equal(run.abs_advantage, [[np.nan, 0.5, 0.25]])
    np.testing.assert_array_equal(run.reward, [[np.nan, 1.0, 0.5]])
    np.testing.assert_array_equal(run.dead_groups, [[np.nan, 0.5, 0.0]])
    assert run.evals[0].accuracy == {"2": 0.5, "8": 0.25}
    assert run.evals[0].num_prompts == {"2": 48, "8": 16}
    assert run.levels == ("2", "8")
    assert run.held_out == ("8",)
    assert run.non_finite == {}


def test_writer_converts_scalars_and_writes_strict_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(
            "step",
            a=np.float32(0.5),
            b=np.int64(3),
            c=torch.tensor(0.25, requires_grad=True),
            d=torch.tensor([1.0, float("nan")], dtype=torch.bfloat16),
            e=float("inf"),
            f=np.array([[1, 2]]),
            g={"x": float("-inf"), 4: np.nan},
            h=Path("a") / "b",
            i=np.bool_(True),
            j=(1, "é\n"),
        )
    lines = writer.path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    assert json.loads(lines[0], parse_constant=refuse) == {
        "event": "step",
        "a": 0.5,
        "b": 3,
        "c": 0.25,
        "d": [1.0, None],
        "e": None,
        "f": [[1, 2]],
        "g": {"x": None, "4": None},
        "h": os.path.join("a", "b"),
        "i": True,
        "j": [1, "é\n"],
    }


def test_writer_refuses_other_objects_and_writes_nothing(tmp_path):
    with MetricsWriter(tmp_path) as writer, pytest.raises(TypeError, match=r"config\.x\[1\]"):
        writer.write("run", config={"x": [1, object()]})
    assert writer.path.read_bytes() == b""


def test_writer_refuses_to_write_when_closed(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write("step", step=1)


def test_every_line_is_on_disk_as_soon_as_written(tmp_path):
    writer = MetricsWriter(tmp_path)
    write_run_line(writer)
    write_step(writer, 1)
    assert read_run(tmp_path).steps.tolist() == [1]
    writer.close()


def test_resume_supersedes_rolled_back_steps_and_evals(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer)
        write_eval(writer, 0, 0.1)
        for step in range(1, 8):
            write_step(writer, step, loss=1.0)
            if step in (2, 4, 6):
                write_eval(writer, step, 0.2)
    with MetricsWriter(tmp_path) as writer:  # from the checkpoint of step 4
        write_run_line(writer, max_steps=20)
        write_step(writer, 5, loss=2.0)
    run = read_run(tmp_path)
    assert run.steps.tolist() == [1, 2, 3, 4, 5]
    assert run.scalars["loss"].tolist() == [1, 1, 1, 1, 2]
    assert [item.step for item in run.evals] == [0, 2, 4]
    assert run.max_steps == 20


def test_run_line_that_names_its_step_rolls_back_at_once(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer, step=0)
        for step in range(1, 8):
            write_step(writer, step)
            write_eval(writer, step, 0.5)
        write_run_line(writer, step=4)
    run = read_run(tmp_path)
    assert run.steps.tolist() == [1, 2, 3, 4]
    assert [item.step for item in run.evals] == [1, 2, 3, 4]


def test_eval_line_before_the_step_line_of_its_step_survives_a_resume(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer)
        for step in (1, 2, 3):
            write_eval(writer, step, 0.1)
            write_step(writer, step)
        write_run_line(writer)
        write_eval(writer, 2, 0.7)
        write_step(writer, 2, loss=5.0)
    run = read_run(tmp_path)
    assert run.steps.tolist() == [1, 2]
    assert run.scalars["loss"].tolist() == [0, 5]
    assert [(e.step, e.accuracy["2"]) for e in run.evals] == [(1, 0.1), (2, 0.7)]


def test_last_line_of_a_repeated_step_wins_and_keeps_its_eval(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer)
        write_step(writer, 1, loss=1.0)
        write_eval(writer, 1, 0.5)
        write_step(writer, 1, loss=3.0)
    run = read_run(tmp_path)
    assert run.scalars["loss"].tolist() == [3.0]
    assert len(run.evals) == 1


@pytest.mark.parametrize(("resumed_at", "expected"), [(1.0, [10, 20, 21]), (21.0, [10, 20, 21])])
def test_clock_runs_on_whether_or_not_the_resumed_run_restarts_it(tmp_path, resumed_at, expected):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer)
        write_step(writer, 1, time=10.0)
        write_step(writer, 2, time=20.0)
        write_step(writer, 3, time=30.0)
        write_run_line(writer)
        write_step(writer, 3, time=resumed_at)
    assert read_run(tmp_path).time.tolist() == expected


def test_truncated_last_line_is_skipped_and_mended_by_the_next_writer(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer)
        write_step(writer, 1)
        write_step(writer, 2)
    content = writer.path.read_bytes()
    writer.path.write_bytes(content[:-20])
    assert read_run(tmp_path).steps.tolist() == [1]
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer)
        write_step(writer, 2, loss=4.0)
    run = read_run(tmp_path)
    assert run.steps.tolist() == [1, 2]
    assert run.scalars["loss"].tolist() == [0, 4]


def test_complete_last_line_without_newline_is_kept(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer)
        write_step(writer, 1)
    writer.path.write_bytes(writer.path.read_bytes()[:-1])
    assert read_run(tmp_path).steps.tolist() == [1]
    with MetricsWriter(tmp_path) as writer:
        write_step(writer, 2)
    assert read_run(tmp_path).steps.tolist() == [1, 2]


def test_nulls_and_nan_become_nan_and_are_counted(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer)
        write_step(writer, 1, loss=float("nan"))
        write_step(writer, 2)
    with open(writer.path, "a") as file:
        file.write('{"event": "step", "step": 3, "time": 3, "loss": NaN, "extra": "text"}\n')
        file.write('{"event": "step", "step": 4, "time": 4, "later": 1.5, "arms": {"odd": 1}}\n')
        file.write('{"event": "unheard of", "step": "x"}\n')
    run = read_run(writer.path)
    np.testing.assert_array_equal(run.scalars["loss"], [np.nan, 0, np.nan, np.nan])
    assert run.non_finite == {"loss": (1, 3)}  # step 4 did not log it
    np.testing.assert_array_equal(run.scalars["later"], [np.nan, np.nan, np.nan, 1.5])
    assert np.isnan(run.probability[2:]).all()
    assert np.isnan(run.scalar("never logged")).tolist() == [True] * 4
    assert set(run.scalars) == {"loss", "later"}


def test_observations_repeated_while_an_arm_is_not_drawn_are_masked(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer, arms=["a", "b"])
        for step, draws in ((1, [4, 0]), (2, [6, 2]), (3, [6, 6])):
            seen = {"abs_advantage": [0.5, 0.25], "reward": [1.0, 0.5], "dead_groups": [0.0, 1.0]}
            writer.write("step", step=step, time=0.0, arms={"draws": draws, **seen})
    run = read_run(tmp_path)
    np.testing.assert_array_equal(run.reward, [[1.0, np.nan], [1.0, 0.5], [np.nan, 0.5]])
    np.testing.assert_array_equal(run.abs_advantage, [[0.5, np.nan], [0.5, 0.25], [np.nan, 0.25]])
    np.testing.assert_array_equal(run.dead_groups, [[0.0, np.nan], [0.0, 1.0], [np.nan, 1.0]])


def test_missing_log_names_the_path_and_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl: pass the output folder"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_run(tmp_path / "nowhere")


RUN = '{"event": "run", "schema": 1, "arms": ["2"]}\n'
STEP = '{"event": "step", "step": 1}\n'
EMPTY_LOGS = {
    "empty": ("", r"metrics\.jsonl is empty"),
    "cut run line": ('{"event": "run", "sch', "no step lines"),
    "no steps": (RUN, "no step lines"),
    "no run line": (STEP, "no step lines"),
}


@pytest.mark.parametrize(("text", "message"), EMPTY_LOGS.values(), ids=EMPTY_LOGS.keys())
def test_logs_without_a_step_raise(tmp_path, text, message):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(EmptyLogError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"event": "run", "schema": 2, "arms": ["2"]}\n', r"line 1: schema must be 1\. Got 2"),
        ('{"event": "run", "schema": 1, "arms": 3}\n', "line 1: arms must be a list of labels"),
    ],
)
def test_logs_of_another_schema_raise(tmp_path, line, message):
    (tmp_path / "metrics.jsonl").write_text(line + STEP)
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


DAMAGED = {
    "cut": ('{"event": "st', 'line 3: not a JSON object, begins with b\'{"event": "st\''),
    "not an object": ("[1]", "line 3: not a JSON object"),
    "zeros of a lost block": ("\0" * 60, "line 3: not a JSON object"),
    "step": ('{"event": "step", "step": 1.5}', "line 3: step must be an integer >= 0. Got 1.5"),
    "too many arms": (
        '{"event": "step", "step": 1, "arms": {"value": [0, 1]}}',
        "line 3: arms.value must be a list of at most 1 entries",
    ),
    "arms are no mapping": (
        '{"event": "step", "step": 1, "arms": [1]}',
        "line 3: arms must be a mapping. Got [1]",
    ),
    "accuracy": (
        '{"event": "eval", "step": 1, "accuracy": [1]}',
        "line 3: accuracy must be a mapping. Got [1]",
    ),
}


@pytest.mark.parametrize(("line", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_lines_are_left_out_and_named(tmp_path, line, message):
    second = '{"event": "step", "step": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(RUN + STEP + line + "\n" + second)
    run = read_run(tmp_path)
    assert run.steps.tolist() == [1, 2]
    assert len(run.damaged) == 1
    assert run.damaged[0].startswith(message)


def test_any_cut_of_a_log_is_read(tmp_path):
    """A kill can leave every prefix of the file."""
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer)
        for step in (1, 2, 3):
            write_step(writer, step)
            write_eval(writer, step, 0.5)
    content = writer.path.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content) + 1):
        writer.path.write_bytes(content[:size])
        # A line is whole with its last brace, whether its newline is there or not.
        lines = sum(size >= end for end in ends)
        if lines < 2:
            with pytest.raises(EmptyLogError):
                read_run(tmp_path)
            continue
        run = read_run(tmp_path)
        assert len(run.steps) == lines // 2
        assert len(run.evals) == (lines - 1) // 2
        assert run.damaged == ()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_anywhere_costs_lines_not_the_report(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    with MetricsWriter(folder) as writer:
        write_run_line(writer)
        start = writer.path.stat().st_size
        for step in range(1, 6):
            write_step(writer, step)
            write_eval(writer, step, 0.5)
    content = bytearray(writer.path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        position = data.draw(st.integers(start, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    writer.path.write_bytes(bytes(content))
    try:
        run = read_run(folder)
    except EmptyLogError:
        return
    assert np.isfinite(run.probability).any()
    assert all(np.diff(run.steps) > 0)


def test_a_run_that_has_only_evaluated(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer)
        write_eval(writer, 0, 0.5)
    run = read_run(tmp_path)
    assert run.steps.shape == (0,)
    assert run.probability.shape == run.successes.shape == (0, 3)
    assert run.levels == ("2", "8")


def test_arms_added_while_training_ran(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        write_run_line(writer, arms=["a"])
        writer.write("step", step=1, time=0.0, arms={"draws": [4], "reward": [0.5]})
        writer.write("arms", arms=["a", "b"])
        writer.write("step", step=2, time=1.0, arms={"draws": [5, 3], "reward": [0.5, 1.0]})
        write_run_line(writer, arms=["a"], step=1)  # resumed from before
        writer.write("step", step=2, time=1.0, arms={"draws": [8], "reward": [0.25]})
    run = read_run(tmp_path)
    assert run.arms == ("a", "b")
    np.testing.assert_array_equal(run.draws, [[4, np.nan], [8, np.nan]])
    np.testing.assert_array_equal(run.reward, [[0.5, np.nan], [0.25, np.nan]])


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path)
    write_run_line(writer)
    write_step(writer, 1)
    before = writer.path.read_bytes()

    class Full:
        """Takes ten bytes, then none."""

        def __init__(self, file):
            self.file, self.left = file, 10

        def write(self, data):
            if not self.left:
                raise OSError(28, "No space left on device")
            self.left = 0
            return self.file.write(data[:10])

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = writer._file
    writer._file = Full(real)
    with pytest.raises(OSError, match="No space left"):
        write_step(writer, 2)
    assert writer.path.read_bytes() == before
    writer._file = real
    write_step(writer, 2)
    assert read_run(tmp_path).steps.tolist() == [1, 2]
    writer.close()
