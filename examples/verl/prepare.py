"""Rows of a task in the form that verl reads, with the reward function beside them.

    python prepare.py countdown data/ --n_per_level 1000

writes data/train.parquet and data/test.parquet; `compute_score` is verl's custom reward function::

    custom_reward_function.path=prepare.py custom_reward_function.name=compute_score
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from sec_grpo.tasks import get


def verl_row(row, index):
    """verl's columns; what the verifier needs goes to `ground_truth` as text."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return {
        "data_source": row["task"],
        "prompt": prompt,
        "ability": row["task"],
        "reward_model": {"style": "rule", "ground_truth": json.dumps(row["ground_truth"])},
        "extra_info": {"index": index, "difficulty": row["difficulty"]},
    }


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """The task's reward of one completion, from 0 to 1."""
    truth = json.loads(ground_truth)
    (score,) = get(data_source).reward([""], [solution_str], ground_truth=[truth])
    return score


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", help="a task of sec_grpo.tasks, for example countdown")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n_per_level", type=int, default=1000)
    args = parser.parse_args(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", args.n_per_level, 0), ("test", 50, 1)):
        rows = get(args.task).dataset(count, seed=seed)
        frame = pd.DataFrame([verl_row(row, i) for i, row in enumerate(rows)])
        frame.to_parquet(args.folder / f"{name}.parquet")


if __name__ == "__main__":
    main()
