"""Rows of any container become prompts with categories and token ids."""

from __future__ import annotations

import copy
import warnings

import pytest

from sec_grpo.tiny import character_tokenizer
from sec_grpo.trainer import prompts as prompts_module
from sec_grpo.trainer.prompts import PromptDataset, tokenize_prompt

ROWS = [
    {"prompt": "abc", "difficulty": 2, "type": "sum", "answer": 1},
    {"prompt": "de", "difficulty": 1, "type": "product", "answer": 2},
    {"prompt": "f", "difficulty": 2, "type": "product", "answer": 3},
]
CHAT = [{"role": "system", "content": "ab"}, {"role": "user", "content": "cd"}]


@pytest.fixture(params=["list", "datasets"])
def rows(request):
    if request.param == "list":
        return ROWS
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list(ROWS)


def test_columns_and_rows(rows):
    prompts = PromptDataset(rows, "difficulty")
    assert len(prompts) == 3
    assert prompts.categories == [2, 1, 2]
    assert prompts.row(1) == ROWS[1]
    assert prompts.columns == ["prompt", "difficulty", "type", "answer"]
    assert prompts.lengths == [3, 2, 1]


@pytest.mark.parametrize("category", [("type", "difficulty"), ["type", "difficulty"]])
def test_several_columns(rows, category):
    expected = [("sum", 2), ("product", 1), ("product", 2)]
    assert PromptDataset(rows, category).categories == expected


def test_function_and_none(rows):
    by_length = PromptDataset(rows, lambda row: len(row["prompt"]))
    assert by_length.categories == [3, 2, 1]
    assert PromptDataset(rows, None).categories == ["all"] * 3
    with pytest.raises(ValueError, match="row 1: category function is None"):
        PromptDataset(rows, lambda row: None if row["answer"] == 2 else 0)


def test_labels_of_a_data_set_of_tensors():
    datasets = pytest.importorskip("datasets")
    formatted = datasets.Dataset.from_list(ROWS).with_format("torch")
    assert PromptDataset(formatted, "difficulty").categories == [2, 1, 2]
    assert PromptDataset(formatted, lambda row: row["difficulty"]).categories == [2, 1, 2]


def test_digest_is_that_of_the_prompts():
    datasets = pytest.importorskip("datasets")
    digest = PromptDataset(ROWS).digest
    assert PromptDataset(datasets.Dataset.from_list(ROWS)).digest == digest
    assert PromptDataset([{**row, "answer": 0} for row in ROWS]).digest == digest
    assert PromptDataset(ROWS[::-1]).digest != digest
    assert PromptDataset([*ROWS[:2], {**ROWS[2], "prompt": "g"}]).digest != digest
    one = PromptDataset([{"prompt": "ab"}, {"prompt": "c"}]).digest
    assert PromptDataset([{"prompt": "a"}, {"prompt": "bc"}]).digest != one


def test_plain_prompt_tokens():
    tokenizer = character_tokenizer("abcdef")
    assert tokenize_prompt("abf", tokenizer) == [3, 4, 8]


def test_chat_template_writes_its_own_special_tokens():
    tokenizer = character_tokenizer("abcdef>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = tokenize_prompt(CHAT, tokenizer)
    assert ids == [3, 4, 1, 5, 6, 1, 9]


def test_chat_without_template_is_joined(make_trainer, caplog):
    type(prompts_module.logger).warning_once.cache_clear()
    tokenizer = character_tokenizer("abcd\n")
    assert tokenize_prompt(CHAT, tokenizer) == [3, 4, 7, 7, 5, 6]
    make_trainer(
        train_dataset=[{"prompt": CHAT, "difficulty": 0}] * 3,
        processing_class=tokenizer,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
    ).train()
    told = [r.getMessage() for r in caplog.records if "no chat template" in r.getMessage()]
    assert len(told) == 1
    assert "Set processing_class.chat_template" in told[0]


def test_long_prompts_only_are_tokenized_before_training(make_trainer, monkeypatch):
    from sec_grpo.trainer import encoding

    seen = []
    tokenize = encoding.tokenize_prompt
    monkeypatch.setattr(
        encoding, "tokenize_prompt", lambda prompt, *a: seen.append(prompt) or tokenize(prompt, *a)
    )
    data = [{"prompt": "a" * n, "difficulty": 0} for n in (5, 58, 29, 30, 1)]
    make_trainer(train_dataset=data)  # 64 positions, 6 of them for the completion
    assert [len(prompt) for prompt in seen] == [5, 58, 30]


def test_chat_template_arguments(tokenizer, make_trainer):
    template = "{{ 'b' if thinking else 'c' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    chat = [{"role": "user", "content": "aa"}]
    assert tokenize_prompt(chat, tokenizer) == [5, 3, 3]
    assert tokenize_prompt(chat, tokenizer, {"thinking": True}) == [4, 3, 3]
    trainer = make_trainer(
        processing_class=tokenizer,
        train_dataset=[{"prompt": chat, "difficulty": 0}] * 4,
        chat_template_kwargs='{"thinking": true}',
        reward_funcs=lambda completions, **_: [float(i) for i in range(len(completions))],
        max_steps=1,
    )
    trainer.train()
    assert trainer._rollouts.prompt_ids[0] == [4, 3, 3]
