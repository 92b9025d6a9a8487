"""`sec-grpo train` on real rows and on models that save_pretrained wrote."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from sec_grpo import GRPOConfig
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

# Varies with the completion alone, so that a random model's groups have a gradient.
LETTERS_REWARD = """
def share_of_letters(completions, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(ch.isalpha() for ch in text) / max(1, len(text)) for text in texts]
"""
SMALL = (
    *("--per_device_train_batch_size", 8, "--num_generations", 4),
    *("--max_completion_length", 6, "--learning_rate", "1e-3"),
)


@pytest.fixture
def reward(tmp_path: Path) -> str:
    (tmp_path / "letters.py").write_text(LETTERS_REWARD)
    return "letters.py:share_of_letters"


def test_countdown_rows_and_exact_resume(run, events, sec_data: Path, reward: str) -> None:
    rows = sec_data / "countdown_train.parquet"
    common = ("train", "--model", "tiny", "--data", rows, "--reward", reward, *SMALL)
    run(*common, "--max_steps", 4, "--save_steps", 2, "--output_dir", "whole")
    whole = events("whole", "step")
    assert [event["step"] for event in whole] == [1, 2, 3, 4]
    assert all(event["loss"] is not None and event["grad_norm"] > 0 for event in whole)
    assert events("whole", "run")[0]["arms"] == ["1", "2", "3"]

    Path("resumed").mkdir()
    shutil.copytree("whole/checkpoint-2", "resumed/checkpoint-2")
    run(*common, "--max_steps", 4, "--resume", "last", "--output_dir", "resumed")
    resumed = events("resumed", "step")
    assert [event["step"] for event in resumed] == [3, 4]
    for again, once in zip(resumed, whole[2:], strict=True):
        for name in ("loss", "grad_norm", "reward", "num_tokens", "arms"):
            assert again[name] == once[name], name
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in ("whole", "resumed")]
    assert weights[0] == weights[1]


def test_a_saved_model_and_the_task_of_the_rows(run, events, sec_data: Path) -> None:
    tokenizer = character_tokenizer()
    tiny_qwen2(tokenizer, hidden_size=16, num_hidden_layers=1).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = sec_data / "countdown_test.parquet"
    result = run(
        *("train", "--model", "./model", "--data", rows, *SMALL, "--max_steps", 1),
        *("--eval_data", rows, "--eval_limit", 2, "--output_dir", "out"),
    )
    assert "evaluation reward 0.000" in result.output
    (step,) = events("out", "step")
    assert step["reward"] == 0.0
    assert step["rewards/countdown_reward/mean"] == 0.0
    (evaluation,) = events("out", "eval")
    assert evaluation["num_prompts"] == {"1": 2, "2": 2, "3": 2, "4": 2}
    assert (Path("out") / "model.safetensors").is_file()
    assert (Path("out") / "tokenizer.json").is_file()


def test_yaml_flags_and_the_written_config(run, events, reward: str) -> None:
    settings = {
        "model": "tiny",
        "data": "sort",
        "strategy": {"name": "sec", "temperature": 0.3},
        "reward": reward,
        "learning_rate": "1e-3",
        "max_steps": 7,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "num_completions_to_print": None,
        "output_dir": "from_yaml",
    }
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    run("train", "--config", "run.yaml", "--max_steps", 1, "--scale-rewards", "none")
    (start,) = events("from_yaml", "run")
    assert start["strategy"] == {
        "name": "SEC",
        "alpha": 0.5,
        "temperature": 0.3,
        "undrawn": "keep",
    }
    assert start["config"]["max_steps"] == 1
    assert start["config"]["scale_rewards"] == "none"
    assert start["config"]["learning_rate"] == 1e-3
    written = yaml.safe_load(Path("from_yaml/config.yaml").read_text())
    assert written == {**settings, "max_steps": 1, "scale_rewards": "none"}

    run("train", "--config", "from_yaml/config.yaml", "--resume", "last", "--max_steps", 2)
    assert [event["step"] for event in events("from_yaml", "step")] == [1, 2]
    assert events("from_yaml", "run")[-1]["config"]["num_completions_to_print"] is None


def test_switches_and_names_of_trl(run, events, reward: str) -> None:
    Path("run.yaml").write_text("model: tiny\ndata: sort\nuse_vllm: false\n")
    words = ("--config", "run.yaml", "--reward", reward, *SMALL, "--max_steps", 1)
    run("train", *words, "--gradient_checkpointing", "--output_dir", "switched")
    (start,) = events("switched", "run")
    assert start["config"]["gradient_checkpointing"] is True
    Path("run.yaml").write_text("model: tiny\ndata: sort\nuse_vllm: true\n")
    with pytest.raises(ValueError, match="run.yaml has no use_vllm .* samples with transformers"):
        run("train", *words)


def test_lora(run, events, reward: str) -> None:
    run(
        *("train", "--model", "tiny", "--data", "sort", "--reward", reward, *SMALL),
        *("--lora", "{r: 4, target_modules: [q_proj, v_proj]}", "--max_steps", 1),
        *("--output_dir", "lora"),
    )
    assert events("lora", "step")[0]["grad_norm"] > 0
    assert (Path("lora") / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max_step", "3"), "unknown argument '--max_step'; did you mean 'max_steps'"),
        (("--use_vllm", "true"), "has no use_vllm (got '--use_vllm'): this trainer"),
        (("--num_generations", "many"), "invalid int value: 'many'"),
        (("--num_generations", "1"), "num_generations must be at least 2, got 1"),
        (("--per_device_train_batch_size", "6"), "nearest sizes that fit are 4 and 8"),
        (("--strategy", "sac"), "random, reverse, sec, staged, static_weights"),
        (("--strategy", "{name: sec, alfa: 1}"), "alpha"),
        (("--strategy", "{name: ["), "--strategy is not valid YAML"),
        (("--category", "topic"), "no column 'topic'"),
        (("--model", "./nowhere"), "--model ./nowhere: there is no such folder"),
        (("--data", "nowhere.parquet"), "nowhere.parquet"),
        (("--reward", "nowhere.py:f"), "there is no file nowhere.py"),
        (("--reward", "math:nothing"), "math has no function 'nothing'"),
        (("--reward", "chess"), "unknown task 'chess'"),
        (("--resume", "last"), "out holds no checkpoint"),
        (("--resume", "nowhere"), "nowhere does not exist"),
        (("--config", "nowhere.yaml"), "there is no such file"),
        (("--eval_data", "sort", "--eval_limit", "0"), "--eval_limit must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_training(run, words: tuple[str, ...], message: str) -> None:
    small = [str(word) for word in (*SMALL, "--max_steps", 1, "--output_dir", "out")]
    with pytest.raises((ValueError, OSError)) as caught:
        run("train", "--model", "tiny", "--data", "sort", *small, *words)
    assert message in str(caught.value)
    assert not list(Path("out").glob("*")) if Path("out").exists() else True


def test_rows_of_several_tasks_are_judged_by_their_own(run) -> None:
    rows = [
        {"prompt": "ba>", "ground_truth": "ab", "difficulty": 2, "data_source": "sort-train"},
        {"prompt": "1+1", "ground_truth": "2", "difficulty": 2, "data_source": "math_train"},
    ] * 4
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run("train", "--model", "tiny", "--data", "rows.jsonl", *SMALL, "--max_steps", 2,
        "--output_dir", "mixed")  # fmt: skip
    steps = [json.loads(line) for line in Path("mixed/metrics.jsonl").read_text().splitlines()]
    logged = {name for event in steps for name in event if name.startswith("rewards/")}
    assert {"rewards/sort_reward/mean", "rewards/math_reward/mean"} <= logged


def test_sources_are_mixed(run) -> None:
    words = ["--data", "countdown,arc_1d", "--category", "type,difficulty", *SMALL]
    run("train", "--model", "tiny", *words, "--max_steps", 1, "--output_dir", "mixed")
    text = Path("mixed/metrics.jsonl").read_text()
    assert "countdown" in text
    assert "arc_1d" in text


def test_rows_of_no_known_task_need_a_reward(run) -> None:
    row = {"prompt": "e4", "ground_truth": "e5", "difficulty": 2, "data_source": "chess"}
    Path("rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="--reward is missing and the data names no task"):
        run("train", "--model", "tiny", "--data", "rows.jsonl", *SMALL)


def test_unknown_yaml_key(run) -> None:
    Path("run.yaml").write_text("model: tiny\ndata: sort\nnum_generation: 4\n")
    with pytest.raises(ValueError, match="unknown key 'num_generation'; did you mean 'num_gen"):
        run("train", "--config", "run.yaml")


def test_a_new_run_does_not_mix_with_an_old_one(run) -> None:
    (Path("out") / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"out holds checkpoints of an earlier run.*--resume last"):
        run("train", "--model", "tiny", "--data", "sort", "--output_dir", "out")


def test_help_config_names_every_argument(run) -> None:
    output = run("train", "--help_config").output
    for name in GRPOConfig.names():
        assert f"--{name}" in output, name
    assert re.search(r"--num_generations +8 +Completions per prompt", output)
