"""The launch script for the installed verl: its keys, its curriculum and its reward function."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="needs verl (make test-verl-newest)")

from hydra import compose, initialize_config_module

from sec_grpo.integrations.verl.installed import minor_version
from sec_grpo.integrations.verl.settings import curriculum_of

EXAMPLES = Path(__file__).parents[3] / "examples" / "verl"
SCRIPT = EXAMPLES / f"run_0.{min(max(minor_version()[1], 7), 9)}.sh"


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("verl_prepare", EXAMPLES / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(prepare, tmp_path_factory) -> Path:
    """Where the example has been run up to its launch, with a small task."""
    found = tmp_path_factory.mktemp("example")
    prepare.main(["sort", str(found / "data"), "--n_per_level", "5"])
    (found / "prepare.py").write_text((EXAMPLES / "prepare.py").read_text())
    return found


@pytest.fixture(scope="module")
def launched(folder):
    """The module and the overrides that the script starts python3 with."""
    stub = folder / "bin" / "python3"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nfor argument in "$@"; do echo "$argument"; done\n')
    stub.chmod(0o755)
    path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SCRIPT), "trainer.total_epochs=1"],
        cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    flag, module, *overrides = done.stdout.splitlines()
    assert flag == "-m"
    return module, overrides


@pytest.fixture(scope="module")
def config(launched):
    """verl's own configuration with them; a key it does not know is an error."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=launched[1])


def test_it_starts_a_module_that_is_there(launched) -> None:
    module, overrides = launched
    assert importlib.util.find_spec(module) is not None
    assert overrides[-1] == "trainer.total_epochs=1"
    expected = "sec_grpo.integrations.verl" if minor_version() == (0, 8) else "verl.trainer"
    assert module == f"{expected}.main_ppo"


def test_verl_takes_its_keys(config) -> None:
    assert config.trainer.total_epochs == 1
    assert config.data.dataloader_num_workers == 0
    assert config.actor_rollout_ref.rollout.n == 8
    assert config.actor_rollout_ref.model.external_lib == "sec_grpo.integrations.verl.fused"
    assert config.actor_rollout_ref.model.use_fused_kernels is True


def test_its_curriculum_fits_the_prepared_rows(config, folder, monkeypatch) -> None:
    import datasets

    monkeypatch.chdir(folder)
    rows = datasets.Dataset.from_parquet(config.data.train_files)
    dataset = type("Rows", (), {"dataframe": rows, "__len__": lambda self: len(rows)})()
    curriculum = curriculum_of(config.data, dataset)
    assert curriculum.arms == (2, 4, 6, 8, 10, 12, 14, 16)
    assert curriculum.strategy.parameters()["temperature"] == 0.4


def test_it_chooses_the_curriculum_of_its_version(config) -> None:
    if minor_version() >= (0, 9):
        pytest.importorskip("ray", reason="needs ray")
        from verl.trainer.ppo.v1 import get_trainer_cls

        kind = get_trainer_cls(config.trainer.v1.trainer_mode)
        assert kind.__name__ == "CurriculumPPOTrainerSync"
    elif minor_version() < (0, 8):
        from sec_grpo.integrations.verl.sampler import CurriculumSampler

        assert config.data.sampler.class_path == f"pkg://{CurriculumSampler.__module__}"
        assert config.data.sampler.class_name == CurriculumSampler.__name__


def test_verl_finds_its_reward_function(config, folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    from verl.trainer import main_ppo
    from verl.trainer.ppo.reward import get_custom_reward_fn

    if hasattr(main_ppo, "migrate_legacy_reward_impl"):
        # As verl's main does before it starts.
        config = main_ppo.migrate_legacy_reward_impl(config.copy())
    score = get_custom_reward_fn(config)
    truth = '"abcd"'
    assert score(data_source="sort", solution_str="abcd", ground_truth=truth) == 1.0
    assert score(data_source="sort", solution_str="abdc", ground_truth=truth) == 0.0


def test_verl_reads_the_prepared_rows(folder, config, inputs, monkeypatch) -> None:
    from verl.utils import hf_tokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    tokenizer = hf_tokenizer(str(inputs / "model"))
    dataset = RLHFDataset(str(folder / "data" / "train.parquet"), tokenizer, config.data)
    assert len(dataset) == 8 * 5
    row = dataset[7]
    assert row["data_source"] == "sort"
    assert row["extra_info"]["difficulty"] == 4
    assert row["extra_info"]["index"] == 7
