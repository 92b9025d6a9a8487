import io
import json

import pytest
from rich.console import Console

from sec_grpo.report import (
    MetricsWriter,
    read_run,
    run_labels,
    summary,
    summary_rows,
    summary_table,
)

HEADER = {"schema": 1, "version": "0.1.0", "name": "sec", "arms": ["2", "4"], "max_steps": 4}


def small_run(folder, evals=((0, 0.25, 0.0, 0.125), (2, 0.75, 0.5, 0.25)), **header):
    with MetricsWriter(folder) as writer:
        writer.write("run", **{**HEADER, **header})
        writer.write(
            "step",
            step=1,
            time=2.0,
            frac_reward_zero_std=0.5,
            num_tokens=700,
            arms={"probability": [0.5, 0.5], "draws": [3, 5]},
        )
        writer.write(
            "step",
            step=2,
            time=5.0,
            frac_reward_zero_std=0.25,
            num_completion_tokens=1900,
            arms={"probability": [0.125, 0.875], "draws": [4, 12]},
        )
        for step, *accuracy in evals:
            writer.write(
                "eval",
                step=step,
                time=float(step),
                accuracy=dict(zip(["2", "4", "6"], accuracy, strict=True)),
                num_prompts={"2": 8, "4": 8, "6": 8},
                held_out=["6"],
            )
    return read_run(folder)


def render(table, width=80):
    console = Console(width=width, record=True, file=io.StringIO(), legacy_windows=False)
    console.print(table)
    return console.export_text()


def cells(text, row):
    line = next(line for line in text.splitlines() if line.startswith(f"│ {row}"))
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_summary_values(tmp_path):
    row = summary_rows(small_run(tmp_path))
    assert row["before"]["step"] == 0
    assert row["before"]["accuracy"] == {"2": 0.25, "4": 0.0, "6": 0.125}
    assert row["after"]["accuracy"] == {"2": 0.75, "4": 0.5, "6": 0.25}
    assert (row["before"]["mean_trained"], row["after"]["mean_trained"]) == (0.125, 0.625)
    assert (row["before"]["mean_held_out"], row["after"]["mean_held_out"]) == (0.125, 0.25)
    assert row["after"]["interval"]["4"] == pytest.approx([0.2152, 0.7848], abs=1e-4)
    assert row["levels"] == ["2", "4", "6"]
    assert row["held_out"] == ["6"]
    assert (row["steps"], row["max_steps"], row["seconds"]) == (2, 4, 5.0)
    assert row["dead_groups"] == 0.375
    assert row["completion_tokens"] == 1900
    assert row["final_probability"] == {"2": 0.125, "4": 0.875}


def test_summary_without_evaluations_tokens_or_length(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", **HEADER)
        writer.write("step", step=1, time=1.0, loss=float("nan"))
    run = read_run(tmp_path)
    row = summary_rows(run)
    assert row["before"] is row["after"] is row["dead_groups"] is row["completion_tokens"] is None
    assert row["final_probability"] == {"2": None, "4": None}
    json.dumps(summary([run]), allow_nan=False)
    text = render(summary_table([run]))
    assert cells(text, "dead groups") == ["-"]
    assert cells(text, "completion tokens") == ["-"]


@pytest.mark.parametrize(("step", "cell"), [(0, "0.25 ->    -"), (2, "- -> 0.25")])
def test_a_single_evaluation_is_before_only_at_step_zero(tmp_path, step, cell):
    run = small_run(tmp_path, evals=[(step, 0.25, 0.5, 0.5)])
    assert cells(render(summary_table([run])), "2") == [cell]


def test_unmeasured_accuracy_is_left_out_of_the_means(tmp_path):
    run = small_run(tmp_path, evals=[(0, 0.5, None, None), (2, 1.0, 0.5, None)])
    row = summary_rows(run)
    assert row["before"]["accuracy"] == {"2": 0.5, "4": None, "6": None}
    assert row["before"]["mean_trained"] == 0.5
    assert row["after"]["mean_held_out"] is None
    assert row["after"]["interval"]["6"] is None
    json.dumps(row, allow_nan=False)


def test_table_of_two_runs(tmp_path):
    runs = [small_run(tmp_path / "a"), small_run(tmp_path / "b", name="[red]random")]
    text = render(summary_table(runs))
    assert "[red]random" in text
    assert cells(text, "4") == ["0.00 -> 0.50"] * 2
    assert cells(text, "6 (held out)") == ["0.12 -> 0.25"] * 2
    assert cells(text, "mean, trained") == ["0.12 -> 0.62"] * 2
    assert cells(text, "mean, held out") == ["0.12 -> 0.25"] * 2
    assert cells(text, "seconds") == ["5", "5"]
    assert cells(text, "completion tokens") == ["1.9k", "1.9k"]
    assert cells(text, "likeliest arms") == ["4: 0.88"] * 2


def test_ten_levels_and_three_runs_fit_in_80_columns(synthetic_run):
    runs = [synthetic_run("sec", steps=15, seed=seed) for seed in range(3)]
    text = render(summary_table(runs))
    assert max(map(len, text.splitlines())) <= 80
    for level in (*range(2, 18, 2), "18 (held out)", "20 (held out)"):
        assert all(" -> " in cell for cell in cells(text, f"{level} "))


def test_runs_of_one_name_get_labels_of_their_own(tmp_path):
    folders = [tmp_path / "x" / "s1", tmp_path / "x" / "s2", tmp_path / "y" / "s2", tmp_path / "z"]
    runs = [small_run(folder) for folder in folders]
    assert run_labels(runs) == [
        "sec (x/s1)",
        "sec (x/s2)",
        "sec (y/s2)",
        f"sec ({tmp_path.name}/z)",
    ]
    assert run_labels(runs[:1]) == ["sec"]


def test_progress_parts_of_a_step_and_kinds_of_groups(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", **HEADER)
        times = {"time/rollout": 3.0, "time/update": 1.0, "step_time": 4.2}
        kinds = {"groups/mixed": 0.25, "groups/all_fail": 0.75}
        writer.write("step", step=1, time=4.0, **times, **kinds)
    run = read_run(tmp_path)
    row = summary_rows(run)
    assert row["seconds_per_step"]["rollout"] == 3.0
    assert row["seconds_per_step"]["other"] == pytest.approx(0.2)
    assert row["outcomes"] == {
        "all_fail": 0.75,
        "format_only": None,
        "mixed": 0.25,
        "all_pass": None,
    }
    text = render(summary_table([run]))
    assert cells(text, "steps") == ["1 of 4"]
    assert cells(text, "seconds a step") == ["4.2"]
    assert "rollout 71%" in text
    assert "update 24%" in text


def test_many_levels_leave_the_means(synthetic_run):
    text = render(summary_table([synthetic_run(arms=40, steps=15)]))
    assert "mean, held out" in text
    assert len(text.splitlines()) < 25


def test_a_run_that_has_only_evaluated(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", **HEADER)
        writer.write("eval", step=0, time=1.0, accuracy={"2": 2.5}, num_prompts={"2": 8})
    row = summary_rows(read_run(tmp_path))
    assert (row["steps"], row["seconds"]) == (0, None)
    assert row["final_probability"] == {"2": None, "4": None}
    # A reward beyond 1 is no share and has no such interval.
    assert row["before"]["accuracy"] == {"2": 2.5}
    assert row["before"]["interval"] == {"2": None}
    json.dumps(row, allow_nan=False)
