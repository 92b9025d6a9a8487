"""One curriculum on two processes (gloo), from one to two and back, and what must be noticed."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sec_grpo.curriculum import SEC, Curriculum
from sec_grpo.distributed import DistributedCurriculum

WORKER = Path(__file__).with_name("worker.py")
SCENARIOS = (
    "equal",
    "resumed",
    "local_feedback",
    "different_copies",
    "different_draws",
    "refused_feedback",
    "no_rows",
    "refused_state",
    "groups",
    "accelerator",
)


def launch(folder: Path, size: int, scenarios: tuple[str, ...]) -> list[dict]:
    """Run scenarios in `size` processes; what each process saw."""
    common = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), *scenarios],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        for rank in range(size)
    ]
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=120)[0])
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
    files = [folder / f"results_{size}_{rank}.pkl" for rank in range(size)]
    return [pickle.loads(file.read_bytes()) for file in files]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    """One process that trains and saves."""
    return launch(folder, 1, ("equal",))[0]["equal"]


@pytest.fixture(scope="module")
def pair(folder, alone) -> dict:
    """Scenario -> what each of the two processes saw."""
    one, two = launch(folder, 2, SCENARIOS)
    return {name: (one[name], two[name]) for name in one}


def test_two_processes_draw_and_learn_as_one(alone, pair) -> None:
    one, two = pair["equal"]
    assert len({tuple(batch) for batch in one["drawn"]}) == 6
    for seen in (one, two):
        for key in ("drawn", "values", "state", "continued", "end"):
            assert seen[key] == alone[key], key
    assert max(alone["values"]) - min(alone["values"]) > 0.1
    assert (one["rank"], two["rank"], alone["rank"]) == ((0, 2), (1, 2), (0, 1))


def test_slices_make_the_whole(pair) -> None:
    one, two = pair["equal"]
    assert one["slice"] == [0, 1, 2]
    assert two["slice"] == [3, 4, 5, 6]


def test_two_processes_continue_one(alone, pair) -> None:
    for seen in pair["resumed"]:
        assert seen["continued"] == alone["continued"]
        assert seen["end"] == alone["end"]


def test_one_process_continues_two(folder, alone, pair) -> None:
    seen = launch(folder, 1, ("resumed",))[0]["resumed"]
    assert seen["continued"] == pair["equal"][0]["continued"] == alone["continued"]
    assert seen["end"] == pair["equal"][1]["end"]


def test_rank_local_feedback_is_detected_before_the_next_draw(pair) -> None:
    for seen in pair["local_feedback"]:
        assert seen["draw"].startswith("CurriculumDesyncError: the curriculum differs between")
        assert "process 0: step 1, " in seen["draw"]
        assert "observe through DistributedCurriculum" in seen["draw"]
        assert seen["observe"].startswith("CurriculumDesyncError")
        assert seen["drawn"] == 0


def test_different_copies_are_detected_at_once(pair) -> None:
    for seen in pair["different_copies"]:
        assert seen["seed"].startswith("CurriculumDesyncError: the curriculum differs")
        assert seen["data set"].startswith("CurriculumDesyncError: the curriculum differs")
        # As many prompts of each category, but in another order: the same draws mean others.
        assert seen["order"].startswith("CurriculumDesyncError: the curriculum differs")


def test_draws_of_different_sizes_are_detected(pair) -> None:
    for seen in pair["different_draws"]:
        assert seen["draw"].startswith("CurriculumDesyncError: the curriculum differs")
        assert seen["drawn"] == 0


def test_feedback_refused_on_one_process_is_refused_on_all(pair) -> None:
    one, two = pair["refused_feedback"]
    shape = "advantages must have shape (4, G), one row for each of indices, got (3, 3)"
    assert one["errors"][0] == f"ValueError: process 1 passed feedback that is refused: {shape}"
    assert two["errors"][0] == f"ValueError: {shape}"
    for number, start in ((1, "ValueError"), (2, "IndexError"), (3, "ValueError: advantages")):
        assert one["errors"][number] == two["errors"][number]
        assert one["errors"][number].startswith(start)
    assert "same G on every process, got shapes (3, 3), (4, 2)" in one["errors"][3]
    assert one["errors"][4] == "ValueError: process 1 passed feedback that is refused: device lost"
    assert two["errors"][4] == "RuntimeError: device lost"
    for seen in (one, two):
        assert "must be given by every process or by none" in seen["errors"][5]
        assert seen["unchanged"]
    assert one["values"] == two["values"]


def test_process_without_rows(pair) -> None:
    assert pair["no_rows"] == ({"same": True}, {"same": True})


def test_state_refused_by_one_process_changes_none(pair) -> None:
    one, two = pair["refused_state"]
    for seen in (one, two):
        assert seen["unchanged"]
        damaged, differs, missing, _ = seen["errors"]
        assert damaged.startswith("CurriculumStateError")
        assert differs.startswith("CurriculumDesyncError: state must be that of the first process")
        assert missing.startswith("CurriculumStateError: the state must be a dict")
    assert one["errors"][3] == (
        "CurriculumStateError: process 1 refuses the state: of another data set"
    )
    assert two["errors"][3] == "CurriculumStateError: of another data set"


def test_process_groups(pair) -> None:
    for seen in pair["groups"]:
        assert seen["rank"] == (0, 1)
        assert seen["outside"].startswith("ValueError: process_group must hold this process")


def test_accelerator(alone, pair) -> None:
    one, two = pair["accelerator"]
    assert one == {"rank": (0, 2), "drawn": alone["drawn"]}
    assert two == {"rank": (1, 2), "drawn": alone["drawn"]}


def test_several_processes_without_torch_distributed_are_refused(pair) -> None:
    for seen in pair["uninitialised"]:
        assert "torch.distributed must be initialised in a run of several processes" in seen


def test_one_process_needs_no_set_up() -> None:
    shared = DistributedCurriculum(Curriculum([0, 0, 1], SEC(), seed=1))
    twin = Curriculum([0, 0, 1], SEC(), seed=1)
    indices = shared.draw(4)
    assert indices.tolist() == twin.draw(4).tolist()
    assert shared.local_slice(indices).tolist() == indices.tolist()
    advantages = np.array([[1.0, -1.0], [0.5, -0.5], [2.0, -2.0], [0.0, 0.0]])
    shared.observe(indices, advantages=advantages)
    twin.observe(indices, advantages=advantages)
    assert shared.curriculum.to_bytes() == twin.to_bytes()
    other = DistributedCurriculum(Curriculum([0, 0, 1], SEC(), seed=9))
    other.load_state_dict(shared.state_dict())
    assert other.draw(8).tolist() == twin.draw(8).tolist()


def test_arguments() -> None:
    with pytest.raises(TypeError, match="curriculum must be a Curriculum, got"):
        DistributedCurriculum([1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give accelerator or process_group, not both"):
        DistributedCurriculum(
            Curriculum([0, 1]),
            accelerator=object(),  # type: ignore[arg-type]
            process_group=object(),
        )
    with pytest.raises(ValueError, match="torch.distributed must be initialised"):
        DistributedCurriculum(Curriculum([0, 1]), process_group=object())
