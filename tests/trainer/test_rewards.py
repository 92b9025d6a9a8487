"""Reward functions in TRL's signature, as the trainer calls them."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from sec_grpo.errors import RewardError
from sec_grpo.tiny import character_tokenizer
from sec_grpo.trainer.rewards import RewardFunctions

CALL = {
    "prompts": ["p", "q"],
    "completions": ["ab", "c"],
    "completion_ids": [[1, 2], [3]],
    "columns": {"answer": [7, 8]},
}


def ones(completions, **columns):
    return [1.0] * len(completions)


def lengths(completions, **columns):
    return [len(text) for text in completions]


def odd_only(answer, **columns):
    return [10.0 if value % 2 else None for value in answer]


def test_weighted_sum_of_those_that_apply():
    rewards = RewardFunctions([ones, lengths, odd_only], [1.0, 0.5, 2.0])
    total, each = rewards(**CALL)
    assert total.tolist() == [1.0 + 0.5 * 2 + 2.0 * 10, 1.0 + 0.5 * 1]
    np.testing.assert_array_equal(each, [[1, 2, 10], [1, 1, np.nan]])
    assert rewards.names == ["ones", "lengths", "odd_only"]


def test_none_of_a_row():
    with pytest.raises(RewardError, match="returned None for completion 1: at least one"):
        RewardFunctions(odd_only, None)(**CALL)


@pytest.mark.parametrize(
    "value",
    [
        np.array([1.0, 2.0]),
        np.array([1, 2], dtype=np.int32),
        torch.tensor([1.0, 2.0]),
        [torch.tensor(1.0), np.float32(2.0)],
        (1, 2),
        [True, np.int64(2)],
    ],
    ids=str,
)
def test_accepted_forms(value):
    total, _ = RewardFunctions(lambda **_: value, None)(**CALL)
    assert total.tolist() == [1.0, 2.0]


def test_names_are_unique():
    class Judge:
        def __call__(self, **columns):
            return [0.0, 0.0]

    rewards = RewardFunctions([ones, ones, Judge(), Judge(), ones], None)
    assert rewards.names == ["ones", "ones_2", "Judge", "Judge_2", "ones_3"]


def test_signature(make_trainer, read_events):
    """What the trainer hands over: TRL's arguments and every column, unchanged."""
    calls = []
    marker = {"nested": [1, {"x": 2}]}

    def reward(prompts, completions, completion_ids, answer, meta, trainer_state, log_metric, **k):
        calls.append((prompts, completions, completion_ids, answer, meta, dict(k)))
        assert trainer_state.max_steps == 2 or not completion_ids[0]
        if completion_ids[0]:
            log_metric("my/steps", float(trainer_state.global_step))
        return [float(len(ids)) for ids in completion_ids]

    data = [{"prompt": "ab", "difficulty": i % 2, "answer": i, "meta": marker} for i in range(6)]
    trainer = make_trainer(reward_funcs=reward, train_dataset=data)
    trainer.train()
    check, first, second = calls
    assert check[1:3] == ([""] * 4, [[]] * 4)
    for prompts, completions, ids, answers, metas, others in (first, second):
        assert prompts == ["ab"] * 8
        assert all(meta == marker for meta in metas)
        assert answers[:4] == [answers[0]] * 4
        assert answers[4:] == [answers[4]] * 4
        assert sorted(others) == ["difficulty", "log_extra"]
        assert [a % 2 for a in answers] == others["difficulty"]
        texts = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
        assert completions == texts
    assert [e["my/steps"] for e in read_events(trainer.args.output_dir, "step")] == [0.0, 1.0]


def test_columns_that_some_rows_lack(make_trainer):
    seen = []

    def reward(completions, hint, **columns):
        seen.extend(hint)
        return [0.0] * len(completions)

    data = [{"prompt": "ab", "difficulty": 0}, {"prompt": "cd", "difficulty": 0, "hint": "h"}]
    make_trainer(reward_funcs=reward, train_dataset=data).train()
    assert set(seen) == {None, "h"}


def test_chat_prompts_get_chat_completions(make_trainer):
    seen = []
    tokenizer = character_tokenizer("abcdefghijkl>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"

    def reward(prompts, completions, **columns):
        seen.append((prompts[0], completions[0]))
        return [float(len(c[0]["content"])) for c in completions]

    chat = [{"role": "user", "content": "abc"}]
    data = [{"prompt": chat, "difficulty": 0}] * 2
    make_trainer(reward_funcs=reward, train_dataset=data, processing_class=tokenizer).train()
    for prompt, completion in seen:
        assert prompt == chat
        assert [m["role"] for m in completion] == ["assistant"]
        assert isinstance(completion[0]["content"], str)


def test_metrics_of_several_functions(make_trainer, read_events):
    def sometimes(completions, answer, **columns):
        return [1.0 if a % 2 else None for a in answer]

    trainer = make_trainer(
        reward_funcs=[lengths, sometimes, lengths], reward_weights=[1.0, 3.0, 0.0], max_steps=3
    )
    trainer.train()
    for event in read_events(trainer.args.output_dir, "step"):
        mean = event["rewards/lengths/mean"]
        assert event["rewards/lengths_2/mean"] == mean
        if "rewards/sometimes/mean" in event:
            assert event["rewards/sometimes/mean"] == 1.0
            assert event["rewards/sometimes/std"] == 0.0
        assert mean <= event["reward"] <= mean + 3.0


# ---- Coroutine functions ------------------------------------------------------------------------


def call(funcs, completions=("a", "bb")):
    rewards = RewardFunctions(funcs, None)
    ids = [[1]] * len(completions)
    return rewards(["p"] * len(completions), list(completions), ids, {"truth": ["x", "y"]})


async def length_later(completions, **kwargs):
    await asyncio.sleep(0.2)
    return [float(len(text)) for text in completions]


async def truths_later(truth, **kwargs):
    await asyncio.sleep(0.2)
    return [None, 10.0] if truth == ["x", "y"] else [0.0, 0.0]


class AsyncJudge:
    async def __call__(self, completions, **kwargs):
        await asyncio.sleep(0.2)
        return [0.5] * len(completions)


def test_coroutine_functions_are_awaited_together():
    started = time.perf_counter()
    total, each = call([length_later, lambda **k: [1.0, 1.0], truths_later, AsyncJudge()])
    # Three waits of 0.2 s side by side.
    assert time.perf_counter() - started < 0.5
    assert total.tolist() == [2.5, 13.5]
    assert each[:, 0].tolist() == [1.0, 2.0]
    assert np.isnan(each[0, 2])


def test_coroutine_functions_inside_a_running_loop():
    async def notebook_cell():
        return call([length_later])[0].tolist()

    assert asyncio.run(notebook_cell()) == [1.0, 2.0]


def test_a_failing_coroutine_function_is_named():
    async def broken(completions, **kwargs):
        raise TimeoutError("the judge did not answer")

    with pytest.raises(RewardError, match="'broken' raised TimeoutError: the judge did not answer"):
        call([length_later, broken])

    async def needs_more(completions, weight):
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match="'needs_more' raised TypeError"):
        call([needs_more])

    async def too_few(completions, **kwargs):
        return [1.0]

    with pytest.raises(RewardError, match="'too_few' returned 1 rewards for 2"):
        call([too_few])


def test_a_client_may_keep_its_loop_from_call_to_call():
    loops = []

    async def judge(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        return [1.0] * len(completions)

    rewards = [RewardFunctions(judge, None)]
    before = set(threading.enumerate())
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: rewards[0](**CALL), range(8)))
    assert len(loops) == 8
    assert len(set(loops)) == 1
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["async rewards"]
    rewards.clear()
    gc.collect()
    assert loops[0].is_closed()


def test_coroutine_functions_in_a_forked_process():
    rewards = RewardFunctions([length_later], None)
    assert rewards(**CALL)[0].tolist() == [2.0, 1.0]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, repr(rewards(**CALL)[0].tolist()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"[2.0, 1.0]"


def test_other_functions_run_while_the_coroutines_wait():
    async def waits(completions, **kwargs):
        await asyncio.sleep(0.3)
        return [1.0] * len(completions)

    def works(completions, **kwargs):
        time.sleep(0.3)
        return [2.0] * len(completions)

    started = time.perf_counter()
    assert call([works, waits])[0].tolist() == [3.0, 3.0]
    assert time.perf_counter() - started < 0.5


def test_wrapped_and_awaitable_forms():
    partial = functools.partial(functools.partial(length_later, extra=1))
    rewards = RewardFunctions([partial, lambda **k: length_later(**k), partial], None)
    assert rewards.names == ["length_later", "<lambda>", "length_later_2"]
    _, each = rewards(**CALL)
    assert each.tolist() == [[2.0] * 3, [1.0] * 3]


def test_a_pending_coroutine_is_cancelled_when_another_function_fails():
    cancelled = threading.Event()

    async def slow(completions, **kwargs):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def broken(completions, **kwargs):
        time.sleep(0.1)
        return 1 / 0

    rewards = RewardFunctions([slow, broken], None)
    with pytest.raises(RewardError, match="'broken' raised ZeroDivisionError"):
        rewards(**CALL)
    assert cancelled.wait(5)


def test_an_error_says_where_and_on_what():
    def broken(completions, **kwargs):
        return [1.0 / (len(text) - 1) for text in completions]

    line = broken.__code__.co_firstlineno + 1
    message = (
        rf"'broken' raised ZeroDivisionError: .*, at .*test_rewards\.py:{line} "
        r"\(called with 2 completions, the first 'ab', and the columns answer;"
    )
    with pytest.raises(RewardError, match=message):
        RewardFunctions(broken, None)(**CALL)
    with pytest.raises(RewardError, match=r"returned nan for completion 1 \('c'\)"):
        RewardFunctions(lambda **_: [0.0, float("nan")], None)(**CALL)


def test_a_function_may_edit_what_it_is_given():
    seen = {}

    def edits(prompts, completions, completion_ids, answer, **kwargs):
        completions[0][0]["content"] = "edited"
        for values in (completions, prompts, answer, *completion_ids):
            values.clear()
        return [1.0, 2.0]

    def looks(prompts, completions, completion_ids, answer, **kwargs):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, answer=answer)
        return [0.0, 0.0]

    call = {
        "prompts": ["p", "q"],
        "completions": [[{"role": "assistant", "content": text}] for text in "ab"],
        "completion_ids": [[1, 2], [3]],
        "columns": {"answer": [5, 6]},
    }
    before = copy.deepcopy(call)
    total, _ = RewardFunctions([edits, looks], None)(**call)
    assert total.tolist() == [1.0, 2.0]
    assert call == before
    assert seen == {
        "prompts": before["prompts"],
        "completions": before["completions"],
        "ids": before["completion_ids"],
        "answer": [5, 6],
    }


@pytest.mark.parametrize(
    ("value", "match"),
    [([1.0, 2.0], r"'m' must be one number, got 2 of shape \(2,\)"), ("high", "TypeError")],
)
def test_a_metric_is_one_number(make_trainer, value, match):
    def logs(completions, log_metric, **kwargs):
        log_metric("m", value)
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=rf"'logs' raised .*{match}"):
        make_trainer(reward_funcs=logs, check_reward_funcs=False).train()


def test_what_is_no_reward_is_refused():
    with pytest.raises(ValueError, match="sequence classifiers of transformers .* got Linear"):
        RewardFunctions([torch.nn.Linear(1, 1)], None)
    with pytest.raises(ValueError, match="must be functions .* got 3"):
        RewardFunctions([3], None)
    with pytest.raises(ValueError, match=r"'/no/model' cannot be loaded .*reward_from\(name\)"):
        RewardFunctions("/no/model", None)


def test_reward_models_and_their_names(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    model = Qwen2ForSequenceClassification(config)
    folder = str(tmp_path / "judge")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = {**CALL, "prompts": ["ab", "c"], "completions": ["de", "f"]}

    def constant(completions, **columns):
        return [1.0] * len(completions)

    by_name = RewardFunctions([folder, constant], [1.0, 2.0])
    given = RewardFunctions([model, constant], [1.0, 2.0], [tokenizer, None])
    total, each = given(**arguments)
    assert by_name.names == ["judge", "constant"]
    with torch.no_grad():
        expected = [
            float(model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, 0])
            for text in ("abde", "cf")
        ]
    assert each[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert total.tolist() == pytest.approx([e + 2.0 for e in expected], abs=1e-5)
    assert by_name(**arguments)[1].tolist() == each.tolist()
    with pytest.raises(ValueError, match="one tokenizer for each of the 2 reward_funcs"):
        RewardFunctions([model, constant], None, [tokenizer])


def test_log_extra_of_trl_is_accepted():
    logged = {}

    def reward(completions, log_extra, log_metric, trainer_state, **kwargs):
        log_extra("length", [len(text) for text in completions])
        return [1.0] * len(completions)

    RewardFunctions(reward, None)(**CALL)
    RewardFunctions(reward, None)(**CALL, log_extra=logged.__setitem__)
    assert logged == {"length": [2, 1]}
