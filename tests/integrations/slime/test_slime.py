"""The data source for slime: against slime where it is installed, else against a stand-in."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sec_grpo import SEC, Curriculum
from sec_grpo.errors import CheckpointError

ROWS = [{"prompt": f"p{i}", "label": "", "metadata": {"difficulty": i % 3}} for i in range(12)]
GROUP = 4


def installed() -> bool:
    try:
        importlib.import_module("slime.rollout.data_source")
    except ImportError:
        return False
    return True


@pytest.fixture(scope="module")
def slime():
    """The adapter's module."""
    if installed():
        yield importlib.import_module("sec_grpo.integrations.slime")
        return
    path = Path(__file__).with_name("standin.py")
    spec = importlib.util.spec_from_file_location("slime_standin", path)
    standin = sys.modules["slime_standin"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(standin)
    standin.install()
    yield importlib.import_module("sec_grpo.integrations.slime")
    standin.uninstall()
    del sys.modules["slime_standin"]


@pytest.fixture
def make(slime, tmp_path):
    def source(**options):
        from sec_grpo.tiny import character_tokenizer

        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        character_tokenizer().save_pretrained(tmp_path / "model")
        curriculum = {"name": "sec", "temperature": 0.2, "category": "difficulty"}
        settings = {
            "prompt_data": str(tmp_path / "rows.jsonl"),
            "hf_checkpoint": str(tmp_path / "model"),
            "n_samples_per_prompt": GROUP, "rollout_global_dataset": True, "rollout_seed": 3,
            "rollout_shuffle": True, "dump_details": None, "rollout_max_prompt_len": None,
            "input_key": "prompt", "multimodal_keys": None, "label_key": "label",
            "metadata_key": "metadata", "tool_key": None, "apply_chat_template": False,
            "apply_chat_template_kwargs": None, "buffer_filter_path": None, "reward_key": None,
            "save": str(tmp_path / "save"), "load": None, "grpo_std_normalization": True,
            "num_rollout": 10, "curriculum": curriculum, **options,
        }  # fmt: skip
        return slime.CurriculumDataSource(SimpleNamespace(**settings))

    return source


def rows_of(groups) -> list[int]:
    """The row of each group, once all its samples are seen to be of it."""
    for group in groups:
        assert len({sample.prompt for sample in group}) == 1
        assert len(group) == GROUP
    return [int(group[0].prompt[1:]) for group in groups]


def answer(groups, step: int) -> np.ndarray:
    """Give every sample a reward: equal in rows of difficulty 0."""
    noise = np.random.default_rng(step).random((len(groups), GROUP))
    for group, scores in zip(groups, noise, strict=True):
        for sample, score in zip(group, scores, strict=True):
            level = sample.metadata["difficulty"]
            sample.reward = 0.5 if level == 0 else float(np.float32(score * level))
    return np.array([[sample.reward for sample in group] for group in groups])


def advantages(rewards: np.ndarray) -> np.ndarray:
    centred = rewards - rewards.mean(1, keepdims=True)
    return centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-6)


def test_it_yields_what_the_curriculum_draws_and_learns_from_all_groups(slime, make) -> None:
    source = make()
    twin = Curriculum([i % 3 for i in range(12)], SEC(temperature=0.2), seed=3)
    indices = []
    for step in range(4):
        groups = source.get_samples(5)
        assert rows_of(groups) == twin.draw(5).tolist()
        indices += [sample.index for group in groups for sample in group]
        rewards = answer(groups, step)
        # slime passes the bound method, and groups in another order.
        slime.observe(source.args, groups[::-1], source.get_samples)
        order = slice(None, None, -1)
        twin.observe(
            rows_of(groups)[order], advantages=advantages(rewards)[order], rewards=rewards[order]
        )
        np.testing.assert_allclose(source.curriculum.values(), twin.values(), rtol=1e-5)
    assert np.nanmax(twin.values()) > 0.1
    assert source.curriculum.metrics()["observations"] == 4
    assert indices == list(range(4 * 5 * GROUP))
    assert len(source) == 12


def test_aborted_groups_come_first_and_still_know_their_row(slime, make) -> None:
    source = make()
    first = source.get_samples(3)
    source.add_samples(first[1:])
    second = source.get_samples(5)
    assert second[:2] == first[1:]
    assert source.curriculum.metrics()["prompts_drawn"] == 6
    answer(second, 0)
    slime.observe(source.args, second, source)
    assert source.curriculum.metrics()["observations"] == 1


def test_samples_without_a_reward_and_fanned_out_ones(slime, make) -> None:
    source = make(reward_key="score", grpo_std_normalization=False)
    groups = source.get_samples(2)
    rewards = [[1.0, 2.0, 3.0, None], [0.0, 4.0, 0.0, 0.0]]
    for group, scores in zip(groups, rewards, strict=True):
        for sample, score in zip(group, scores, strict=True):
            sample.reward = None if score is None else {"score": score}
    early = SimpleNamespace(reward={"score": 99.0}, metadata=groups[1][1].metadata)
    fanned = [groups[0], [groups[1][0], [early, groups[1][1]], *groups[1][2:]]]
    slime.observe(source.args, fanned, source)
    metrics = source.curriculum.metrics()
    assert metrics["reward"] == pytest.approx((2.0 + 1.0) / 2)
    assert metrics["abs_advantage"] == pytest.approx((2 / 3 + 1.5) / 2, rel=1e-6)
    unanswered = source.get_samples(1)
    slime.observe(source.args, unanswered, source)
    assert source.curriculum.metrics()["observations"] == 1


def test_it_goes_on_from_what_was_saved(slime, make, tmp_path) -> None:
    whole = make()
    for step in range(3):
        groups = whole.get_samples(4)
        answer(groups, step)
        slime.observe(whole.args, groups, whole)
        whole.save(step)
    resumed = make(load=str(tmp_path / "save"))
    resumed.load(2)
    assert resumed.curriculum.to_bytes() == whole.curriculum.to_bytes()
    after, expected = resumed.get_samples(4), whole.get_samples(4)
    assert rows_of(after) == rows_of(expected)
    assert [s.index for g in after for s in g] == [s.index for g in expected for s in g]


def test_a_start_without_a_checkpoint_is_no_error(make, tmp_path) -> None:
    source = make(load=str(tmp_path / "nothing"))
    source.load(-1)
    assert source.curriculum.step == 0


def test_what_does_not_fit_is_refused_with_the_way_out(slime, make, tmp_path) -> None:
    source = make()
    source.save(0)
    path = tmp_path / "save" / "rollout" / "sec_grpo_curriculum_0.bin"
    other = {"name": "random", "category": "difficulty"}
    with pytest.raises(CheckpointError, match="does not fit"):
        make(load=str(tmp_path / "save"), curriculum=other).load(0)
    path.unlink()
    with pytest.raises(CheckpointError, match="Start without --load"):
        make(load=str(tmp_path / "save")).load(0)
    for match, options in {
        "args.curriculum must be a dict": {"curriculum": None},
        "with a name and a category": {"curriculum": {"name": "sec"}},
        "does not fit the metadata of --prompt-data": {
            "curriculum": {"name": "sec", "category": "nothing"}
        },
        "name must be one of": {"curriculum": {"name": "sac", "category": "difficulty"}},
        "give --prompt-data": {"prompt_data": None},
    }.items():
        with pytest.raises(ValueError, match=match):
            make(**options)
    with pytest.raises(ValueError, match="give --data-source-path"):
        slime.observe(source.args, [], SimpleNamespace())
    groups = source.get_samples(1)
    answer(groups, 0)
    groups[0][2].metadata = {"turns": 3}
    with pytest.raises(ValueError, match="must keep the metadata"):
        slime.observe(source.args, groups, source)


def test_without_slime_the_import_says_where_it_is() -> None:
    if installed() and "slime_standin" not in sys.modules:
        pytest.skip("slime is installed")
    script = "import sec_grpo.integrations.slime"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs slime (https://github.com/THUDM/slime)" in done.stderr


def test_a_slime_with_other_methods_is_named_with_its_version(slime, monkeypatch) -> None:
    base = slime.RolloutDataSourceWithBuffer
    monkeypatch.setattr(slime.metadata, "version", lambda name: "9.9")
    for name in ("get_samples", "add_samples", "save", "load"):
        with monkeypatch.context() as changed:
            changed.setattr(base, name, lambda self, other: None)
            with pytest.raises(ImportError, match=rf"fit slime 9\.9: .*{name} takes \(oth"):
                slime._check_installed()
    slime._check_installed()

    def missing(name):
        raise slime.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(slime.metadata, "version", missing)
    monkeypatch.setattr(base, "save", None)
    with pytest.raises(ImportError, match="of unknown version: RolloutDataSourceWithBuffer has no"):
        slime._check_installed()
