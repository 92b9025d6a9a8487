"""Every mistake is told before anything is trained, in words that name the way out."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from sec_grpo import GRPOConfig, GRPOTrainer
from sec_grpo.errors import RewardError

GOOD = {"prompt": "abc", "difficulty": 1}
CHAT = [{"role": "user", "content": "abc"}]


def rows(**changes):
    return [GOOD, GOOD, {**GOOD, **changes}]


def constant(value):
    def reward(completions, **columns):
        return value(completions) if callable(value) else value

    return reward


class Unreadable:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            raise OSError("no such disk")
        return GOOD


DATASET = {
    "none": (None, "train_dataset is missing"),
    "empty": ([], "train_dataset is empty"),
    "split": ({"train": [GOOD]}, "train_dataset must be a list of rows .* choose one split"),
    "stream": (iter([GOOD]), "train_dataset must be a list of rows .* Turn a streaming data set"),
    "not rows": (["abc"], "train_dataset row 0 must be a dict, got str"),
    "no prompt": ([{"difficulty": 1}], "no column 'prompt'; its columns are difficulty. Rename"),
    "no prompt in a row": ([GOOD, {"difficulty": 1}], "row 1 has no column 'prompt'"),
    "no category": ([{"prompt": "a", "level": 1}], "no column 'difficulty' for category"),
    "no category in a row": ([GOOD, {"prompt": "a"}], "row 1 has no column 'difficulty'"),
    "None category": (rows(difficulty=None), "row 2: column 'difficulty' is None; every row"),
    "NaN category": (rows(difficulty=math.nan), "row 2: column 'difficulty' is nan"),
    "list category": (rows(difficulty=[1]), r"row 2: column 'difficulty' holds \[1\]; a category"),
    "empty prompt": (rows(prompt=""), "row 2: column 'prompt' must be a non-empty string"),
    "None prompt": (rows(prompt=None), "row 2: column 'prompt' must be .* got None"),
    "empty chat": (rows(prompt=[]), r"row 2: column 'prompt' must be .* got \[\]"),
    "number prompt": (rows(prompt=7), "row 2: column 'prompt' must be .* got 7"),
    "image content": (
        rows(prompt=[{"role": "user", "content": [{"type": "image"}]}]),
        "row 2: every message of column 'prompt' must be a dict with a 'role' and a text",
    ),
    "no role": (rows(prompt=[{"content": "a"}]), "row 2: every message .* 'role'"),
    "reserved column": ([{**GOOD, "completions": 1}], "must not have a column 'completions'"),
    "data frame": (
        pd.DataFrame([GOOD]),
        r"train_dataset must be a list of rows .* a data frame into a .* \(from_pandas\)",
    ),
    "surrogate": (
        rows(prompt="a\ud800"),
        "row 2: column 'prompt' must be text, .*surrogates",
    ),
    "unreadable row": (Unreadable(), "train_dataset row 1 cannot be read: OSError: no such disk"),
    "long prompt": (rows(prompt="a" * 59), "row 2: the prompt's 59 tokens .* 64 positions"),
}


@pytest.fixture
def refused(make_trainer, tmp_path):
    """Assert that making or training a trainer raises, before a step and without output."""

    def check(error, match, **options):
        steps = []

        class CountSteps(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                steps.append(state.global_step)

        with pytest.raises(error, match=match):
            make_trainer(callbacks=[CountSteps()], **options).train()
        assert not steps
        run = tmp_path / "run"
        assert not run.exists() or not list(run.iterdir())

    return check


@pytest.mark.parametrize("name", DATASET)
def test_data_set(refused, name):
    dataset, match = DATASET[name]
    refused(ValueError, match, train_dataset=dataset)


@pytest.mark.parametrize("name", ["empty", "None prompt", "long prompt", "no category"])
def test_evaluation_data_set(refused, name):
    dataset, match = DATASET[name]
    match = match.replace("train_dataset", "eval_dataset").replace(" must be a list of rows", "")
    refused(ValueError, match, eval_dataset=dataset)


@pytest.mark.parametrize(
    ("category", "match"),
    [
        (
            lambda row: 1 / (row["difficulty"] - 5),
            "row 2: the category function raised ZeroDivi.*row",
        ),
        (3, "category must be a column's name, .* got 3"),
        ([], r"category must be a column's name, .* got \[\]"),
    ],
)
def test_category(refused, category, match):
    refused(ValueError, match, train_dataset=rows(difficulty=5), category=category)


REWARDS = {
    "too few": (constant([1.0]), "'reward' returned 1 rewards for 4 completions"),
    "scalar": (constant(1.0), "'reward' must return a list of 4 numbers, got float"),
    "none": (constant(None), "'reward' must return a list of 4 numbers, got NoneType"),
    "string": (constant(lambda c: ["good"] * len(c)), "returned 'good' for completion 0"),
    "NaN": (constant(lambda c: [math.nan] * len(c)), "returned nan for completion 0"),
    "inf": (constant(lambda c: [0.0, -math.inf, 0, 0]), "returned -inf for completion 1"),
    "too large": (constant(lambda c: [1e30] * len(c)), r"returned 1e\+30 for .* at most 1e\+29 in"),
    "large sum": (
        [constant(lambda c: [9e28] * len(c)), constant(lambda c: [9e28] * len(c))],
        r"weighted sum of the rewards of completion 0 is 1.8e\+29",
    ),
    "array": (
        constant(lambda c: [torch.ones(2)] * len(c)),
        r"returned \[1.0, 1.0\] for completion 0",
    ),
    "huge integer": (constant(lambda c: [10**400] * len(c)), "returned 1000"),
    "nested": (constant(lambda c: [[1.0]] * len(c)), r"returned \[1.0\] for completion 0"),
    "None for all": (
        constant(lambda c: [None] * len(c)),
        "every reward function returned None for completion 0",
    ),
    "raises": (
        constant(lambda c: 1 / 0),
        "'reward' raised ZeroDivisionError: .*check_reward_funcs=False",
    ),
    "no kwargs": (lambda completions: [1.0], r"raised TypeError.*must accept \*\*kwargs"),
}


@pytest.mark.parametrize("name", REWARDS)
def test_reward_function(refused, name):
    reward, match = REWARDS[name]
    refused(RewardError, match, reward_funcs=reward)


@pytest.mark.parametrize("name", ["too few", "raises"])
def test_evaluation_reward_function(refused, name):
    reward, match = REWARDS[name]
    refused(RewardError, match, eval_reward_funcs=reward, eval_dataset=[GOOD])


def test_reward_arguments(refused):
    good = constant(lambda c: [0.0] * len(c))
    refused(ValueError, "reward_funcs is empty", reward_funcs=[])
    refused(ValueError, "'/no/model' cannot be loaded as a reward", reward_funcs=["/no/model"])
    refused(
        ValueError,
        "one weight per reward function: 2 functions, 1 weights",
        reward_funcs=[good, good],
        reward_weights=[1.0],
    )
    refused(
        ValueError, "reward_weights must be finite", reward_funcs=good, reward_weights=[math.nan]
    )


CONFIG = {
    "num_generations": ({"num_generations": 1}, "num_generations must be at least 2, got 1"),
    "batch": (
        {"per_device_train_batch_size": 10},
        r"generation_batch_size \(10 completions\) must be a multiple of num_generations \(4\); "
        "the nearest sizes that fit are 8 and 12",
    ),
    "small batch": ({"per_device_train_batch_size": 2}, "the nearest sizes that fit are 4. It is"),
    "steps_per_generation": (
        {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
        r"steps_per_generation \(3\) must be a multiple of gradient_accumulation_steps \(2\)",
    ),
    "generation_batch_size": (
        {"generation_batch_size": 20},
        r"generation_batch_size \(20\) must equal per_device_train_batch_size \(8\) x",
    ),
    "both sizes": (
        {"generation_batch_size": 16, "steps_per_generation": 4},
        "set one of generation_batch_size and steps_per_generation",
    ),
    "temperature": ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
    "temperature nan": ({"temperature": math.nan}, "temperature must be above 0, got nan"),
    "top_p": ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
    "top_k": ({"top_k": -1}, "top_k must be 0 .* got -1"),
    "min_p": ({"min_p": 1.5}, r"min_p must be in \[0, 1\] or unset, got 1.5"),
    "repetition_penalty": ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
    "eval_temperature": ({"eval_temperature": -1.0}, "eval_temperature must be 0 or above"),
    "epsilon": ({"epsilon": 1.5}, r"epsilon must be in \[0, 1\], got 1.5"),
    "epsilon nan": ({"epsilon": math.nan}, r"epsilon must be in \[0, 1\], got nan"),
    "epsilon_high": ({"epsilon_high": -0.1}, "epsilon_high must be 0 or above, got -0.1"),
    "beta": ({"beta": -0.1}, "beta must be 0 or above, got -0.1"),
    "delta": ({"delta": 1.1}, r"delta must be at least 1 \+ epsilon_high \(1.2\), got 1.1"),
    "delta sapo": ({"delta": 4.0, "loss_type": "sapo"}, "delta must be unset with loss_type='sapo"),
    "sapo": ({"sapo_temperature_neg": 0.0}, "sapo_temperature_neg must be above 0, got 0.0"),
    "luspo": ({"loss_type": "luspo"}, "importance_sampling_level must be 'sequence'"),
    "vespo level": (
        {"loss_type": "vespo", "importance_sampling_level": "sequence"},
        "importance_sampling_level must be 'token' with loss_type='vespo'",
    ),
    "vespo": ({"vespo_k_neg": 0.0}, "vespo_k_neg must be above 0, got 0.0"),
    "off_policy": ({"off_policy_mask_threshold": 0.0}, "off_policy_mask_threshold must be above 0"),
    "top_entropy": ({"top_entropy_quantile": 1.5}, r"top_entropy_quantile must be in \(0, 1\]"),
    "delta cispo": ({"delta": 4.0, "loss_type": "cispo"}, "delta must be unset with loss_type"),
    "loss_type": ({"loss_type": "ppo"}, "loss_type must be one of grpo, .*got 'ppo'"),
    "scale_rewards": ({"scale_rewards": "std"}, "scale_rewards must be one of group, batch, none"),
    "level": ({"importance_sampling_level": "x"}, "importance_sampling_level must be one of"),
    "completion length": ({"max_completion_length": 0}, "max_completion_length must be at least 1"),
    "num_iterations": ({"num_iterations": 0}, "num_iterations must be at least 1, got 0"),
    "per_device_eval_batch_size": (
        {"per_device_eval_batch_size": 0},
        "per_device_eval_batch_size must be at least 1, got 0",
    ),
    "max_steps": ({"max_steps": 0}, "max_steps must be at least 1, or -1 to train for num_train"),
    "text": ({"temperature": "1"}, "temperature must be a number, got '1'"),
    "unset": ({"beta": None}, "beta must be a number, got None"),
    "fraction": ({"max_completion_length": 3.5}, "max_completion_length must be an integer, got 3"),
    "optional": ({"rollout_batch_size": True}, "must be an integer or None, got True"),
    "switch": ({"log_completions": "false"}, "log_completions must be True or False, got 'false'"),
    "name": ({"advantage_estimator": 3}, "advantage_estimator must be one of grpo.* got 3"),
    "weights": ({"reward_weights": 1.0}, "reward_weights must be a list of numbers or None"),
    "weight": ({"reward_weights": ["1"]}, r"reward_weights must be a list .* got \['1'\]"),
    "rollout_batch_size": ({"rollout_batch_size": 0}, "rollout_batch_size must be at least 1"),
    "auto batch": ({"auto_find_batch_size": True}, "auto_find_batch_size must be False"),
    "generation clash": (
        {"generation_kwargs": {"temperature": 2.0}},
        "generation_kwargs must not change temperature, which the loss and the masks",
    ),
    "generation unknown": (
        {"generation_kwargs": {"temprature": 2.0}},
        "generation_kwargs must hold arguments of transformers.GenerationConfig, got temprature",
    ),
    "beams": (
        {"generation_kwargs": {"num_beams": 2}},
        "generation_kwargs must not hold num_beams: completions are sampled token by token",
    ),
    "empty stop string": (
        {"generation_kwargs": {"stop_strings": ["a", ""]}},
        r"stop_strings must be texts that are not empty, got \['a', ''\]",
    ),
    "no room": ({"max_completion_length": 64}, "row 0: .* exceed the model's 64 positions"),
}


@pytest.mark.parametrize("name", CONFIG)
def test_config(refused, name):
    options, match = CONFIG[name]
    refused(ValueError, match, **options)


def test_configuration_of_another_trainer(make_model, tokenizer):
    other = TrainingArguments(output_dir="run", use_cpu=True)
    message = "must be a sec_grpo.GRPOConfig, got transformers.training_args.TrainingArguments"
    with pytest.raises(ValueError, match=message):
        GRPOTrainer(make_model(), len, other, [GOOD], processing_class=tokenizer)


def test_unknown_config_key():
    with pytest.raises(TypeError, match="num_generation"):
        GRPOConfig(output_dir="run", num_generation=4)


CURRICULUM = {
    "unknown": ("sec2", ValueError, "sec2"),
    "unknown parameter": (
        {"name": "sec", "tau": 1.0},
        ValueError,
        "unknown parameters of strategy sec: tau",
    ),
    "bad parameter": ({"name": "sec", "temperature": -1.0}, ValueError, "temperature"),
    "no name": ({"temperature": 1.0}, ValueError, "curriculum needs a 'name'"),
    "another type": (7, ValueError, "curriculum must be a strategy such as SEC"),
}


@pytest.mark.parametrize("name", CURRICULUM)
def test_curriculum(refused, name):
    curriculum, error, match = CURRICULUM[name]
    refused(error, match, curriculum=curriculum)


def test_curriculum_of_other_rows(refused):
    from sec_grpo import Curriculum

    refused(ValueError, "made for 2 prompts, train_dataset has 24", curriculum=Curriculum([1, 2]))


def test_ordered_needs_a_length(refused):
    refused(ValueError, "curriculum 'ordered' needs 'steps'", curriculum="ordered", max_steps=-1)


def test_end_token_needed_to_mask_truncated(refused, make_model):
    from sec_grpo.tiny import character_tokenizer

    tokenizer = character_tokenizer("abcdefghijkl>")
    tokenizer.eos_token = None
    model = make_model()
    model.generation_config.eos_token_id = None
    refused(
        ValueError,
        "mask_truncated_completions must be False where neither",
        model=model,
        processing_class=tokenizer,
        mask_truncated_completions=True,
    )


def test_missing_tokenizer(refused):
    refused(ValueError, "processing_class is missing", processing_class=None)
    refused(ValueError, "processing_class must be a tokenizer, got str", processing_class="x")


def test_evaluate_without_rows(make_trainer):
    with pytest.raises(ValueError, match="evaluate needs an eval_dataset"):
        make_trainer().evaluate()
    with pytest.raises(ValueError, match="args must be a sec_grpo.GRPOConfig, got builtins.dict"):
        GRPOTrainer("model", len, {})
