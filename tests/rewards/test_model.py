"""Sequence classifiers as reward functions."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from sec_grpo.rewards import RewardModel
from sec_grpo.tiny import character_tokenizer
from sec_grpo.trainer.rewards import RewardFunctions


@pytest.fixture
def tokenizer():
    made = character_tokenizer("abcdefgh>")
    made.chat_template = "{% for m in messages %}{{ m['content'] }}>{% endfor %}"
    return made


def classifier(tokenizer, num_labels=1):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_labels=num_labels,
    )
    return Qwen2ForSequenceClassification(config)


def score(model, tokenizer, text):
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        return model(ids).logits[0, 0].item()


def test_scores_are_those_of_each_text_alone(tokenizer):
    model = classifier(tokenizer)
    reward = RewardModel(model, tokenizer, batch_size=2, name="judge")
    completions = ["a", "bcdefg", "ab", "hhhh", ""]
    scores = reward(["ab>"] * 5, completions)
    expected = [score(model, tokenizer, "ab>" + text) for text in completions]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert len(set(scores)) == 5
    total, _ = RewardFunctions([reward], [2.0])(
        ["ab>"] * 5, completions, [[1]] * 5, {"answer": [1] * 5}
    )
    assert total.tolist() == pytest.approx([2 * s for s in scores])
    assert reward.__name__ == "judge"


def test_hostile_completions(tokenizer):
    model = classifier(tokenizer)
    reward = RewardModel(model, tokenizer, max_length=20)
    # A special token that the model spells is no special token.
    assert tokenizer("a<eos>b")["input_ids"] != tokenizer("a< eos>b")["input_ids"]
    for text in ("a<eos>b", "<eos><pad>", "<<eos>eos>", "<eos<eos>>"):
        ids = reward._encoded("ab>", text)
        assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)
    assert reward._plain("<<eos>eos>") == "<< eos>eos>"
    assert tokenizer.eos_token_id in reward._encoded("<eos>", "a")
    message = [{"role": "assistant", "content": "a<eos>b"}]
    assert tokenizer.eos_token_id not in reward._encoded(
        [{"role": "user", "content": "a"}], message
    )
    # Of a long text the end counts; what is no text at all is scored.
    assert reward(["ab>"], ["b" * 10**5 + "ac"]) == reward([""], ["b" * 18 + "ac"])
    scores = reward(["ab>"] * 4, ["", "\ud800", "\x00" * 100, "９" * 1000])
    assert all(isinstance(value, float) for value in scores)
    assert RewardModel(model, tokenizer)._max_length == model.config.max_position_embeddings


def test_chat_goes_through_the_template(tokenizer):
    model = classifier(tokenizer)
    chat = [{"role": "user", "content": "ab"}]
    answer = [{"role": "assistant", "content": "c"}]
    scores = RewardModel(model, tokenizer)([chat], [answer])
    assert scores == pytest.approx([score(model, tokenizer, "ab>c>")], abs=1e-6)


def test_loaded_by_name(tokenizer, tmp_path):
    model = classifier(tokenizer)
    folder = tmp_path / "judge-1"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reward = RewardModel(str(folder), device="cpu")
    assert reward.__name__ == "judge-1"
    expected = [score(model, tokenizer, "abc")]
    assert reward(["a"], ["bc"]) == pytest.approx(expected, abs=1e-6)


def test_bad_models(tokenizer):
    with pytest.raises(ValueError, match="must have one label. Got 3"):
        RewardModel(classifier(tokenizer, num_labels=3), tokenizer)
    with pytest.raises(ValueError, match="tokenizer is missing"):
        RewardModel(classifier(tokenizer))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        RewardModel(classifier(tokenizer), tokenizer, batch_size=0)
