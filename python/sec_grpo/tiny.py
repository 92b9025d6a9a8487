"""A tiny random causal language model and a character tokenizer, made without any download.

For demonstrations, tests and dry runs: they go through the same loading and training code as a
real model.
"""

from __future__ import annotations

import string

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


def character_tokenizer(alphabet: str = string.printable) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a character; others become `<unk>`.

    Args:
        alphabet: the characters, each once.

    Raises:
        ValueError: a character stands twice in `alphabet`, or there is none.
    """
    if not alphabet or len(set(alphabet)) != len(alphabet):
        raise ValueError(f"alphabet must hold distinct characters, got {alphabet!r}")
    special = ["<pad>", "<eos>", "<unk>"]
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        # Without token_type_ids, which older transformers make for chat prompts and Qwen2 refuses.
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def tiny_qwen2(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int = 96,
    num_hidden_layers: int = 3,
    num_attention_heads: int = 4,
    intermediate_size: int = 288,
    max_position_embeddings: int = 32768,
    seed: int = 0,
) -> Qwen2ForCausalLM:
    """A randomly initialised model of the Qwen2 architecture for `tokenizer`'s vocabulary.

    The defaults give about 0.4 million float32 parameters with a vocabulary of a hundred. The
    global random generator is left as it was.
    """
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)
