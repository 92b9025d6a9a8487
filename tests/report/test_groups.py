import pytest

from sec_grpo.report import MetricsWriter, group_runs, read_run, run_labels
from sec_grpo.report.groups import differing_settings


def run(folder, name=None, strategy="SEC", arms=("a",), **config):
    with MetricsWriter(folder) as writer:
        writer.write(
            "run",
            schema=1,
            arms=list(arms),
            name=name or folder.name,
            strategy={"name": strategy},
            config={"output_dir": str(folder), "run_name": name, **config},
        )
        writer.write("step", step=1, time=0.0)
    return read_run(folder)


def grouped(runs):
    return [(group.label, [run.name for run in group.runs]) for group in group_runs(runs)]


def test_seeds_belong_together_whatever_the_number_is_written_like(tmp_path):
    names = ["sec-0", "random_s0", "sec-1", "random_s1", "sec-2"]
    runs = [
        run(tmp_path / name, strategy=name[:3], seed=int(name[-1]), learning_rate=1e-6)
        for name in names
    ]
    assert grouped(runs) == [
        ("sec", ["sec-0", "sec-1", "sec-2"]),
        ("random", ["random_s0", "random_s1"]),
    ]
    assert [group.number for group in group_runs(runs)] == [0, 1]


@pytest.mark.parametrize(
    "names", [("seed0", "seed1"), ("0", "1"), ("s-3", "s-4"), ("run1", "run2")]
)
def test_folders_of_seeds_take_the_name_above(tmp_path, names):
    runs = [run(tmp_path / "dump" / name, seed=i) for i, name in enumerate(names)]
    assert grouped(runs) == [("dump", list(names))]


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 1e-5}, {"strategy": "DUMP"}, {"arms": ("a", "b")}],
    ids=["config", "strategy", "arms"],
)
def test_other_settings_make_another_group(tmp_path, change):
    base = {"learning_rate": 1e-6}
    runs = [run(tmp_path / "sec-0", seed=0, **base)]
    runs.append(run(tmp_path / "sec-1", seed=1, **{**base, **change}))
    assert grouped(runs) == [("sec-0", ["sec-0"]), ("sec-1", ["sec-1"])]


def test_numbers_that_are_no_seeds_stay_apart(tmp_path):
    """The data differ, which the log does not know: the seeds are equal."""
    runs = [run(tmp_path / name, seed=0) for name in ("level-2", "level-4")]
    assert [label for label, _ in grouped(runs)] == ["level-2", "level-4"]
    assert grouped([run(tmp_path / "v1", seed=0)]) == [("v1", ["v1"])]


def test_equal_names_are_told_apart(tmp_path):
    runs = [run(tmp_path / strategy / "run", strategy=strategy) for strategy in ("SEC", "Random")]
    assert [label for label, _ in grouped(runs)] == ["run (SEC)", "run (Random)"]
    assert run_labels(runs) == ["run (SEC)", "run (Random)"]
    again = [run(tmp_path / folder / "run", name="x", seed=1) for folder in ("p", "q")]
    assert grouped(again) == [("x", ["x", "x"])]
    assert run_labels(again) == ["x (p/run)", "x (q/run)"]
    assert run_labels([again[0], again[0]]) == ["x (1)", "x (2)"]


def test_settings_that_differ(tmp_path):
    runs = [run(tmp_path / f"r{i}", seed=i, beta=0.1 * i, alpha=1) for i in range(2)]
    assert differing_settings(runs) == {"beta": [0.0, 0.1], "seed": [0, 1]}
    one = run(tmp_path / "one", strategy="DUMP", extra={"b": 1})
    assert differing_settings([runs[0], one]) == {
        "strategy": [{"name": "SEC"}, {"name": "DUMP"}],
        "beta": [0.0, None],
        "alpha": [1, None],
        "extra": [None, {"b": 1}],
        "seed": [0, None],
    }
