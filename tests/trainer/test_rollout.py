"""Sampling: our settings alone, padding without effect, seeds by counters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    generation,
)

from sec_grpo.trainer import rollout, setup
from sec_grpo.trainer.rollout import (
    Sampler,
    derive_seed,
    frozen_weights_cast,
    sample_by_continuous_batching,
    sample_completions,
)

has_continuous_batching = pytest.mark.skipif(
    not hasattr(generation, "ContinuousBatchingConfig"), reason="transformers is too old"
)

PROMPTS = [[3, 4], [5], [6, 7, 8, 9, 10], [3, 4, 5]]


def greedy(**changes):
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return GenerationConfig(**{**options, **changes})


def sampling(**changes):
    return greedy(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, **changes)


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


def manual_greedy(model, prompt, length):
    """Without cache, padding or batch."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(length):
            ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_left_padding_changes_nothing(model):
    together = sample_completions(model, PROMPTS, greedy(), seed=0)
    assert together == [manual_greedy(model, prompt, 8) for prompt in PROMPTS]
    for size in (1, 3):
        assert sample_completions(model, PROMPTS, greedy(), seed=0, batch_size=size) == together
    assert len({tuple(ids) for ids in together}) > 1


def test_models_own_settings_are_ignored(model):
    plain = sample_completions(model, PROMPTS * 4, sampling(), seed=2)
    own = GenerationConfig(
        top_k=1,
        temperature=0.01,
        repetition_penalty=5.0,
        suppress_tokens=[5, 6, 7],
        min_new_tokens=3,
        eos_token_id=3,
    )
    model.generation_config = own
    assert sample_completions(model, PROMPTS * 4, sampling(), seed=2) == plain
    assert model.generation_config is own
    # The settings have an effect where they are ours.
    assert sample_completions(model, PROMPTS * 4, sampling(suppress_tokens=[6]), seed=2) != plain


def test_seed_decides_and_global_state_is_kept(model):
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = sample_completions(model, PROMPTS, sampling(), seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert sample_completions(model, PROMPTS, sampling(), seed=3) == first
    assert sample_completions(model, PROMPTS, sampling(), seed=4) != first


def test_sampling_frequencies(make_model):
    """3000 first tokens against the softmax; fails by chance less than once in 10^6."""
    model = make_model()
    prompt = [4, 9, 5]
    with torch.no_grad():
        expected = (model.eval()(torch.tensor([prompt])).logits[0, -1] / 1.3).softmax(-1)
    config = greedy(do_sample=True, temperature=1.3, top_p=1.0, top_k=0, max_new_tokens=1)
    tokens = sample_completions(model, [prompt] * 3000, config, seed=0)
    counts = torch.bincount(torch.tensor(tokens).flatten(), minlength=len(expected))
    deviation = (counts / 3000 - expected).abs()
    assert (deviation < 6 * (expected * (1 - expected) / 3000).sqrt() + 1e-3).all()
    assert expected.max() < 0.99


def test_end_tokens(make_model):
    model = make_model()
    free = sample_completions(model, PROMPTS * 8, sampling(), seed=6)
    assert {len(ids) for ids in free} == {8}

    def cut(ids, ends):
        found = [t + 1 for t, token in enumerate(ids) if token in ends]
        return ids[: found[0]] if found else ids

    one = sample_completions(model, PROMPTS * 8, sampling(eos_token_id=5), seed=6)
    several = sample_completions(model, PROMPTS * 8, sampling(eos_token_id=[5, 3, 8]), seed=6)
    for ids, ends in ((one, {5}), (several, {5, 3, 8})):
        for completion in ids:
            assert cut(completion, ends) == completion
            assert completion[-1] in ends or len(completion) == 8
        assert any(len(completion) < 8 for completion in ids)


def test_padding_token_can_be_sampled(make_model):
    """Where the padding token is an ordinary one, it is kept inside completions."""
    model = make_model()
    config = sampling(eos_token_id=5)
    config.pad_token_id = 4
    ids = sample_completions(model, [[4]] * 64, config, seed=0)
    assert any(4 in completion for completion in ids)
    assert all(completion[-1] == 5 or len(completion) == 8 for completion in ids)


def test_end_tokens_of_the_model_reach_the_metrics(make_trainer, make_model, read_events):
    from sec_grpo.tiny import character_tokenizer

    tokenizer = character_tokenizer("abcdefghijkl>")
    model = make_model()
    model.generation_config.eos_token_id = [1, 5]
    trainer = make_trainer(model=model, max_steps=1, per_device_train_batch_size=32)
    trainer.train()
    with_two = read_events(trainer.args.output_dir, "step")[0]["completions/clipped_ratio"]
    assert with_two < 1

    tokenizer.eos_token = None
    model = make_model()
    model.generation_config.eos_token_id = None
    trainer = make_trainer(
        model=model, processing_class=tokenizer, max_steps=1, per_device_train_batch_size=32
    )
    trainer.train()
    event = read_events(trainer.args.output_dir, "step")[0]
    assert event["completions/clipped_ratio"] == 1.0
    assert event["completions/mean_length"] == event["completions/max_length"] == 6.0


def test_derived_seeds_differ():
    seeds = {
        derive_seed(seed, stream, step, rank)
        for seed in (0, 1)
        for stream in ("rollout", "update", "evaluation")
        for step in range(50)
        for rank in range(4)
    }
    assert len(seeds) == 2 * 3 * 50 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "rollout", 0, 0) == derive_seed(0, "rollout", 0, 0)


# ---- Prompts that stand there several times ---------------------------------------------------


def sliding():
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            sliding_window=4,
            max_position_embeddings=64,
            initializer_range=0.4,
            attn_implementation="eager",
        )
    )


class Reads:
    """The rows of every forward with more than one new token."""

    def __init__(self, model):
        self.rows = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        if "input_ids" in kwargs and kwargs["input_ids"].shape[1] > 1:
            self.rows.append(kwargs["input_ids"].shape[0])


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma2"])
def test_a_groups_prompt_is_read_once(make_model, kind):
    model = {"qwen2": lambda: make_model(num_hidden_layers=2), "gpt2": gpt2, "gemma2": sliding}[
        kind
    ]()
    grouped = [prompt for prompt in PROMPTS for _ in range(3)]
    expected = [manual_greedy(model, prompt, 8) for prompt in grouped]
    reads = Reads(model)
    assert sample_completions(model, grouped, greedy(), seed=0) == expected
    assert reads.rows == [4]
    reads.rows.clear()
    # A chunk may begin inside a group; the first holds prompts with a prefix of one token only.
    assert sample_completions(model, grouped, greedy(), seed=0, batch_size=5) == expected
    assert reads.rows == [3, 1]
    reads.rows.clear()
    assert sample_completions(model, PROMPTS, greedy(), seed=0) == expected[::3]
    assert reads.rows == [4]  # by generate itself
    # Prompts of one token have no prefix; a cache of another kind is left alone.
    ones = [[5]] * 4
    assert sample_completions(model, ones, greedy(), seed=0) == [manual_greedy(model, [5], 8)] * 4


def test_shared_prompts_are_sampled_apart(make_model):
    model = make_model()
    ids = sample_completions(model, [[4, 9, 5]] * 400, sampling(max_new_tokens=2), seed=0)
    with torch.no_grad():
        expected = model.eval()(torch.tensor([[4, 9, 5]])).logits[0, -1].softmax(-1)
    first = torch.bincount(torch.tensor(ids)[:, 0], minlength=len(expected)) / 400
    # Fails by chance less than once in 10^6.
    assert ((first - expected).abs() < 6 * (expected * (1 - expected) / 400).sqrt() + 3e-3).all()


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {}])
def test_other_caches(make_model, options):
    model = make_model()
    config = greedy(**options)
    grouped = [[4, 9, 5]] * 3
    assert (
        sample_completions(model, grouped, config, seed=0)
        == [manual_greedy(model, [4, 9, 5], 8)] * 3
    )


# ---- Stop strings -----------------------------------------------------------------------------


def test_stop_strings(make_model, tokenizer):
    model = make_model()
    free = sample_completions(model, PROMPTS * 8, sampling(), seed=6)
    stops = ["ab", "g"]
    config = sampling(stop_strings=stops)
    stopped = sample_completions(model, PROMPTS * 8, config, seed=6, tokenizer=tokenizer)
    sampler = Sampler(config, tokenizer, batch_size=None)
    ended = 0
    for ids, whole in zip(stopped, free, strict=True):
        text, shorter = tokenizer.decode(ids), tokenizer.decode(ids[:-1])
        assert not any(stop in shorter for stop in stops)
        if any(stop in text for stop in stops):
            ended += 1
            assert sampler.is_finished(ids)
        else:
            assert len(ids) == len(whole) == 8
            assert not sampler.is_finished(ids)
    assert 4 < ended < 32


def test_a_stop_string_does_not_begin_in_the_prompt(make_model, tokenizer):
    """Else the row would end unseen, and be filled with padding to its full length."""
    model = make_model()
    prompt = tokenizer("cga")["input_ids"]
    config = sampling(stop_strings="ab")
    config.temperature, config.eos_token_id = 3.0, tokenizer.eos_token_id
    ids = sample_completions(model, [prompt] * 200, config, seed=1, tokenizer=tokenizer)
    begun = [row for row in ids if tokenizer.decode(row[0]) == "b"]
    assert len(begun) > 5
    # By chance once in 16^5.
    assert not any(row[1:6] == [tokenizer.pad_token_id] * 5 for row in begun)


def test_stop_strings_in_training(make_trainer, tokenizer, read_events):
    trainer = make_trainer(
        generation_kwargs={"stop_strings": ["a", "b", "c"]},
        mask_truncated_completions=True,
        per_device_train_batch_size=32,
        max_steps=1,
    )
    trainer.train()
    rollouts = trainer._rollouts
    texts = [tokenizer.decode(ids) for ids in rollouts.completion_ids]
    found = [any(c in "abc" for c in text) or text.endswith("<eos>") for text in texts]
    assert rollouts.in_loss.tolist() == found
    assert 0 < sum(found) < 32
    event = read_events(trainer.args.output_dir, "step")[0]
    assert event["completions/clipped_ratio"] == pytest.approx(1 - sum(found) / 32)


# ---- Continuous batching ----------------------------------------------------------------------


@has_continuous_batching
def test_continuous_batching_samples_the_same_policy(make_model):
    """Greedy: token by token what generate finds, in the order of the prompts."""
    model = make_model(num_hidden_layers=2)
    model.train()
    config = greedy(eos_token_id=1)
    grouped = [prompt for prompt in PROMPTS for _ in range(2)]
    expected = sample_completions(model, grouped, config, seed=0)
    got = sample_by_continuous_batching(model, grouped, config, seed=0, options={})
    assert got == expected
    assert model.training
    assert len({tuple(ids) for ids in got}) > 1


@has_continuous_batching
def test_continuous_batching_in_training(make_trainer, tmp_path):
    trainer = make_trainer(
        use_transformers_continuous_batching=True,
        transformers_continuous_batching_config={"max_batch_tokens": 256},
        eval_dataset=[{"prompt": "abc", "difficulty": 0}],
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.evaluate()["eval_reward"] >= 0
    with pytest.raises(ValueError, match="continuous_batching must be False with stop_strings"):
        make_trainer(
            use_transformers_continuous_batching=True, generation_kwargs={"stop_strings": ["a"]}
        )


@has_continuous_batching
def test_continuous_batching_under_autocast_leaves_the_parameters(make_model, make_trainer):
    """It samples in bfloat16; the weights stay in float32, the same objects, and tied."""
    model = make_model()
    before = dict(model.named_parameters(remove_duplicate=False))
    values = {name: p.detach().clone() for name, p in before.items()}
    trainer = make_trainer(
        model=model, bf16=True, use_transformers_continuous_batching=True, learning_rate=0.0
    )
    trainer.train()
    assert all(trainer._rollouts.completion_ids)
    after = dict(trainer.model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    for name, p in after.items():
        assert p is before[name]
        assert p.dtype == torch.float32
        assert torch.equal(p, values[name])
        assert p.grad is None or p.grad.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight


@has_continuous_batching
def test_continuous_batching_in_bfloat16_samples_the_same_policy(make_model):
    model = make_model(num_hidden_layers=2)
    config = greedy(eos_token_id=1)
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        got = sample_by_continuous_batching(model, prompts, config, seed=0, options={})
    expected = sample_completions(model.to(torch.bfloat16), prompts, config, seed=0)
    agree = sum(a == b for a, b in zip(got, expected, strict=True))
    # Greedy choices between near equals may differ: other kernels add in another order.
    assert agree >= len(prompts) - 2


def test_continuous_batching_of_an_older_transformers_is_refused(make_trainer, monkeypatch):
    monkeypatch.setattr(setup, "generation", SimpleNamespace())
    with pytest.raises(ValueError, match="continuous_batching must be False with transformers "):
        make_trainer(use_transformers_continuous_batching=True)


@has_continuous_batching
def test_a_failed_request_is_an_error(make_model, monkeypatch):
    model = make_model()
    answer = SimpleNamespace(error="out of blocks", generated_tokens=[])
    monkeypatch.setattr(type(model), "generate_batch", lambda *a, **k: {"r": answer})
    with pytest.raises(RuntimeError, match=r"answered 0 of 1 prompts: out of blocks; set use_"):
        sample_by_continuous_batching(model, [[3, 4]], greedy(), seed=0, options={})


@pytest.mark.parametrize("name", ["num_return_sequences", "max_time"])
def test_generation_kwargs_that_change_the_shape(make_trainer, name):
    with pytest.raises(ValueError, match=f"generation_kwargs must not hold {name}"):
        make_trainer(generation_kwargs={name: 2})


def test_generation_kwargs_override_the_sampler(make_trainer, tokenizer):
    """As in TRL: of two choices the later one wins, and one token is no choice at all."""
    trainer = make_trainer(top_k=5, generation_kwargs={"top_k": 1, "do_sample": True})
    trainer.train()
    rollouts = trainer._rollouts
    for start in range(0, 8, 4):
        assert len({tuple(ids) for ids in rollouts.completion_ids[start : start + 4]}) == 1


@pytest.mark.parametrize(
    "changed", [{"max_new_tokens": 3}, {"eos_token_id": 5}, {"do_sample": False}]
)
def test_generation_kwargs_leave_what_the_loss_depends_on(make_trainer, changed):
    (name,) = changed
    with pytest.raises(ValueError, match=f"generation_kwargs must not change {name}, which"):
        make_trainer(generation_kwargs=changed)


# ---- Precision --------------------------------------------------------------------------------


class Casts(TorchDispatchMode):
    """The memory of every tensor that was cast."""

    def __init__(self):
        super().__init__()
        self.of = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.of.append(args[0].data_ptr())
        return func(*args, **(kwargs or {}))


def test_frozen_weights_are_cast_once(make_model):
    """As autocast would, which does it for every token; the model is then as it was."""
    targets = ["q_proj", "down_proj"]
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=targets))
    before = dict(model.named_parameters(remove_duplicate=False))
    frozen = {p.data_ptr() for name, p in before.items() if "proj" in name and not p.requires_grad}
    assert len(frozen) == 10  # seven weights, three biases

    def sample():
        with Casts() as casts:
            completions = sample_completions(model, PROMPTS, sampling(max_new_tokens=8), seed=3)
        return completions, sum(data in frozen for data in casts.of)

    with torch.autocast("cpu", torch.bfloat16):
        expected, casts = sample()
        assert casts >= 10 * 8
        with frozen_weights_cast(model):
            assert model.get_base_model().lm_head.weight.dtype == torch.bfloat16
            assert model.get_base_model().model.embed_tokens.weight.dtype == torch.float32
            assert sample() == (expected, 0)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is p for name, p in before.items())
    with frozen_weights_cast(model):  # without autocast
        assert all(p.dtype == torch.float32 for p in model.parameters())


def test_training_an_adapter_in_bfloat16_casts_frozen_weights_once(make_trainer, monkeypatch):
    seen = []

    def spy(model, *args, **kwargs):
        seen.append({name: p.dtype for name, p in model.named_parameters()})
        return sample_completions(model, *args, **kwargs)

    monkeypatch.setattr(rollout, "sample_completions", spy)
    trainer = make_trainer(bf16=True, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    trainer.train()
    for dtypes in seen:
        for name, dtype in dtypes.items():
            cast = ("proj" in name or "lm_head" in name) and "lora" not in name
            assert dtype == (torch.bfloat16 if cast else torch.float32), name
    assert len(seen) == 2
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
