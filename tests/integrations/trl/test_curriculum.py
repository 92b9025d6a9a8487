"""Which rows TRL's trainer gets from the curriculum, and what the curriculum learns."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs TRL: pip install 'sec-grpo[trl]'")

import trl
from datasets import Dataset

from sec_grpo import SEC, Curriculum, Random
from sec_grpo.integrations.trl import CurriculumGRPOTrainer, CurriculumMixin


def watch_draws(trainer) -> list[int]:
    """The prompts that the trainer draws from now on, once for each completion."""
    drawn: list[int] = []
    draw = trainer._shared.draw

    def noting(size):
        indices = draw(size)
        drawn.extend(np.repeat(indices, trainer.args.num_generations).tolist())
        return indices

    trainer._shared.draw = noting
    return drawn


def advantages_by_hand(rewards, size=2):
    """(P, G) of rewards in the order of completions: the group's z-scores, std unbiased."""
    groups = np.asarray(rewards, np.float64).reshape(-1, size)
    centred = groups - groups.mean(1, keepdims=True)
    return centred / (groups.std(1, ddof=1, keepdims=True) + 1e-4)


def test_it_trains_on_exactly_the_prompts_it_drew(make, rows, tmp_path) -> None:
    trainer = make(tmp_path, curriculum=Random())
    drawn = watch_draws(trainer)
    trainer.train()
    reward = trainer.reward_funcs[0]
    assert drawn == reward.numbers
    assert len(drawn) == 5 * 4
    prompts = [prompt for call in reward.calls for prompt in call["prompts"]]
    assert prompts == [rows[number]["prompt"] for number in drawn]
    twin = Curriculum([row["difficulty"] for row in rows], Random(), seed=3)
    assert drawn[::2] == np.concatenate([twin.draw(2) for _ in range(5)]).tolist()


def test_it_learns_what_a_curriculum_fed_by_hand_learns(make, rows, tmp_path) -> None:
    trainer = make(tmp_path, curriculum={"name": "sec", "temperature": 0.2})
    trainer.train()
    twin = Curriculum([row["difficulty"] for row in rows], SEC(temperature=0.2), seed=3)
    for call in trainer.reward_funcs[0].calls:
        indices = twin.draw(2)
        assert call["numbers"] == np.repeat(indices, 2).tolist()
        rewards = np.reshape(call["rewards"], (2, 2))
        twin.observe(indices, advantages=advantages_by_hand(rewards), rewards=rewards)
    assert np.nanmax(twin.values()) > 0.1
    np.testing.assert_allclose(trainer.curriculum.values(), twin.values(), rtol=1e-5)
    np.testing.assert_allclose(
        trainer.curriculum.arm_table()["reward"], twin.arm_table()["reward"], rtol=1e-6
    )
    assert trainer.curriculum.metrics()["observations"] == 5


def test_weights_and_none_of_reward_functions_reach_the_curriculum(make, rows, tmp_path) -> None:
    calls = []

    def places(number):
        return {n: i for i, n in enumerate(sorted(set(number)))}

    def first(completions, number, **columns):
        calls.append((number, [float(len(set(text))) for text in completions]))
        place = places(number)
        return [None if place[n] % 4 == 0 else value for n, value in zip(*calls[-1], strict=True)]

    def second(completions, number, **columns):
        # Place 4 has no reward at all; of place 8 only its first completion has one.
        place = places(number)
        keep = [place[n] % 4 == 0 and place[n] != 4 and (place[n] != 8 or number.index(n) == i)
                for i, n in enumerate(number)]  # fmt: skip
        return [10.0 if kept else None for kept in keep]

    order = Curriculum(range(24), Random(), seed=3)
    trainer = make(
        tmp_path, curriculum=order, reward=[first, second], reward_weights=[2.0, 0.5], max_steps=1,
        per_device_train_batch_size=48,
    )  # fmt: skip
    trainer.train()
    numbers, values = calls[0]
    table = order.arm_table()
    place = places(numbers)
    assert len(place) > 8
    for n, i in place.items():
        own = [2 * value for m, value in zip(numbers, values, strict=True) if m == n]
        expected = np.mean(own) if i % 4 else (np.nan if i == 4 else 5.0)
        np.testing.assert_allclose(table["reward"][n], expected, rtol=1e-6, err_msg=str(n))


@pytest.mark.parametrize("options", [{}, {"steps_per_generation": 2}, {"num_iterations": 2}])
def test_generations_reused_are_drawn_once(make, tmp_path, options) -> None:
    trainer = make(tmp_path, curriculum=SEC(), max_steps=4, **options)
    trainer.train()
    completions = len(trainer.reward_funcs[0].numbers)
    assert trainer.curriculum.step == (2 if options else 4)
    assert completions == (8 if "num_iterations" in options else 16)
    assert trainer.curriculum.metrics()["prompts_drawn"] == completions / 2


def test_gradient_accumulation_makes_one_generation(make, tmp_path) -> None:
    trainer = make(tmp_path, curriculum=SEC(), max_steps=2, gradient_accumulation_steps=3)
    trainer.train()
    assert [len(call["numbers"]) for call in trainer.reward_funcs[0].calls] == [12, 12]
    assert trainer.curriculum.metrics()["prompts_drawn"] == 12


def test_workers_of_the_loader_make_no_draw_stale(make, rows, tmp_path) -> None:
    trainer = make(tmp_path, curriculum=SEC(), max_steps=4, dataloader_num_workers=2)
    trainer.train()
    twin = Curriculum([row["difficulty"] for row in rows], SEC(), seed=3)
    for call in trainer.reward_funcs[0].calls:
        indices = twin.draw(2)
        assert call["numbers"] == np.repeat(indices, 2).tolist()
        rewards = np.reshape(call["rewards"], (2, 2))
        twin.observe(indices, advantages=advantages_by_hand(rewards), rewards=rewards)
    assert np.nanmax(twin.values()) > 0.1


def test_evaluation_is_left_alone(make, tmp_path) -> None:
    held_out = [{"prompt": "cc>", "difficulty": 9, "number": 100 + i} for i in range(2)]
    trainer = make(
        tmp_path, curriculum=SEC(), max_steps=2, eval_strategy="steps", eval_steps=1,
        eval_dataset=Dataset.from_list(held_out), per_device_eval_batch_size=4,
    )  # fmt: skip
    trainer.train()
    assert trainer.curriculum.step == 2
    assert trainer.curriculum.metrics()["observations"] == 2
    calls = trainer.reward_funcs[0].calls
    evaluated = [call for call in calls if min(call["numbers"]) >= 100]
    assert [sorted(call["numbers"]) for call in evaluated] == [[100, 100, 101, 101]] * 2
    assert len(calls) == 4


def test_lora_draws_the_same_prompts(make, tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = make(tmp_path / "lora", curriculum=Random(), peft_config=lora, max_steps=2)
    plain = make(tmp_path / "plain", curriculum=Random(), max_steps=2)
    trainer.train()
    plain.train()
    assert trainer.reward_funcs[0].numbers == plain.reward_funcs[0].numbers
    moved = [p.abs().max() for n, p in trainer.model.named_parameters() if "lora_B" in n]
    assert max(moved) > 0


def test_unused_columns_are_removed_where_trl_removes_them(make, tmp_path) -> None:
    trainer = make(tmp_path, curriculum=SEC(), max_steps=1, remove_unused_columns=True)
    trainer.train()
    (call,) = trainer.reward_funcs[0].calls
    assert call["numbers"] is None
    assert "difficulty" not in call["columns"]
    trainer = make(tmp_path, curriculum=SEC(), max_steps=1)
    trainer.train()
    assert "difficulty" in trainer.reward_funcs[0].calls[0]["columns"]


def test_chat_prompts(make, rows, tmp_path) -> None:
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    trainer = make(tmp_path, rows=Dataset.from_list(rows), curriculum=SEC(), max_steps=1,
                   reward=lambda completions, **columns: [float(i) for i in range(4)])  # fmt: skip
    trainer.processing_class.chat_template = "{{ messages[0]['content'] }}"
    trainer.train()
    assert trainer.curriculum.metrics()["reward"] == 1.5


def test_completions_of_one_prompt_share_nothing_that_can_be_written_into(
    make, rows, tmp_path
) -> None:
    """TRL 1.0 adds an environment's observation to the row's own message."""
    for row in rows:
        row["board"] = []
    lengths = []

    def play(completions, board, **columns):
        for squares in board:
            squares.append(1)
        lengths.extend(len(squares) for squares in board)
        return [float(i) for i in range(len(completions))]

    trainer = make(tmp_path, rows=Dataset.from_list(rows), curriculum=SEC(), max_steps=1,
                   per_device_train_batch_size=8, num_generations=4, reward=play)  # fmt: skip
    trainer.train()
    assert lengths == [1] * 8


@pytest.mark.parametrize(
    ("category", "arms"),
    [
        (["difficulty"], [(0,), (1,), (2,)]),
        (lambda row: "even" if row["number"] % 2 == 0 else "odd", ["even", "odd"]),
        (None, ["all"]),
    ],
)
def test_categories(make, tmp_path, category, arms) -> None:
    trainer = make(tmp_path, curriculum="sec", category=category)
    assert list(trainer.curriculum.arms) == arms


def test_another_name_is_enough_where_rows_have_no_category(make, rows, tmp_path) -> None:
    bare = Dataset.from_list([{"prompt": row["prompt"], "number": row["number"]} for row in rows])
    trainer = make(tmp_path, rows=bare, max_steps=1)
    trainer.train()
    assert list(trainer.curriculum.arms) == ["all"]
    with pytest.raises(ValueError, match="category='difficulty' does not fit train_dataset"):
        make(tmp_path, rows=bare, curriculum="sec")


def test_logs_hold_the_state_at_their_time(make, tmp_path) -> None:
    trainer = make(tmp_path, curriculum=SEC(), max_steps=4, logging_steps=2)
    trainer.train()
    steps = [e["curriculum/step"] for e in trainer.state.log_history if "curriculum/step" in e]
    assert steps == [2, 4]
    last = [e for e in trainer.state.log_history if "curriculum/step" in e][-1]
    for arm, value in zip(trainer.curriculum.arms, trainer.curriculum.values(), strict=True):
        if not np.isnan(value):
            assert last[f"curriculum/value/{arm}"] == value


def test_a_schedule_takes_its_length_from_the_run(make, tmp_path) -> None:
    trainer = make(tmp_path, curriculum="ordered", max_steps=6, num_iterations=2)
    assert trainer.curriculum.strategy.parameters()["steps"] == 3
    trainer = make(tmp_path, curriculum="ordered", max_steps=6, gradient_accumulation_steps=2)
    assert trainer.curriculum.strategy.parameters()["steps"] == 6
    with pytest.raises(ValueError, match="max_steps in the config"):
        make(tmp_path, curriculum="ordered", max_steps=-1)


def test_the_mixin_goes_before_other_trainers(make, tmp_path) -> None:
    class Mine(trl.GRPOTrainer):
        def _calculate_rewards(self, *args, **kwargs):
            return super()._calculate_rewards(*args, **kwargs) * 2

    class MineWithCurriculum(CurriculumMixin, Mine):
        pass

    trainer = make(tmp_path, kind=MineWithCurriculum, curriculum=SEC(), max_steps=1)
    trainer.train()
    given = np.mean(trainer.reward_funcs[0].calls[0]["rewards"])
    assert trainer.curriculum.metrics()["reward"] == pytest.approx(2 * given)


def test_trainers_that_drop_completions_are_refused(make, tmp_path) -> None:
    class Filtering(trl.GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            return {**output, "advantages": output["advantages"][:3]}

    class WithCurriculum(CurriculumMixin, Filtering):
        pass

    trainer = make(tmp_path, kind=WithCurriculum, curriculum=SEC())
    with pytest.raises(ValueError, match=r"one advantage for each of 2 x 2 .* got shape \(3,\)"):
        trainer.train()


def test_the_order_of_the_data_set_is_not_kept_in_silence(make, tmp_path, monkeypatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("sec_grpo.integrations.trl.trainer.logger.warning", seen.append)
    make(tmp_path, shuffle_dataset=True)
    assert not seen
    make(tmp_path, shuffle_dataset=False)
    assert len(seen) == 1
    assert "shuffle_dataset=False has no effect" in seen[0]


def test_bad_arguments_are_named_before_the_model_is_touched(make, rows, tmp_path) -> None:
    stream = Dataset.from_list(rows).to_iterable_dataset()
    for match, options in {
        "name must be one of": {"curriculum": "sac"},
        "category='nothing' does not fit train_dataset": {"category": "nothing"},
        "curriculum must be a strategy": {"curriculum": 3},
        "curriculum needs a 'name'": {"curriculum": {"temperature": 1}},
        "made for 3 prompts": {"curriculum": Curriculum([0, 1, 2])},
        "train_dataset must be a datasets.Dataset": {"rows": stream},
        "train_dataset is empty": {"rows": Dataset.from_list(rows).select([])},
    }.items():
        with pytest.raises(ValueError, match=match):
            make(tmp_path, model=object(), **options)
    with pytest.raises(ValueError, match="train_dataset is missing: .* environment makes"):
        CurriculumGRPOTrainer(object(), lambda **_: [])
    with pytest.raises(TypeError, match="unexpected keyword argument 'curiculum'"):
        make(tmp_path, model=object(), curiculum="sec")
