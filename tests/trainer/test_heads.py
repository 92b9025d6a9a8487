"""The fused head is the model's own, whatever the model does to its logits."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, TrainerCallback

COMMON = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES = {
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Llama": {"tie_word_embeddings": True},
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 4},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 32},
    "Phi": {},  # a bias in the head
    "GPTNeoX": {},
    "OPT": {"word_embed_proj_dim": 16, "ffn_dim": 32},
}


def tiny(family, **changes):
    options = {**COMMON, **FAMILIES[family], **changes}
    if family == "GPT2":
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            options.pop(name)
        options.pop("max_position_embeddings")
    config = getattr(transformers, f"{family}Config")(**options)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    head = model.get_output_embeddings()
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return model


class KeepGradients(TrainerCallback):
    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        self.gradients.append({n: g.clone() for n, g in grads.items()})


@pytest.fixture
def train(make_trainer, read_events):
    def train(model, *, name="run", **options):
        keep = KeepGradients()
        trainer = make_trainer(
            model=model, callbacks=[keep], max_grad_norm=0.0, temperature=0.8, **options
        )
        trainer.train()
        return trainer, keep.gradients, read_events(trainer.args.output_dir, "step")

    return train


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_head_is_the_unfused(train, family, tmp_path):
    options = {"num_iterations": 2, "max_steps": 4, "beta": 0.1}
    _, fused, fused_log = train(tiny(family), **options)
    _, plain, plain_log = train(
        tiny(family), fused_lm_head=False, output_dir=str(tmp_path / "plain"), **options
    )
    assert fused[0].keys() == plain[0].keys()
    largest = max(float(g.abs().max()) for g in plain[0].values())
    assert largest > 1e-3
    for name, gradient in plain[0].items():
        torch.testing.assert_close(fused[0][name], gradient, rtol=1e-3, atol=1e-5 * largest)
    for ours, theirs in zip(fused_log, plain_log, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("loss", "entropy", "kl", "ratio/mean"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key
        assert 0.1 < ours["entropy"] < 2.8


@pytest.mark.parametrize("family", ["Cohere", "Granite", "Gemma2", "Phi"])
def test_the_cases_are_not_trivial(family):
    """Each changes its logits, so that a plain head would be wrong."""
    model = tiny(family).eval()
    ids = torch.tensor([[3, 4, 5]])
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state
    plain = hidden @ model.get_output_embeddings().weight.T
    assert (plain - model(input_ids=ids).logits).abs().max() > 0.1


class HalfLogits(transformers.LlamaForCausalLM):
    """Does something to its logits that no config field tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.95
        return output


@pytest.mark.parametrize("initializer_range", [0.3, 0.002])
def test_unknown_change_of_logits_is_refused(make_trainer, train, initializer_range):
    options = {**COMMON, "initializer_range": initializer_range}
    model = HalfLogits(transformers.LlamaConfig(**options))
    with pytest.raises(ValueError, match="HalfLogits changes its logits .*fused_lm_head=False"):
        make_trainer(model=model)
    trainer, _, _ = train(model, fused_lm_head=False)
    assert trainer.state.global_step == 2


def lora(**options):
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, lora_alpha=8, task_type="CAUSAL_LM", **options)


def test_lora_on_attention(train, make_model):
    base = make_model()
    before = {name: p.clone() for name, p in base.named_parameters()}
    config = lora(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer, gradients, log = train(base, peft_config=config, learning_rate=1e-2, max_steps=3)
    changed = set()
    for name, parameter in trainer.model.named_parameters():
        plain = name.replace("base_model.model.", "").replace(".base_layer", "")
        if plain in before:
            assert torch.equal(parameter, before[plain]), name
        else:
            assert "lora_" in name
            changed.add(name)
    assert changed == gradients[0].keys()
    assert all(float(g.abs().max()) > 0 for g in gradients[0].values())
    assert log[0]["grad_norm"] > 0


def test_lora_samples_from_the_adapted_policy(train, make_model):
    """The logged ratio is 1 at the first update, so sampling and update see one policy."""
    config = lora(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    _, _, log = train(
        make_model(), peft_config=config, num_iterations=2, beta=0.2, learning_rate=1e-2
    )
    assert log[0]["ratio/mean"] == pytest.approx(1.0, abs=1e-5)
    assert log[0]["kl"] > 1e-3  # the reference is the base model without its adapter


def test_a_trained_adapter_is_part_of_the_reference(make_trainer, make_model):
    """Which is a copy of the adapter; the weights below it are there once."""
    peft = pytest.importorskip("peft")
    config = lora(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(make_model(), config)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = make_trainer(model=model, beta=0.2, learning_rate=1e-2, max_steps=3)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log[0]["kl"] == pytest.approx(0.0, abs=1e-7)
    assert log[2]["kl"] > 1e-4
    reference = dict(trainer._reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(reference[name], before[name]), name
        assert (reference[name] is parameter) == ("lora_" not in name)
    with pytest.raises(ValueError, match="peft_config must be unset with a model that has an ada"):
        make_trainer(model=model, peft_config=config)


def test_lora_on_the_head(make_trainer, train):
    def model():
        return tiny("Qwen2", tie_word_embeddings=False)

    config = lora(target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="plain linear lm_head, got .*lm_head out of the LoRA"):
        make_trainer(model=model(), peft_config=config)
    _, gradients, _ = train(model(), peft_config=config, fused_lm_head=False)
    assert any("lm_head" in name for name in gradients[0])


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_whole_head_beside_an_adapter(train, beta, tmp_path):
    """The copy that PEFT trains is what is fused; the reference has the head from before."""
    runs = {}
    for fused in (True, False):
        config = lora(target_modules=["q_proj"], modules_to_save=["lm_head"])
        model = tiny("Qwen2", tie_word_embeddings=False)
        options = {"peft_config": config, "beta": beta, "max_steps": 3}
        folder = str(tmp_path / str(fused))
        runs[fused] = train(model, fused_lm_head=fused, output_dir=folder, **options)
    trained = [name for name in runs[True][1][0] if "lm_head" in name]
    assert trained == ["base_model.model.lm_head.modules_to_save.default.weight"]
    for found, expected in zip(runs[True][1], runs[False][1], strict=True):
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)
        assert found[trained[0]].norm() > 1e-3
    if beta:
        found, expected = (runs[fused][2][2]["kl"] for fused in (True, False))
        assert found == pytest.approx(expected, rel=1e-3)
        assert found > 1e-7


def test_modules_to_save_beside_the_head(train):
    config = lora(target_modules=["q_proj"], modules_to_save=["norm"])
    _, fused, _ = train(tiny("Llama"), peft_config=config)
    assert any("norm.modules_to_save" in name for name in fused[0])


def test_prompt_learning_is_refused(make_trainer, make_model):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="prompt-learning method .* use LoRA"):
        make_trainer(model=make_model(), peft_config=config)


def test_tied_weights_get_both_gradients(train, make_model):
    _, fused, _ = train(make_model(), max_steps=1)
    model = make_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    _, plain, _ = train(make_model(), max_steps=1, fused_lm_head=False)
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(fused[0][name], plain[0][name], rtol=1e-4, atol=1e-6)
    assert (fused[0][name].abs().sum(1) > 0).all()  # every token's row, through the head
