"""TRL's losses over our log-probabilities: the same training, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("trl", reason="needs TRL: pip install 'sec-grpo[trl]'")

import trl
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer import utils

from sec_grpo.integrations.trl import CurriculumGRPOTrainer, use_fused_loss

STREAMED = hasattr(utils, "add_fused_lm_head")  # TRL 1.15 and newer
LOSSES = {
    "dapo": {"loss_type": "dapo", "temperature": 0.8, "num_iterations": 2},
    "grpo with KL": {"loss_type": "grpo", "beta": 0.1, "top_entropy_quantile": 0.5},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0, "num_iterations": 2},
    "sequence level": {"importance_sampling_level": "sequence", "steps_per_generation": 4},
}


@pytest.fixture(autouse=True)
def own_functions_afterwards():
    yield
    use_fused_loss(False)


def replaced() -> object:
    """What `use_fused_loss` exchanges in the installed version."""
    if STREAMED:
        return utils._ChunkedLogProbFunction
    return trl.GRPOTrainer._get_per_token_logps_and_entropies


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)).item()


def in_plain_torch(hidden, weight, bias, targets, temperature, _, softcap, logit_scale, outputs):
    """What TRL's streamed function computes, with the logits whole."""
    logits = torch.nn.functional.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = (logits / temperature).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1) if "entropy" in outputs else None
    return logprobs.gather(1, targets[:, None])[:, 0], entropy


def is_close(found: list[dict], expected: list[dict]) -> None:
    """Losses, entropies and gradient norms of five logged steps."""
    names = ("loss", "entropy", "grad_norm", "kl", "clip_ratio/region_mean")
    steps = [entry for entry in expected if "loss" in entry]
    assert len(steps) == 5
    for one, other in zip(steps, (entry for entry in found if "loss" in entry), strict=True):
        for name in names:
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("loss", LOSSES)
def test_five_steps_give_the_same_weights(make, weights, tmp_path, loss) -> None:
    def run(folder: str, kind: type) -> tuple[torch.Tensor, list[dict]]:
        trainer = make(tmp_path / folder, kind=kind, learning_rate=1e-3, **LOSSES[loss])
        before = weights(trainer)
        trainer.train()
        assert relative_error(weights(trainer), before) > 1e-3
        return weights(trainer), trainer.state.log_history

    own, own_log = run("own", trl.GRPOTrainer)
    before = replaced()
    with use_fused_loss():
        assert replaced() is not before
        fused, fused_log = run("fused", trl.GRPOTrainer)
    assert replaced() is before
    # Both are float32 and differ in the order of sums.
    assert relative_error(fused, own) < 1e-4
    is_close(fused_log, own_log)


def test_with_a_model_whose_decoder_is_not_called_model(make, weights, tmp_path) -> None:
    config = GPT2Config(
        vocab_size=7, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=None,
        eos_token_id=1, pad_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    found = []
    for name, enabled in (("own", False), ("fused", True)):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        with use_fused_loss(enabled):
            # SGD: the keys' biases have gradients of rounding alone, which Adam would normalize.
            trainer = make(tmp_path / name, kind=trl.GRPOTrainer, model=model, max_steps=2,
                           optim="sgd", learning_rate=0.1)  # fmt: skip
            before = weights(trainer)
            trainer.train()
        assert relative_error(weights(trainer), before) > 1e-4
        found.append(weights(trainer))
    assert relative_error(found[1], found[0]) < 1e-6


def test_with_lora_and_accumulation(make, weights, tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    options = {"gradient_accumulation_steps": 2, "learning_rate": 1e-2, "beta": 0.05}
    found, logs = [], []
    for name, enabled in (("own", False), ("fused", True)):
        with use_fused_loss(enabled):
            lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            trainer = make(tmp_path / name, kind=trl.GRPOTrainer, peft_config=lora, **options)
            trainer.train()
        named = trainer.model.named_parameters()
        found.append(torch.cat([p.detach().flatten() for n, p in named if "lora_B" in n]))
        logs.append(trainer.state.log_history)
    is_close(logs[1], logs[0])
    assert found[0].abs().max() > 1e-3
    assert relative_error(found[1], found[0]) < 1e-4


def test_with_a_curriculum_and_evaluation(make, weights, tmp_path) -> None:
    from datasets import Dataset

    held_out = Dataset.from_list([{"prompt": "cc>", "difficulty": 9, "number": 100}] * 2)
    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    found = []
    for name, enabled in (("own", False), ("fused", True)):
        with use_fused_loss(enabled):
            trainer = make(
                tmp_path / name, kind=CurriculumGRPOTrainer, eval_dataset=held_out,
                curriculum="sec", max_steps=3, learning_rate=1e-3, **options,
            )  # fmt: skip
            trainer.train()
        evaluated = [e for e in trainer.state.log_history if "eval_reward" in e]
        found.append((weights(trainer), trainer.reward_funcs[0].numbers, evaluated))
    (own, own_rows, own_eval), (fused, rows, evaluated) = found
    assert rows == own_rows
    assert relative_error(fused, own) < 1e-4
    assert evaluated
    for one, other in zip(evaluated, own_eval, strict=True):
        assert one["eval_loss"] == pytest.approx(other["eval_loss"], abs=1e-4)
        assert one["eval_reward"] == other["eval_reward"]


def test_with_mixed_precision(make, tmp_path) -> None:
    logs = []
    for name, enabled in (("own", False), ("fused", True)):
        with use_fused_loss(enabled):
            trainer = make(tmp_path / name, kind=trl.GRPOTrainer, bf16=True, max_steps=1)
            trainer.train()
        logs.append(trainer.state.log_history[0])
    own, fused = logs
    # The same completions; entropies in nats of up to log 7, rounded to bfloat16 by some versions.
    assert fused["completions/mean_length"] == own["completions/mean_length"]
    assert fused["entropy"] == pytest.approx(own["entropy"], rel=1e-2)
    assert 1 < fused["entropy"] < math.log(7) * 1.01
    assert fused["grad_norm"] == pytest.approx(own["grad_norm"], rel=2e-2)


def test_switching_is_permanent_or_for_a_block() -> None:
    own = replaced()
    use_fused_loss()
    ours = replaced()
    assert ours is not own
    with use_fused_loss():
        assert replaced() is not own
    # It held before the block, so it holds after it.
    assert replaced() is not own
    with use_fused_loss(False):
        assert replaced() is own
    assert replaced() is not own
    use_fused_loss(False)
    assert replaced() is own
    with pytest.raises(KeyError), use_fused_loss():
        raise KeyError
    assert replaced() is own


@pytest.mark.skipif(not STREAMED, reason="before TRL 1.15 there is no streamed function")
class TestStreamed:
    def call(self, apply, dtype=torch.float32, **changes):
        """Log-probabilities, entropies and the gradients of a weighted sum of both."""
        generator = torch.Generator().manual_seed(0)

        def randn(*shape):
            numbers = torch.randn(shape, generator=generator)
            return numbers.to(dtype).requires_grad_()

        hidden, weight, bias = randn(37, 16), randn(50, 16), randn(50)
        targets = torch.randint(50, (37,), generator=generator)
        outputs = apply(
            hidden, weight, bias if changes.get("with_bias", True) else None, targets, 0.7, 16,
            changes.get("softcap"), changes.get("logit_scale", 1.0),
            changes.get("outputs", ("log_probs", "entropy")),
        )  # fmt: skip
        logprobs, entropy = outputs[:2]
        total = (logprobs * torch.arange(37)).sum()
        if entropy is not None:
            total = total + entropy.sum()
        gradients = torch.autograd.grad(total, (hidden, weight, bias), allow_unused=True)
        return [t.double() for t in (logprobs, entropy, *gradients) if t is not None]

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"softcap": 3.0, "logit_scale": 0.5},
            {"with_bias": False},
            {"outputs": ("log_probs",)},
        ],
    )
    def test_values_and_gradients_are_as_near_the_truth_as_those_of_trl(self, changes) -> None:
        truth = self.call(in_plain_torch, torch.float64, **changes)
        own = self.call(utils._ChunkedLogProbFunction.apply, **changes)
        with use_fused_loss():
            ours = self.call(utils._ChunkedLogProbFunction.apply, **changes)
        assert len(truth) == len(own) == len(ours) >= 3
        for expected, one, other in zip(truth, ours, own, strict=True):
            error, own_error = relative_error(one, expected), relative_error(other, expected)
            assert error < 1.5 * own_error + 1e-6
            assert error < 1e-5

    def test_what_it_does_not_compute_is_refused(self) -> None:
        with use_fused_loss(), pytest.raises(NotImplementedError, match="does not compute is_top1"):
            self.call(utils._ChunkedLogProbFunction.apply, outputs=("log_probs", "is_top1"))

    def test_zero_3_is_refused(self) -> None:
        weight = torch.randn(5, 4)
        weight.ds_id = 0
        with use_fused_loss(), pytest.raises(NotImplementedError, match="use ZeRO-2"):
            utils._ChunkedLogProbFunction.apply(
                torch.randn(3, 4), weight, None, torch.tensor([0, 1, 2]), 1.0, 8, None, 1.0,
                ("log_probs",),
            )  # fmt: skip

    def test_another_signature_is_an_import_error(self, monkeypatch) -> None:
        class Newer:
            @staticmethod
            def forward(ctx, states, head):
                pass

        monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Newer)
        version = trl.__version__
        with pytest.raises(ImportError, match=rf"does not fit trl {version}: takes \(states, head"):
            use_fused_loss()
        assert utils._ChunkedLogProbFunction is Newer


@pytest.mark.skipif(STREAMED, reason="from TRL 1.15 on the streamed function is replaced")
class TestWholeLogits:
    def test_an_adapted_head_is_refused(self, make, tmp_path) -> None:
        peft = pytest.importorskip("peft", reason="needs peft")
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
        trainer = make(tmp_path, kind=trl.GRPOTrainer, peft_config=lora)
        with use_fused_loss(), pytest.raises(NotImplementedError, match="leave the lm_head out"):
            trainer.train()

    def test_liger_is_refused(self, make, tmp_path) -> None:
        if not hasattr(trl.GRPOTrainer, "compute_liger_loss"):
            pytest.skip("this TRL has no Liger loss")
        trainer = make(tmp_path, kind=trl.GRPOTrainer)
        with use_fused_loss(), pytest.raises(NotImplementedError, match="use_liger_kernel=False"):
            trainer.compute_liger_loss(None, {})
