"""Sampling completions, each group's prompt read once, or by continuous batching.

B prompts, a group's G times in a row; U of them differ.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)

from sec_grpo.trainer.parallel import is_fsdp_root
from sec_grpo.trainer.policy import base_model, call_through

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def derive_seed(seed: int, stream: str, *counters: int) -> int:
    """A 63-bit seed from a counter, so that resuming needs no saved generator state."""
    words = [seed & 0xFFFFFFFF, *stream.encode(), *counters]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    generation_config: GenerationConfig,
    *,
    seed: int,
    batch_size: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    synced: bool = False,
) -> list[list[int]]:
    """Sample one completion per prompt.

    Prompts that stand there several times are read by the model once, where its cache is of the
    plain kind.

    Args:
        model: the policy; its train/eval mode is restored.
        prompt_ids: B prompts of token ids; a group's prompt stands there G times.
        generation_config: sampling parameters; its `eos_token_id` ends a completion and
            `pad_token_id` fills the batch.
        seed: seed of this call alone; the global generators are left as they were.
        batch_size: most prompts in one `generate` call; default all.
        tokenizer: needed where generation_config has stop_strings.
        synced: go on until every process has finished, because forwards are collective.

    Returns:
        B lists of token ids without padding, with the end token, or the token that completes a
        stop string, where one was sampled.
    """
    model = base_model(model)
    device = next(model.parameters()).device
    size = batch_size or len(prompt_ids)
    stop_strings, config = generation_config.stop_strings, copy.copy(generation_config)
    config.stop_strings = None
    options: dict[str, Any] = {"generation_config": config, "synced_gpus": synced}
    completions: list[list[int]] = []
    with _sampling(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(prompt_ids), size):
            chunk = prompt_ids[start : start + size]
            inputs = _left_pad(chunk, generation_config.pad_token_id, device)
            # Where forwards are collective all processes have to make the same ones.
            cache = None if synced else _shared_prefix(model, chunk, inputs, generation_config)
            if cache is not None:
                options["past_key_values"] = cache
            length = inputs["input_ids"].shape[1]
            if stop_strings:
                stop = StopInCompletion(tokenizer, stop_strings, length)
                options["stopping_criteria"] = StoppingCriteriaList([stop])
            output = model.generate(**inputs, **options)
            new = output[:, length:].tolist()
            completions += [cut_at_end(ids, generation_config, tokenizer) for ids in new]
    return completions


@torch.no_grad()
def sample_by_continuous_batching(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    generation_config: GenerationConfig,
    *,
    seed: int,
    options: dict[str, Any],
) -> list[list[int]]:
    """`sample_completions` by transformers' continuous batching.

    Which rows run together depends on timing, and with it the rounding: the same seed need not give
    the same completions.

    Args:
        options: arguments of `transformers.ContinuousBatchingConfig`. By default half of the free
            memory of a GPU is taken for the cache, and on a CPU what these rows need.

    Raises:
        RuntimeError: a request failed.
    """
    from transformers.generation import ContinuousBatchingConfig

    model = base_model(model)
    device = next(model.parameters()).device
    # Sampling parameters that it does not know are an error, not left out.
    given: dict[str, Any] = {"seed": seed, "drop_unsupported_processors": False}
    if device.type == "cpu":
        page_size = _page_size_name(ContinuousBatchingConfig)
        page = options.get(page_size, 64)
        pages = sum(
            -(-(len(ids) + generation_config.max_new_tokens) // page) + 1 for ids in prompt_ids
        )
        given |= {page_size: page, "num_blocks": pages, "max_batch_tokens": 512}
    else:
        given["max_memory_percent"] = 0.5
    config = copy.deepcopy(generation_config)
    if config.eos_token_id is None:
        config.eos_token_id = -1
    with (
        _sampling(model),
        # It makes its cache and masks in the precision of the parameters.
        _in_autocast_dtype(model.modules(), torch.is_floating_point),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(seed)
        found = model.generate_batch(
            prompt_ids,
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(**{**given, **options}),
            progress_bar=False,
            warmup=False,
        )
    outputs = list(found.values())
    failed = [output.error for output in outputs if output.error is not None]
    if failed or len(outputs) != len(prompt_ids):
        raise RuntimeError(
            f"continuous batching answered {len(outputs) - len(failed)} of {len(prompt_ids)} "
            f"prompts{': ' + failed[0] if failed else ''}; set "
            "use_transformers_continuous_batching=False"
        )
    return [cut_at_end(output.generated_tokens, generation_config, None) for output in outputs]


def _page_size_name(config_class: type) -> str:
    """What transformers' release calls a page's tokens."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return "page_size" if "page_size" in names else "block_size"


@contextlib.contextmanager
def frozen_weights_cast(model: nn.Module) -> Iterator[None]:
    """Under autocast, frozen float32 weights of linear layers cast once, and not once a token.

    The results are the same bits, but for layers that read another's weight themselves, as DoRA's
    do for its norm, which is then that of the rounded weight. Weights that have gradients autocast
    itself keeps, for as long as its context lasts.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with _in_autocast_dtype(linear, lambda p: p.dtype == torch.float32 and not p.requires_grad):
        yield


@contextlib.contextmanager
def _in_autocast_dtype(
    modules: Iterable[nn.Module], wanted: Callable[[nn.Parameter], bool]
) -> Iterator[None]:
    """Under autocast, the wanted parameters of modules in its precision.

    They are put aside and not changed, because gradients, and DDP's hooks, belong to them.
    """
    own = [module._parameters for module in modules]
    found = {p for parameters in own for p in parameters.values() if p is not None}
    device = next((p.device.type for p in found), "cpu")
    if not torch.is_autocast_enabled(device):
        yield
        return
    dtype = torch.get_autocast_dtype(device)
    cast = {p: nn.Parameter(p.to(dtype), requires_grad=False) for p in found if wanted(p)}
    originals = [dict(parameters) for parameters in own]
    try:
        for parameters in own:
            parameters.update({name: cast[p] for name, p in parameters.items() if p in cast})
        yield
    finally:
        for parameters, before in zip(own, originals, strict=True):
            parameters.update(before)


@contextlib.contextmanager
def _sampling(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, and no settings but the caller's.

    What the caller leaves unset would be filled from the model's own file (a top_k, a penalty), and
    the policy that samples would differ from the one that is trained.
    """
    was_training, defaults = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = defaults
        model.train(was_training)


def _shared_prefix(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    inputs: dict[str, torch.Tensor],
    generation_config: GenerationConfig,
) -> DynamicCache | None:
    """The cache of all but the last token of left-padded prompts, made of each prompt once.

    None where no prompt stands there twice, or the model has another kind of cache.
    """
    rows: dict[tuple[int, ...], int] = {}
    places = [rows.setdefault(tuple(ids), len(rows)) for ids in prompt_ids]
    length = inputs["input_ids"].shape[1]
    if len(rows) == len(prompt_ids) or length < 2 or generation_config.cache_implementation:
        return None
    if not _has_plain_cache(model):
        return None
    firsts = [places.index(row) for row in range(len(rows))]
    cache = DynamicCache(config=model.config)
    mask = inputs["attention_mask"][firsts, :-1]
    model(
        input_ids=inputs["input_ids"][firsts, :-1],
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(torch.tensor(places, device=mask.device))
    return cache


def _has_plain_cache(model: PreTrainedModel) -> bool:
    """Whether each layer keeps keys and values of every token, or of the last ones."""
    if getattr(model, "_is_stateful", False) or model.config.is_encoder_decoder:
        return False
    layers = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    return bool(layers) and layers <= {"DynamicLayer", "DynamicSlidingWindowLayer"}


def _left_pad(
    prompt_ids: list[list[int]], pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    length = max(map(len, prompt_ids))
    input_ids = torch.full((len(prompt_ids), length), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(prompt_ids):
        input_ids[i, length - len(ids) :] = torch.tensor(ids)
        attention_mask[i, length - len(ids) :] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def cut_at_end(
    ids: list[int],
    generation_config: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[int]:
    """The tokens up to the first that ends the completion, or all."""
    ends = end_tokens(generation_config)
    for i, token in enumerate(ids):
        if token in ends:
            ids = ids[: i + 1]
            break
    if generation_config.stop_strings:
        assert tokenizer is not None
        return _cut_at_stop_string(ids, generation_config.stop_strings, tokenizer)
    return ids


def end_tokens(generation_config: GenerationConfig) -> set[int]:
    """The tokens that end a completion."""
    eos: Any = generation_config.eos_token_id
    return set() if eos is None else {eos} if isinstance(eos, int) else set(eos)


def has_stop_string(
    ids: list[int], stop_strings: str | list[str], tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether the text of the tokens holds a stop string."""
    strings = [stop_strings] if isinstance(stop_strings, str) else stop_strings
    text = tokenizer.decode(ids)
    return any(string in text for string in strings)


class StopInCompletion(StopStringCriteria):
    """Stops a row at a stop string in its completion, but not at one that begins in its prompt.

    `generate` by itself would end a completion whose first tokens complete, with the end of the
    prompt, a stop string, and padding would follow that no end is seen before.

    Args:
        prompt_length: tokens of the padded prompts.
    """

    def __init__(self, tokenizer: Any, stop_strings: str | list[str], prompt_length: int) -> None:
        super().__init__(tokenizer, stop_strings)
        self._sought = (stop_strings, tokenizer)
        self._prompt_length = prompt_length

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        found = super().__call__(input_ids, scores, **kwargs)
        for row in found.nonzero().flatten().tolist():
            completion = input_ids[row, self._prompt_length :].tolist()
            found[row] = has_stop_string(completion, *self._sought)
        return found


def _cut_at_stop_string(
    ids: list[int], stop_strings: str | list[str], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """The shortest prefix with a stop string, found by halving; all tokens without one."""
    if not has_stop_string(ids, stop_strings, tokenizer):
        return ids
    low, high = 0, len(ids)  # ids[:high] has one, ids[:low] has none
    while high - low > 1:
        middle = (low + high) // 2
        if has_stop_string(ids[:middle], stop_strings, tokenizer):
            high = middle
        else:
            low = middle
    return ids[:high]


class Sampler:
    """Samples completions with the settings of a run.

    Args:
        generation_config: sampling parameters and end tokens.
        tokenizer: of the model.
        batch_size: most completions sampled together; None for all.
        continuous_batching: None for `generate`, else options of continuous batching.
        context: entered for a model while it samples: its weights whole, its dtype that of the
            update.
        synced: whether forwards are collective even so.
    """

    def __init__(
        self,
        generation_config: GenerationConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | None,
        continuous_batching: dict[str, Any] | None = None,
        context: Callable[[Any], contextlib.AbstractContextManager[Any]] | None = None,
        synced: bool = False,
    ) -> None:
        self._config = generation_config
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._continuous_batching = continuous_batching
        self._context = context or (lambda model: contextlib.nullcontext())
        self._synced = synced
        self._ends = end_tokens(generation_config)

    def sample(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], seed: int
    ) -> list[list[int]]:
        """One completion for each prompt; see `sample_completions`."""
        with self._context(model):
            if is_fsdp_root(model) and base_model(model) is not model:
                # The model in an adapter samples, but FSDP begins with the outermost one's forward.
                return call_through(model, model, self._sample, model, prompt_ids, seed)
            return self._sample(model, prompt_ids, seed)

    def _sample(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], seed: int
    ) -> list[list[int]]:
        if self._continuous_batching is not None:
            return sample_by_continuous_batching(
                model, prompt_ids, self._config, seed=seed, options=self._continuous_batching
            )
        return sample_completions(
            model,
            prompt_ids,
            self._config,
            seed=seed,
            batch_size=self._batch_size,
            tokenizer=self._tokenizer,
            synced=self._synced,
        )

    def is_finished(self, ids: list[int]) -> bool:
        """Whether a completion ended by itself."""
        if ids and ids[-1] in self._ends:
            return True
        stop = self._config.stop_strings
        return bool(stop) and has_stop_string(ids, stop, self._tokenizer)

    def at_temperature(self, temperature: float, batch_size: int | None) -> Sampler:
        """The same at another temperature; 0 is greedy."""
        config = copy.deepcopy(self._config)
        if temperature > 0:
            config.temperature = temperature
        else:
            config.do_sample = False
            config.temperature = config.top_p = config.top_k = config.min_p = None
        return Sampler(
            config,
            self._tokenizer,
            batch_size=batch_size,
            continuous_batching=self._continuous_batching,
            context=self._context,
            synced=self._synced,
        )
