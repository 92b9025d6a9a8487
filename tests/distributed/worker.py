"""Scenarios that test_distributed_curriculum runs in two processes or one, by plain gloo.

Each returns what the test compares; the process writes the results of all to a file.
"""

import copy
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from sec_grpo.curriculum import SEC, Curriculum, CurriculumStateError
from sec_grpo.distributed import DistributedCurriculum

RANK = int(os.environ.get("RANK", 0))
SIZE = int(os.environ.get("WORLD_SIZE", 1))
CATEGORIES = [f"level {i % 4}" for i in range(50)]
BATCH = 7  # no multiple of the processes


def make(seed=5, **options):
    return Curriculum(CATEGORIES, SEC(temperature=0.1, **options), seed=seed)


def advantages_of(indices):
    """(b, 3) numbers that differ between prompts, so that the order of the rows matters."""
    indices = np.asarray(indices, np.float64)
    return np.sin(indices[:, None] + np.arange(3))


def train(shared, steps):
    drawn = []
    for _ in range(steps):
        indices = shared.draw(BATCH)
        local = shared.local_slice(indices)
        advantages = advantages_of(local)
        shared.observe(local, advantages=torch.as_tensor(advantages), rewards=advantages > 0)
        drawn.append(indices.tolist())
    return drawn


def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def equal(folder):
    shared = DistributedCurriculum(make())
    drawn = train(shared, 6)
    state = shared.state_dict()
    if RANK == 0:
        torch.save(state, folder / f"state_{SIZE}.pt")
    return {
        "drawn": drawn,
        "values": shared.curriculum.values().tolist(),
        "slice": shared.local_slice(list(range(BATCH))),
        "rank": (shared.rank, shared.size),
        "state": state["core"],
        "continued": train(shared, 4),
        "end": shared.state_dict()["core"],
    }


def resumed(folder):
    """From what `equal` saved under the other number of processes; the first one alone reads it."""
    shared = DistributedCurriculum(make(seed=99) if SIZE == 1 else make())
    state = torch.load(folder / f"state_{3 - SIZE}.pt", weights_only=False) if RANK == 0 else None
    shared.load_state_dict(state)
    return {"continued": train(shared, 4), "end": shared.state_dict()["core"]}


def local_feedback(folder):
    """Each process lets its own copy learn from its own rows, as a naive loop would."""
    shared = DistributedCurriculum(make())
    local = shared.local_slice(shared.draw(BATCH))
    shared.curriculum.observe(local, advantages=advantages_of(local))
    before = shared.curriculum.step
    draw = error_of(shared.draw, BATCH)
    observe = error_of(shared.observe, local, advantages=advantages_of(local))
    return {"draw": draw, "observe": observe, "drawn": shared.curriculum.step - before}


def different_copies(folder):
    one = error_of(DistributedCurriculum, make(seed=RANK))
    other = CATEGORIES[RANK:]
    two = error_of(DistributedCurriculum, Curriculum(other, SEC(temperature=0.1), seed=5))
    order = CATEGORIES[::-1] if RANK else CATEGORIES
    three = error_of(DistributedCurriculum, Curriculum(order, SEC(), seed=5, arms=CATEGORIES[:4]))
    return {"seed": one, "data set": two, "order": three}


def different_draws(folder):
    """A batch size that differs leaves the step, the probabilities and the values alike."""
    shared = DistributedCurriculum(make())
    shared.draw(BATCH + RANK)
    before = shared.curriculum.step
    return {"draw": error_of(shared.draw, BATCH), "drawn": shared.curriculum.step - before}


def refused_feedback(folder):
    """One process's part is refused: both raise, neither learns, and both go on."""
    shared = DistributedCurriculum(make())
    local = shared.local_slice(shared.draw(BATCH))
    good = advantages_of(local)
    before = copy.deepcopy(shared.state_dict())
    bad = good[:-1] if RANK == 1 else good
    errors = [error_of(shared.observe, local, advantages=bad)]
    errors.append(error_of(shared.observe, local, advantages=good * (np.nan if RANK else 1.0)))
    errors.append(error_of(shared.observe, local + 1000 * RANK, advantages=good))
    errors.append(error_of(shared.observe, local, advantages=good[:, : 3 - RANK]))

    class Lost:
        """An array whose device is gone."""

        def __array__(self, *args, **kwargs):
            raise RuntimeError("device lost")

    errors.append(error_of(shared.observe, local, advantages=Lost() if RANK else good))
    optional = {"advantages": good} if RANK else {"rewards": good}
    errors.append(error_of(shared.observe, local, **optional))
    unchanged = shared.state_dict() == before
    shared.observe(local, advantages=good)
    return {"errors": errors, "unchanged": unchanged, "values": shared.curriculum.values().tolist()}


def no_rows(folder):
    """The second process has no row of the batch."""
    shared = DistributedCurriculum(make())
    indices = shared.draw(3)
    local = indices if RANK == 0 else indices[:0]
    shared.observe(local, advantages=advantages_of(local))
    alone = make()
    alone.draw(3)
    alone.observe(indices, advantages=advantages_of(indices))
    return {"same": alone.values().tolist() == shared.curriculum.values().tolist()}


def refused_state(folder):
    shared = DistributedCurriculum(make())
    train(shared, 2)
    before = shared.state_dict()
    damaged = {**before, "core": before["core"][:-1]}
    errors = [error_of(shared.load_state_dict, damaged if RANK == 0 else None)]
    errors.append(error_of(shared.load_state_dict, damaged if RANK == 1 else before))
    errors.append(error_of(shared.load_state_dict, None))
    # The second process cannot take the state that the first one can.
    load = shared.curriculum.load_state_dict

    def refuse_once(state):
        shared.curriculum.load_state_dict = load
        raise CurriculumStateError("of another data set")

    if RANK == 1:
        shared.curriculum.load_state_dict = refuse_once
    other = make()
    other.draw(5)
    errors.append(error_of(shared.load_state_dict, other.state_dict()))
    return {"errors": errors, "unchanged": shared.state_dict() == before}


def groups(folder):
    """A group of this process alone, and one that it is not in."""
    alone = [distributed.new_group([rank]) for rank in range(SIZE)]
    shared = DistributedCurriculum(make(seed=RANK), process_group=alone[RANK])
    return {
        "rank": (shared.rank, shared.size),
        "outside": error_of(DistributedCurriculum, make(), process_group=alone[1 - RANK]),
    }


def accelerator(folder):
    from accelerate import Accelerator

    shared = DistributedCurriculum(make(), accelerator=Accelerator(cpu=True))
    return {"rank": (shared.rank, shared.size), "drawn": train(shared, 6)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    if SIZE > 1:
        before = error_of(DistributedCurriculum, make())
        store = f"file://{out / 'store'}"
        distributed.init_process_group("gloo", init_method=store, rank=RANK, world_size=SIZE)
    results = {} if SIZE == 1 else {"uninitialised": before}
    for name in sys.argv[2:]:
        results[name] = globals()[name](out)
        print(name, "done", flush=True)
    (out / f"results_{SIZE}_{RANK}.pkl").write_bytes(pickle.dumps(results))
    if SIZE > 1:
        distributed.destroy_process_group()
