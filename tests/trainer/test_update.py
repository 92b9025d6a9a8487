"""The update phase: what is run, in which packs, and that nothing waits for the device."""

from __future__ import annotations

import contextlib
import random
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, masking_utils

from sec_grpo import GRPOConfig
from sec_grpo.ops import LinearPolicyLoss
from sec_grpo.trainer import loss as loss_module
from sec_grpo.trainer.batch import (
    Rollouts,
    loss_inputs,
    packed_inputs,
    padded_inputs,
    plan_packed,
    plan_padded,
    to_device,
)
from sec_grpo.trainer.entropy import EntropyBonus
from sec_grpo.trainer.layout import Layout, find_layout
from sec_grpo.trainer.metrics import MetricStore
from sec_grpo.trainer.policy import fused_logprobs, whole_logprobs
from sec_grpo.trainer.update import PolicyUpdate

PADDED = Layout()
PROMPTS = [[3, 4], [5], [6, 7, 8, 9, 10], [3, 4, 5]]
COMPLETIONS = [[3, 7], [4, 4, 9], [5, 6, 7, 8], [9, 1, 5, 4, 3]]


def rollouts_of(prompts, completions, advantages=None, in_loss=None, **logprobs):
    size = len(prompts)
    advantages = [1.0] * size if advantages is None else advantages
    in_loss = [True] * size if in_loss is None else in_loss
    return Rollouts(
        prompts, completions, torch.tensor(advantages), torch.tensor(in_loss), **logprobs
    )


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.4
    )
    config.bos_token_id = config.eos_token_id = None
    return GPT2LMHeadModel(config)


@pytest.fixture(params=["qwen2", "gpt2"])
def model(request, make_model):
    return make_model(num_hidden_layers=2) if request.param == "qwen2" else gpt2()


# ---- Packs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_plans_hold_every_row_once_within_the_budget(seed):
    rng = random.Random(seed)
    lengths = [rng.choice([1, 3, 17, 64, rng.randint(1, 200)]) for _ in range(rng.randint(1, 40))]
    rows = rng.sample(range(len(lengths)), rng.randint(1, len(lengths)))
    budget = rng.choice([50, 200, 1000])
    for plan, cost in (
        (plan_padded, lambda pack: len(pack) * max(lengths[i] for i in pack)),
        (plan_packed, lambda pack: sum(lengths[i] for i in pack)),
    ):
        packs = plan(lengths, rows, budget)
        assert sorted(i for pack in packs for i in pack) == sorted(rows)
        for pack in packs:
            assert cost(pack) <= budget or len(pack) == 1
        # No two packs would fit into one.
        totals = sorted(cost(pack) for pack in packs)
        if plan is plan_packed and len(packs) > 1:
            assert totals[0] + totals[1] > budget


def test_plan_by_hand():
    lengths = [5, 2, 9, 4, 5, 1]
    assert plan_padded(lengths, range(6), 10) == [[2], [0, 4], [3, 1], [5]]
    assert plan_packed(lengths, range(6), 10) == [[2, 5], [0, 4], [3, 1]]
    assert plan_padded(lengths, [2, 5], 3) == [[2], [5]]


def test_learnable_rows():
    rollouts = rollouts_of(
        [[3]] * 4,
        [[3, 4], [3], [3, 4, 5], [3]],
        advantages=[0.0, 1.0, -1.0, 0.0],
        in_loss=[True, False, True, True],
    )
    assert rollouts.learnable(range(4), skip_zero_advantages=True) == [2]
    assert rollouts.learnable(range(4), skip_zero_advantages=False) == [0, 2, 3]
    assert rollouts.learnable(range(2), skip_zero_advantages=True) == []
    assert rollouts.num_tokens(range(4)) == 6
    assert rollouts.num_tokens(range(1, 3)) == 3


@pytest.fixture
def make_update():
    def make(layout=PADDED, size=1, sharded=False, gathered=None, **options):
        config = {
            "output_dir": "unused",
            "use_cpu": True,
            "report_to": "none",
            "per_device_train_batch_size": 4,
            "num_generations": 2,
        }
        config = GRPOConfig(**{**config, **options})
        return PolicyUpdate(
            args=config,
            accelerator=SimpleNamespace(
                unwrap_model=lambda model: model, autocast=contextlib.nullcontext
            ),
            processes=SimpleNamespace(
                size=size,
                sum=lambda *numbers: [n * size for n in numbers],
                gather=lambda t: t if gathered is None else torch.tensor(gathered),
            ),
            metrics=MetricStore(),
            pad_token_id=0,
            layout=layout,
            sharded=sharded,
            has_dropout=False,
            entropy_bonus=EntropyBonus(config),
        )

    return make


LENGTHS = [3, 40, 5, 38, 4, 37, 2, 41]


def long_rollouts(**changes):
    completions = [[4] * (n - 1) for n in LENGTHS]
    return rollouts_of([[3]] * 8, completions, **changes)


def rows_of(packs):
    return [pack["rows"] for pack in packs]


def test_packs_cross_micro_batches(make_update):
    update = make_update(gradient_accumulation_steps=2, max_tokens_per_micro_batch=164)
    packs, num_tokens = update.packs(long_rollouts(), 0)
    assert rows_of(packs) == [[7, 1, 3, 5], [2, 4, 0, 6]]
    assert num_tokens == sum(LENGTHS) - 8
    assert [pack["num_items_in_batch"] for pack in packs] == [162, 162]
    assert [pack["num_sequences_in_batch"] for pack in packs] == [8, 8]
    ends = [pack["cu_seqlens"].tolist()[-1] for pack in packs]
    assert ends == [41 + 40 + 38 + 37 - 4, 5 + 4 + 3 + 2 - 4]
    assert packs[1]["input_ids"].shape == (4, 5)


def test_bnpo_and_entropy_quantile_keep_to_their_micro_batch(make_update):
    options = {"gradient_accumulation_steps": 2, "max_tokens_per_micro_batch": 80}
    packs, _ = make_update(loss_type="bnpo", **options).packs(long_rollouts(), 0)
    assert rows_of(packs) == [[1, 3], [2, 0], [7], [5, 4], [6]]
    # Half the tokens of both micro-batches: each is the mean over its own.
    assert [pack["num_items_in_batch"] for pack in packs] == [82 * 2] * 2 + [80 * 2] * 3
    packs, _ = make_update(top_entropy_quantile=0.5, **options).packs(long_rollouts(), 0)
    assert rows_of(packs) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_default_budget(make_update):
    """On average a micro-batch holds 300 tokens here, less than is worth a pass of its own."""
    rollouts = rollouts_of([[3]] * 8, [[4] * 199, [4] * 99] * 4)
    packs, _ = make_update(gradient_accumulation_steps=2).packs(rollouts, 0)
    assert rows_of(packs) == [[0, 2, 4, 6], [1, 3, 5, 7]]  # 4 rows of 200: never above padding
    rollouts = rollouts_of([[3]] * 8, [[4] * 3999, [4] * 99] * 4)
    packs, _ = make_update(gradient_accumulation_steps=2).packs(rollouts, 0)
    assert rows_of(packs) == [[0, 2], [4, 6], [1, 3, 5, 7]]  # 8200 tokens


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 3), ({"beta": 0.1}, 4)],
)
def test_dead_rows_are_run_for_the_kl_term_only(make_update, options, expected):
    rollouts = long_rollouts(
        advantages=[1.0, -1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        ref_logprobs=[torch.zeros(n - 1) for n in LENGTHS],
    )
    packs, num_tokens = make_update(**options).packs(rollouts, 0)
    assert sum(len(rows) for rows in rows_of(packs)) == expected
    assert num_tokens == sum(LENGTHS[:4]) - 4


def test_a_step_without_live_rows_runs_the_shortest_for_nothing(make_update):
    packs, num_tokens = make_update().packs(long_rollouts(advantages=[0.0] * 8), 0)
    assert rows_of(packs) == [[0]]
    assert packs[0]["in_loss"] is False
    assert packs[0]["in_metrics"] is True
    assert num_tokens == sum(LENGTHS[:4]) - 4


def test_sharded_processes_run_equally_many(make_update):
    update = make_update(size=2, sharded=True, gathered=[1, 3], max_tokens_per_micro_batch=500)
    packs, _ = update.packs(long_rollouts(), 0)
    assert rows_of(packs) == [[0], [0], [1, 3, 2, 0]]
    assert [pack["in_loss"] for pack in packs] == [False, False, True]
    assert [pack["in_metrics"] for pack in packs] == [False, False, True]


# ---- Layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [Layout(), Layout(mask_padding=True), Layout(packed=True)])
def test_layouts_give_the_logprobs_of_rows_alone(model, layout):
    rollouts = rollouts_of(PROMPTS, COMPLETIONS)
    rows = [2, 0, 3, 1]
    if layout.packed:
        inputs = packed_inputs(rollouts, rows)
    else:
        inputs = padded_inputs(rollouts, rows, 0, mask=layout.mask_padding)
    inputs |= loss_inputs(rollouts, rows)
    expected, entropies = [], []
    with torch.no_grad():
        for i in rows:
            ids = PROMPTS[i] + COMPLETIONS[i]
            logprobs = (model.eval()(torch.tensor([ids])).logits[0] / 0.7).log_softmax(-1)
            for t, token in enumerate(COMPLETIONS[i]):
                at = logprobs[len(PROMPTS[i]) - 1 + t]
                expected.append(at[token])
                entropies.append(-(at.exp() * at).sum())
        for compute in (fused_logprobs, whole_logprobs):
            got, entropy = compute(model, inputs, 0.7)
            torch.testing.assert_close(got, torch.stack(expected), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(entropy, torch.stack(entropies), rtol=1e-4, atol=1e-5)
    assert inputs["cu_seqlens"].tolist() == [0, 4, 6, 11, 14]


def test_packed_offsets_are_those_flash_attention_takes():
    inputs = packed_inputs(rollouts_of(PROMPTS, COMPLETIONS), [1, 0])
    assert inputs["input_ids"].tolist() == [[5, 4, 4, 9, 3, 4, 3, 7]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert inputs["logit_positions"].tolist() == [0, 1, 2, 5, 6]
    kwargs = inputs["model_kwargs"]
    assert kwargs["cu_seq_lens_q"].tolist() == kwargs["cu_seq_lens_k"].tolist() == [0, 4, 8]
    assert kwargs["cu_seq_lens_q"].dtype == torch.int32
    assert kwargs["max_length_q"] == kwargs["max_length_k"] == 4


class SeesAhead(transformers.Qwen2ForCausalLM):
    """Reads the last token of the row unless a mask tells it which that is."""

    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_hook(self._look, with_kwargs=True)

    def _look(self, module, args, kwargs, output):
        states, mask = output.last_hidden_state, kwargs.get("attention_mask")
        if mask is None:
            last = torch.full(states.shape[:1], states.shape[1] - 1)
        else:
            last = mask.sum(1) - 1
        output.last_hidden_state = states + states[torch.arange(len(states)), last][:, None]
        return output


def test_found_layouts(make_model, monkeypatch):
    plain = make_model()
    assert find_layout(plain, None) == Layout()
    assert find_layout(plain, True) == Layout(packed=True)
    assert find_layout(plain, False) == Layout()
    assert plain.training
    peeking = SeesAhead(plain.config)
    assert find_layout(peeking, None) == Layout(mask_padding=True)
    with pytest.raises(ValueError, match="padding_free must be False with SeesAhead"):
        find_layout(peeking, True)
    # On a CPU flash attention cannot be tried: the model is not asked.
    monkeypatch.setattr("sec_grpo.trainer.layout.uses_flash_attention", lambda model: True)
    assert find_layout(peeking, None) == Layout(packed=True)


def test_alibi_does_not_pack():
    """BLOOM's positions are those of the row, whatever position_ids say."""
    torch.manual_seed(0)
    config = transformers.BloomConfig(
        vocab_size=16, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.5
    )
    model = transformers.BloomForCausalLM(config)
    assert find_layout(model, None).packed is False
    with pytest.raises(ValueError, match="padding_free must be False with BloomForCausalLM"):
        find_layout(model, True)


# ---- The step ---------------------------------------------------------------------------------


class Counter:
    """Counts forwards of the decoder, with and without gradient, and their tokens."""

    def __init__(self, model):
        self.trained, self.scored = [], []
        model.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True)
        self.sampling = False

    def _count(self, module, args, kwargs):
        if kwargs.get("use_cache"):
            return
        record = self.trained if torch.is_grad_enabled() else self.scored
        record.append(tuple(kwargs["input_ids"].shape))


def half_dead(completions, **columns):
    """The second group of every four is dead."""
    return [0.5 if i // 4 % 2 else i % 4 for i in range(len(completions))]


def test_on_policy_is_a_single_pass(make_trainer, make_model):
    model = make_model()
    trainer = make_trainer(
        model=model,
        reward_funcs=half_dead,
        max_steps=2,
        gradient_accumulation_steps=2,
        padding_free=False,
    )
    counter = Counter(model)
    trainer.train()
    assert counter.scored == []
    # 16 rows, of which 8 are dead; the others of both micro-batches fit into one pass.
    assert [shape[0] for shape in counter.trained] == [8, 8]


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_old_logprobs_only_where_the_policy_has_moved(make_trainer, make_model, num_iterations):
    """Two updates a generation: of the second's rows, the live ones; the first's are on-policy."""
    model = make_model()
    trainer = make_trainer(
        model=model,
        reward_funcs=half_dead,
        max_steps=2 * num_iterations,
        steps_per_generation=2,
        num_iterations=num_iterations,
    )
    counter = Counter(model)
    trainer.train()
    assert [shape[0] for shape in counter.scored] == [4]
    assert [shape[0] for shape in counter.trained] == [4] * 2 * num_iterations


def test_remembered_logprobs_are_those_of_a_pass_before(make_trainer, monkeypatch, tmp_path):
    """With dropout nothing is remembered; told of it, the trainer makes the pass beforehand."""
    runs = []
    for dropout in (False, True):
        monkeypatch.setattr("sec_grpo.trainer.grpo_trainer.has_dropout", lambda model, d=dropout: d)
        trainer = make_trainer(
            output_dir=str(tmp_path / str(dropout)),
            max_steps=6,
            num_iterations=3,
            learning_rate=2e-2,
            epsilon=0.05,
        )
        trainer.train()
        runs.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo", "cispo"])
def test_layout_and_budget_do_not_change_the_loss(make_trainer, tmp_path, read_events, loss_type):
    """Plain SGD, since Adam makes of a gradient's rounding what it makes of a gradient."""
    runs = []
    for number, options in enumerate(
        [
            {"padding_free": False},
            {"padding_free": False, "max_tokens_per_micro_batch": 12},
            {"padding_free": True},
            {"padding_free": True, "max_tokens_per_micro_batch": 25},
        ]
    ):
        trainer = make_trainer(
            output_dir=str(tmp_path / str(number)),
            loss_type=loss_type,
            max_steps=2,
            gradient_accumulation_steps=2,
            num_iterations=2,
            beta=0.1,
            optim="sgd",
            learning_rate=0.3,
            **options,
        )
        before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        trainer.train()
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before
        steps = read_events(tmp_path / str(number), "step")
        runs.append((weights, [[e[k] for k in ("loss", "entropy", "kl")] for e in steps]))
    for weights, logged in runs[1:]:
        assert (weights - runs[0][0]).norm() < 1e-5 * runs[0][0].norm()
        for ours, expected in zip(logged, runs[0][1], strict=True):
            assert ours == pytest.approx(expected, rel=1e-4, abs=1e-6)


def fake_fused_loss(hidden, weight, targets, advantages, **options):
    """Shapes and gradients of the operation, without its arithmetic, which has its own tests."""
    states = (hidden * weight[targets]).sum(-1)
    metrics = {"entropy": states.detach().mean(), "ratio/max": states.detach().max()}
    return LinearPolicyLoss(states.sum(), states.detach(), states.detach(), metrics)


@pytest.mark.parametrize("layout", [Layout(), Layout(packed=True)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fused_lm_head": False},
        {"fused_lm_head": False, "beta": 0.1, "off_policy_mask_threshold": 0.5},
        {"fused_lm_head": False, "loss_type": "vespo"},
    ],
    ids=lambda options: "-".join(options) or "fused",
)
def test_a_pack_reads_nothing_back(make_update, make_model, monkeypatch, layout, options):
    """On the meta device .item(), .cpu() and .tolist() raise: there is nothing to be read.

    transformers looks once a forward whether positions are packed; that is its own.
    """
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda positions: None)
    monkeypatch.setattr(loss_module, "linear_policy_loss", fake_fused_loss)
    update = make_update(layout, num_iterations=2, **options)
    logprobs = [torch.zeros(len(ids)) for ids in COMPLETIONS]
    rollouts = rollouts_of(
        PROMPTS,
        COMPLETIONS,
        advantages=[1.0, -1.0, 0.5, 2.0],
        old_logprobs=logprobs if "off_policy_mask_threshold" in options else [None] * 4,
        ref_logprobs=logprobs,
    )
    model = make_model().to("meta")
    packs, _ = update.packs(rollouts, 0)
    for pack in packs:
        loss = update.loss(model, to_device(pack, torch.device("meta")))
        loss.backward()
        assert loss.device.type == "meta"
        with pytest.raises(RuntimeError, match="meta"):
            loss.item()
    assert all(old is not None for old in rollouts.old_logprobs)
