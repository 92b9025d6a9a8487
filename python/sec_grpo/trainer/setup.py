"""What `GRPOTrainer` prepares once: curriculum, tokenizer, sampling settings, model checks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    generation,
)
from transformers.utils import logging

from sec_grpo.curriculum import DUMP, SEC, Curriculum, Strategy, get_strategy
from sec_grpo.trainer.config import GRPOConfig
from sec_grpo.trainer.estimators import AdvantageEstimator, temperature_advice
from sec_grpo.trainer.policy import base_model
from sec_grpo.trainer.prompts import PromptDataset
from sec_grpo.trainer.trl_names import ABSENT_TRAINER, explain_absent

logger = logging.get_logger(__name__)

_SUMS_OF_TOKENS = ("bnpo", "dr_grpo", "dapo", "cispo")
_OF_THE_SAMPLER = ("top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")


def check_arguments(args: GRPOConfig | None) -> GRPOConfig:
    """The configuration given, or the default, for one GPU a process."""
    args = args if args is not None else GRPOConfig(output_dir="grpo")
    if not isinstance(args, GRPOConfig):
        raise ValueError(
            f"args must be a sec_grpo.GRPOConfig, got {type(args).__module__}.{type(args).__name__}"
        )
    if args.n_gpu > 1:
        logger.warning("one process trains on one GPU; start %d with torchrun", args.n_gpu)
        args._n_gpu = 1
    return args


def refuse_arguments(given: dict[str, Any]) -> None:
    """Raise for arguments that GRPOTrainer does not have; TRL's are explained."""
    unknown = explain_absent(ABSENT_TRAINER, given, "GRPOTrainer")
    if unknown:
        raise TypeError(f"GRPOTrainer has no argument {next(iter(unknown))!r}")


def load_model(
    model: Any, args: GRPOConfig, peft_config: Any, quantization_config: Any = None
) -> Any:
    """The model given or named, with the adapter that `peft_config` describes.

    Loaded in float32 where no dtype is asked for, as in TRL: transformers 5 takes the checkpoint's,
    and in bfloat16 the updates of a usual learning rate are rounded away.
    """
    if isinstance(model, str):
        options = as_dict(args.model_init_kwargs)
        if "torch_dtype" not in options:
            options.setdefault("dtype", "float32")
        options.setdefault("trust_remote_code", args.trust_remote_code)
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        model = AutoModelForCausalLM.from_pretrained(model, **options)
    elif quantization_config is not None or args.model_init_kwargs:
        raise ValueError(
            "model_init_kwargs and quantization_config go with a model that is given by name; "
            f"this one is loaded already ({type(model).__name__})"
        )
    if peft_config is not None:
        from peft import get_peft_model

        if hasattr(model, "peft_config"):
            raise ValueError(
                "peft_config must be unset with a model that has an adapter already, which is then "
                "trained; for a new one merge the old first (merge_and_unload)"
            )

        model = get_peft_model(model, peft_config)
    return model


def has_dropout(model: torch.nn.Module) -> bool:
    """Whether two forwards of the model differ in training."""
    return any(True for _ in _dropouts(model))


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout of the model to 0."""
    for module, name in _dropouts(model):
        setattr(module, name, 0.0)


def _dropouts(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    """Modules and the names of their dropout probabilities above 0.

    Attention's is often a number of the attention module, and no module of its own.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            yield module, "p"
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float) and value > 0:
                yield module, name


def make_curriculum(
    curriculum: Curriculum | Strategy | str | dict[str, Any] | None,
    prompts: PromptDataset,
    args: GRPOConfig,
    seed: int,
) -> Curriculum:
    """The curriculum over `prompts` that the trainer's argument stands for.

    Raises:
        ValueError: the strategy is unknown, or the curriculum is of another number of prompts.
    """
    if isinstance(curriculum, Curriculum):
        if curriculum.num_prompts != len(prompts):
            raise ValueError(
                f"curriculum was made for {curriculum.num_prompts} prompts, train_dataset has "
                f"{len(prompts)}; make it from the same rows"
            )
        return curriculum
    if isinstance(curriculum, Strategy):
        return Curriculum(prompts.categories, curriculum, seed=seed)
    if curriculum is None or isinstance(curriculum, str):
        spec: dict[str, Any] = {"name": curriculum or "random"}
    elif isinstance(curriculum, dict):
        spec = dict(curriculum)
    else:
        raise ValueError(
            "curriculum must be a strategy such as SEC(), its name, a dict with its name and "
            f"parameters, or a Curriculum, got {curriculum!r:.60}"
        )
    if "name" not in spec:
        raise ValueError(f"curriculum needs a 'name', got {curriculum!r}")
    name = str(spec.pop("name"))
    if name.lower() in ("ordered", "reverse", "e2h_gaussian") and "steps" not in spec:
        if args.max_steps <= 0:
            raise ValueError(
                f"curriculum {name!r} needs 'steps' (its length in generation batches), or "
                "max_steps in the config to take it from"
            )
        spec["steps"] = math.ceil(args.max_steps / args.updates_per_generation)
    return Curriculum(prompts.categories, get_strategy(name, **spec), seed=seed)


def warn_of_estimator(strategy: Strategy, args: GRPOConfig) -> None:
    """Warn where a curriculum that learns from |A| gets another |A| than it is made for."""
    parameters = strategy.parameters()
    learns = isinstance(strategy, (SEC, DUMP)) or parameters.get("signal") == "abs_advantage"
    if not learns or args.multi_objective_aggregation == "normalize_then_sum":
        return
    name, scale = args.advantage_estimator, str(args.scale_rewards)
    temperature = parameters.get("temperature")
    if temperature is not None:
        advice = temperature_advice(temperature, name, scale, args.num_generations)
        if advice is not None:
            logger.warning(advice)
    if name in ("reinforce_pp", "role"):
        logger.warning(
            "with advantage_estimator=%r |A| is large also where every completion succeeds or "
            "every one fails, unless the baseline is their own: a curriculum that learns from |A| "
            "may stay with such categories. reinforce_pp_baseline, or the strategy Learnability, "
            "does not",
            name,
        )


def make_estimator(args: GRPOConfig, num_functions: int) -> AdvantageEstimator:
    """The estimator that the configuration names."""
    assert args.scale_rewards is not None
    return AdvantageEstimator(
        args.advantage_estimator,
        args.scale_rewards,
        decay=args.baseline_decay,
        normalize_then_sum=args.multi_objective_aggregation == "normalize_then_sum",
        reward_weights=args.reward_weights or [1.0] * num_functions,
    )


def load_tokenizer(
    model: Any, processing_class: Any, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer given, or the one saved beside the model."""
    if processing_class is None:
        name = model if isinstance(model, str) else base_model(model).config._name_or_path
        if not name:
            raise ValueError(
                "processing_class is missing and the model does not say where it was loaded from; "
                "pass its tokenizer"
            )
        processing_class = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise ValueError(
            f"processing_class must be a tokenizer, got {type(processing_class).__name__}"
        )
    return processing_class


def make_generation_config(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, args: GRPOConfig
) -> GenerationConfig:
    """The sampling settings of rollouts; only the end tokens come from the model.

    Raises:
        ValueError: generation_kwargs do not fit, or truncated completions are masked where none
            can end.
    """
    eos = getattr(getattr(base_model(model), "generation_config", None), "eos_token_id", None)
    if eos is None:
        eos = tokenizer.eos_token_id
    if eos is None and args.mask_truncated_completions:
        raise ValueError(
            "mask_truncated_completions must be False where neither the model nor the tokenizer "
            "has an end token: every completion is truncated and none would be left"
        )
    # 0 is the id of an ordinary token in some vocabularies; padding is masked everywhere.
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    own = {
        "max_new_tokens": args.max_completion_length,
        "do_sample": True,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "use_cache": True,
        "cache_implementation": args.cache_implementation,
    }
    extra = as_dict(args.generation_kwargs)
    _check_generation_kwargs(extra, own, args)
    return GenerationConfig(**{**own, **extra})


def _check_generation_kwargs(extra: dict[str, Any], own: dict[str, Any], args: GRPOConfig) -> None:
    """ValueError for another value of what the trainer itself reads, and what it cannot train on.

    What only the sampler reads is overridden, as in TRL.
    """
    clash = sorted(
        name
        for name in own.keys() & extra.keys()
        if name not in _OF_THE_SAMPLER and extra[name] != own[name]
    )
    if clash:
        raise ValueError(
            f"generation_kwargs must not change {', '.join(clash)}, which the loss and the masks "
            "of completions depend on; the trainer sets them (from the config's temperature and "
            "max_completion_length, and the model's end tokens)"
        )
    # GenerationConfig keeps unknown keys without a word.
    if unknown := sorted(extra.keys() - vars(GenerationConfig()).keys()):
        raise ValueError(
            f"generation_kwargs must hold arguments of transformers.GenerationConfig, got "
            f"{', '.join(unknown)}"
        )
    several = ("num_return_sequences", "return_dict_in_generate", "max_length", "max_time")
    if clash := [name for name in several if name in extra]:
        raise ValueError(
            f"generation_kwargs must not hold {', '.join(clash)}: the trainer takes one completion "
            "of at most max_completion_length tokens from each row of token ids"
        )
    others = ("num_beams", "num_beam_groups", "penalty_alpha", "prompt_lookup_num_tokens")
    if clash := [name for name in others if (extra.get(name) or 1) != 1]:
        raise ValueError(
            f"generation_kwargs must not hold {', '.join(clash)}: completions are sampled token by "
            "token from the policy that is trained"
        )
    stop = extra.get("stop_strings") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(string, str) and string for string in stop):
        raise ValueError(f"stop_strings must be texts that are not empty, got {stop!r}")
    if not args.use_transformers_continuous_batching:
        return
    if stop:
        raise ValueError(
            "use_transformers_continuous_batching must be False with stop_strings, which "
            "transformers' continuous batching does not know"
        )
    if not hasattr(generation, "ContinuousBatchingConfig"):
        raise ValueError(
            "use_transformers_continuous_batching must be False with transformers "
            f"{transformers.__version__}, whose continuous batching cannot be configured"
        )


def warn_of_low_precision(model: torch.nn.Module, learning_rate: float) -> None:
    """Warn where most of the optimizer's steps would be rounded away."""
    low = any(p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters())
    # A step of AdamW is about the learning rate, half a unit of a weight of 0.02 about 4e-5.
    if low and learning_rate < 3e-5:
        logger.warning(
            "the weights that are trained are bfloat16, which rounds a change of less than 0.2%% "
            "away: with learning_rate=%g that is most of what a step does. Load the model with "
            "dtype='float32'; bf16=True computes in bfloat16 all the same",
            learning_rate,
        )


def warn_of_sequence_ratio(args: GRPOConfig) -> None:
    """Warn where the ratio of a sequence counts once for each of its tokens."""
    if args.importance_sampling_level == "sequence" and args.loss_type in _SUMS_OF_TOKENS:
        logger.warning(
            "importance_sampling_level='sequence' with loss_type=%r weights every completion by "
            "its length, because this loss is a sum over tokens; GSPO as it is published "
            "(arXiv 2507.18071) is loss_type='grpo'",
            args.loss_type,
        )


def warn_of_router(model: torch.nn.Module) -> None:
    """Warn where TRL would add a mixture's own load-balancing loss."""
    config = base_model(model).config.get_text_config()
    coef = getattr(config, "router_aux_loss_coef", None) or 0.0
    if coef and hasattr(config, "output_router_logits"):
        logger.warning(
            "router_aux_loss_coef=%g of the model's config has no effect: this trainer has no "
            "load-balancing loss, which TRL adds by default. Freeze the router, or train with "
            "sec_grpo.integrations.trl.CurriculumGRPOTrainer",
            coef,
        )


def refuse_unsupported_model(model: torch.nn.Module) -> None:
    """Raise ValueError for what the trainer cannot sample from."""
    for name, config in (getattr(model, "peft_config", None) or {}).items():
        if config.is_prompt_learning:
            raise ValueError(
                f"PEFT adapter {name!r} is a prompt-learning method ({config.peft_type}), "
                "which GRPOTrainer does not support; use LoRA or another weight adapter"
            )


def max_positions(model: torch.nn.Module) -> int | None:
    """The longest sequence that the model's position embeddings cover, where it says so."""
    return getattr(base_model(model).config.get_text_config(), "max_position_embeddings", None)


def parameter_digest(model: torch.nn.Module) -> str:
    """A digest of the parameters' names and shapes, equal for models of equal architecture."""
    shapes = [f"{name} {tuple(p.shape)}" for name, p in model.named_parameters()]
    return hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]


def as_dict(value: Any) -> dict[str, Any]:
    """A dict-valued argument; TrainingArguments has parsed its string form already."""
    assert not isinstance(value, str)
    return dict(value or {})
