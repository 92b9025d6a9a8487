import subprocess
import sys
import types

import pytest

from sec_grpo import tasks
from sec_grpo.tasks.countdown import CountdownTask
from sec_grpo.tasks.pool import VerifierPool
from sec_grpo.tasks.sort import SortTask


@pytest.fixture
def registry(monkeypatch):
    """The registry, restored afterwards."""
    monkeypatch.setattr(tasks, "_registry", dict(tasks._registry))
    monkeypatch.setattr(tasks, "_instances", {})


def test_built_in_tasks():
    assert tasks.names() == ("arc_1d", "countdown", "math", "sort", "zebra")
    assert type(tasks.get("sort")) is SortTask
    assert type(tasks.get("countdown")) is CountdownTask
    assert tasks.get("sort") is tasks.get("sort")
    for name in tasks.names():
        task = tasks.get(name)
        assert task.name == name
        assert not set(task.levels) & set(task.held_out_levels)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(
        ValueError, match=r"unknown task 'sorting'; did you mean 'sort'\? Known: arc_1d, "
    ):
        tasks.get("sorting")


def test_register(registry):
    task = SortTask()
    tasks.register("mine", task)
    tasks.register("class", SortTask)
    tasks.register("path", "sec_grpo.tasks.sort:SortTask")
    assert tasks.names() == (
        "arc_1d",
        "class",
        "countdown",
        "math",
        "mine",
        "path",
        "sort",
        "zebra",
    )
    assert tasks.get("mine") is task
    assert type(tasks.get("class")) is type(tasks.get("path")) is SortTask
    with pytest.raises(ValueError, match="'mine' is registered already"):
        tasks.register("mine", SortTask())
    assert tasks.get("mine") is task
    tasks.register("mine", CountdownTask, replace=True)
    assert type(tasks.get("mine")) is CountdownTask


@pytest.mark.parametrize("name", ["", "a:b"])
def test_bad_names_are_refused(registry, name):
    with pytest.raises(ValueError, match="hold no ':'"):
        tasks.register(name, SortTask())


@pytest.mark.parametrize("task", [None, int, 3, len])
def test_what_is_no_task_is_refused(registry, task):
    with pytest.raises(TypeError, match="must be a Task"):
        tasks.register("mine", task)


def test_dotted_paths(monkeypatch):
    module = types.ModuleType("my_tasks")
    module.MyTask, module.instance, module.number = SortTask, SortTask(), 3
    monkeypatch.setitem(sys.modules, "my_tasks", module)
    assert type(tasks.get("my_tasks:MyTask")) is SortTask
    assert tasks.get("my_tasks:instance") is module.instance
    with pytest.raises(ValueError, match="my_tasks has no class 'Other'"):
        tasks.get("my_tasks:Other")
    with pytest.raises(TypeError, match="'my_tasks:number' must be a Task"):
        tasks.get("my_tasks:number")


@pytest.mark.parametrize("path", ["no_such_module:Task", "json.no_such:Task", ":Task"])
def test_a_missing_module_is_named(path):
    with pytest.raises(ValueError, match=f"task '{path}' cannot be imported: there is no module"):
        tasks.get(path)


ONE_TASK = """
import helper_of_one
from sec_grpo.tasks import Task, Verdict

class One(Task):
    name = "one"
    levels = (1,)

    def __init__(self, answer=helper_of_one.ANSWER):
        self.answer = answer

    def draw(self, rng, level):
        return {"prompt": self.prompt(level), "ground_truth": self.answer}

    def prompt(self, problem):
        return f"what is {problem}?"

    def verify(self, text, truth):
        return Verdict(float(text == truth), "compared", text.isdigit())
"""


def test_files(tmp_path, registry):
    for folder, answer in (("a", "1"), ("b", "uno")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one_task.py").write_text(
            ONE_TASK.replace("helper_of_one.ANSWER", f"'{answer}'")
        )
    (tmp_path / "a" / "helper_of_one.py").write_text("ANSWER = 1")
    first = tasks.get(f"{tmp_path}/a/one_task.py:One")
    other = tasks.get(f"{tmp_path}/b/one_task.py:One")
    assert (first.answer, other.answer) == ("1", "uno")
    assert type(tasks.get(f"{tmp_path}/a/one_task.py:One")) is type(first)
    assert tasks.get(f"{tmp_path}/a/one_task.py:One", answer="2").answer == "2"
    # Other processes find what came from a file, also where two files have one name.
    for task in (first, other):
        with VerifierPool(task, 1) as pool:
            verdicts = pool.verify([task.answer, "3"], [task.answer] * 2)
        assert [verdict.score for verdict in verdicts] == [1.0, 0.0]
    rows = tasks.load_rows({"name": f"{tmp_path}/a/one_task.py:One", "n_per_level": 2})
    assert rows["prompt"] == ["what is 1?"] * 2
    assert tasks.get(tasks.task_of(rows[0])).verify("1", rows[0]["ground_truth"]).score == 1.0


def test_options(registry, tmp_path):
    with pytest.raises(ValueError, match="'sort' with the options .*unexpected keyword.*'size'"):
        tasks.get("sort", size=3)
    tasks.register("mine", SortTask())
    with pytest.raises(ValueError, match="'mine' is an instance already and takes no options"):
        tasks.get("mine", size=3)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*nothing\.py"):
        tasks.get(f"{tmp_path}/nothing.py:Task")
    (tmp_path / "half.py").write_text("import sec_grpo\n1 / 0\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            tasks.get(f"{tmp_path}/half.py:Task")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="has no class 'Task'"):
        tasks.get(f"{tmp_path}/empty.py:Task")


def test_an_import_error_inside_the_users_module_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_nobody_has"):
        tasks.get("needs_more:Task")


def test_importing_the_tasks_adds_no_heavy_module():
    code = (
        "import sys, sec_grpo; before = set(sys.modules); import sec_grpo.tasks as t; "
        "t.get('sort').generate(2, 1, 0); "
        "print({'datasets', 'torch', 'pyarrow'} & (set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
