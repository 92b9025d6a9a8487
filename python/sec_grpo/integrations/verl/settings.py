"""The curriculum of a run, from verl's configuration.

N rows of the data set.
"""

from __future__ import annotations

from typing import Any

from sec_grpo.curriculum import Curriculum
from sec_grpo.integrations.curriculum import Pace, curriculum_over

_EXAMPLE = "+data.curriculum.name=sec +data.curriculum.category=extra_info.difficulty"


def curriculum_of(data_config: Any, dataset: Any, total_steps: int = -1) -> Curriculum:
    """The curriculum over the N rows of verl's data set that `data.curriculum` describes.

    Args:
        data_config: verl's `data` section. Of `data.curriculum`, `name` is the strategy,
            `category` the column of the arms or a list of columns (dots reach into structs,
            "extra_info.difficulty"), `seed` that of the draws (`data.seed`, or 0, without it), and
            the rest are parameters of the strategy.
        dataset: verl's RLHFDataset, or one that has its rows in `dataframe` too.
        total_steps: the length of the run, for schedules that are not told theirs; -1 where nobody
            knows.

    Raises:
        ValueError, TypeError: the section is missing or does not fit the data set, naming what.
    """
    spec = _plain(data_config.get("curriculum"))
    if not isinstance(spec, dict) or "name" not in spec:
        raise ValueError(
            f"data.curriculum must have a name and a category, got {spec!r:.60}; add for example "
            f"{_EXAMPLE}"
        )
    if "category" not in spec:
        raise ValueError(f"data.curriculum.category is missing; add for example {_EXAMPLE}")
    category, seed = spec.pop("category"), spec.pop("seed", data_config.get("seed"))
    rows = getattr(dataset, "dataframe", None)
    if rows is None or len(rows) != len(dataset):
        raise ValueError(
            f"the data set must keep its rows in .dataframe, as verl's RLHFDataset does, got "
            f"{type(dataset).__name__}; the curriculum reads categories there"
        )
    return curriculum_over(
        spec,
        category,
        rows,
        seed=0 if seed is None else seed,
        pace=Pace(total_steps),
        rows_name="data.train_files",
    )


def _plain(section: Any) -> Any:
    """A section of the configuration in plain dicts and lists."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(section):
        return OmegaConf.to_container(section, resolve=True)
    return section
