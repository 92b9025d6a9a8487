"""A TRL user's arguments: the same, explained, or refused with the way out."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from transformers import TrainingArguments

from sec_grpo import GRPOConfig, GRPOTrainer
from sec_grpo.trainer.trl_names import (
    ABSENT_CONFIG,
    ABSENT_TRAINER,
    ADDED_CONFIG,
    DIFFERENT_CONFIG,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "trainer.md"


def defaults(config):
    return {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(config)
    }


@pytest.fixture(scope="module")
def trl():
    trl = pytest.importorskip("trl")
    return defaults(trl.GRPOConfig), trl


OURS = defaults(GRPOConfig)
BASE = {f.name for f in dataclasses.fields(TrainingArguments)}


def test_every_argument_of_trl_is_accounted_for(trl):
    theirs, _ = trl
    for name, default in theirs.items():
        if name in ABSENT_CONFIG:
            assert name not in OURS, name
            assert ABSENT_CONFIG[name].default == default, name
        elif name in DIFFERENT_CONFIG:
            assert name in OURS, name
        else:
            assert OURS[name] == default, f"{name}: TRL has {default!r}, we {OURS[name]!r}"


def test_no_list_names_what_is_not_there(trl):
    theirs, _ = trl
    earlier = {"max_prompt_length", "use_liger_loss", "vllm_guided_decoding_regex"}
    assert set(ABSENT_CONFIG) - set(theirs) == earlier
    assert set(DIFFERENT_CONFIG) <= set(theirs)
    assert set(ADDED_CONFIG) == set(OURS) - set(theirs)


def test_signature_begins_as_trls(trl):
    theirs = list(inspect.signature(trl[1].GRPOTrainer.__init__).parameters)
    ours = inspect.signature(GRPOTrainer.__init__).parameters
    positional = [name for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == theirs[: len(positional)]
    assert set(theirs) - set(positional) == set(ABSENT_TRAINER)


@pytest.mark.parametrize("name", ABSENT_CONFIG)
def test_absent_arguments_at_trls_default_are_taken(tmp_path, name):
    given = {name: ABSENT_CONFIG[name].default}
    config = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **given)
    assert not hasattr(config, name)


def test_a_whole_config_of_trl(trl, tmp_path):
    """Everything that TRL has resolved, as from a config that was saved."""
    module = trl[1]
    saved = module.GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=4, top_k=9
    ).to_dict()
    own = {f.name for f in dataclasses.fields(module.GRPOConfig) if f.init}
    config = GRPOConfig(**{name: value for name, value in saved.items() if name in own})
    assert (config.num_generations, config.top_k, config.num_generations_eval) == (4, 9, 1)
    assert config.generation_batch_size == saved["generation_batch_size"] == 8


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pad_to_multiple_of": 8}, "no pad_to_multiple_of .got 8.: rows are sorted"),
        ({"use_vllm": True}, "no use_vllm .got True.: .*CurriculumGRPOTrainer"),
        ({"vllm_mode": "server"}, "no vllm_mode"),
        ({"max_prompt_length": 512}, "no max_prompt_length .got 512.: shorten prompts"),
        ({"shuffle_dataset": None}, "no shuffle_dataset .got None."),
        ({"shuffle_dataset": False}, "drawn by the curriculum: curriculum='ordered'"),
        ({"use_transformers_paged": True}, "set use_transformers_continuous_batching"),
        ({"router_aux_loss_coef": 0.1}, "no load-balancing loss"),
        ({"max_tool_calling_iterations": 3}, "tools and environments are not supported"),
    ],
)
def test_absent_arguments_are_explained(tmp_path, options, match):
    with pytest.raises(ValueError, match=f"GRPOConfig has {match}|{match}"):
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_absent_arguments_of_the_trainer(make_trainer, make_model, tokenizer):
    def make(**options):
        return GRPOTrainer(
            make_model(),
            lambda completions, **_: [0.0] * len(completions),
            GRPOConfig(output_dir="unused", use_cpu=True, max_completion_length=8),
            train_dataset=[{"prompt": "a", "difficulty": 0}],
            processing_class=tokenizer,
            **options,
        )

    make(tools=None, rollout_func=None)
    with pytest.raises(ValueError, match=r"GRPOTrainer has no tools .*CurriculumGRPOTrainer"):
        make(tools=[len])
    with pytest.raises(TypeError, match="GRPOTrainer has no argument 'curiculum'"):
        make(curiculum="sec")


def test_trls_positional_arguments(make_model, tokenizer, tmp_path):
    """A call written for TRL, by position."""
    rows = [{"prompt": "abc", "difficulty": 0}] * 4
    trainer = GRPOTrainer(
        make_model(),
        [lambda completions, **_: [float(len(text)) for text in completions]],
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, max_completion_length=8, max_steps=1),
        rows,
        rows[:1],
        tokenizer,
        None,
        [],
        (None, None),
    )
    assert trainer.processing_class is tokenizer
    assert trainer.eval_dataset is not None


def table_rows():
    lines = DOCUMENT.read_text().splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| `")
    ]
    return {re.findall(r"`([^`]+)`", row[0])[0]: row for row in cells}


def test_the_documents_table_is_complete(trl):
    theirs, _ = trl
    rows = table_rows()
    for name in theirs:
        if name in BASE and name not in DIFFERENT_CONFIG:
            continue
        kind = rows[name][1]
        if name in ABSENT_CONFIG:
            assert kind == "not there", name
        elif name in DIFFERENT_CONFIG:
            assert kind == "different", name
        else:
            assert kind == "same", name
    for name in ADDED_CONFIG:
        assert rows[name][1] == "ours", name
