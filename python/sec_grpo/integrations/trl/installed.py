"""Whether the installed TRL has the private methods that the adapter overrides."""

from __future__ import annotations

import inspect
from importlib import metadata
from typing import Any

TESTED = "1.0.0 to 1.16.0"
# Method of GRPOTrainer -> its arguments after self that are relied on.
OVERRIDDEN = {
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions"),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
}


def installed_version() -> str:
    """The version of the installed TRL."""
    return metadata.version("trl")


def check_installed() -> None:
    """Import TRL's GRPOTrainer and look at the methods that the adapter overrides.

    Raises:
        ImportError: TRL is missing, cannot be imported, or its GRPOTrainer has other methods; the
            message names the version.
    """
    try:
        version = installed_version()
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"sec_grpo.integrations.trl needs TRL ({TESTED}): pip install 'sec-grpo[trl]'",
            name="trl",
        ) from None
    try:
        from trl import GRPOTrainer
    # TRL 1.x wraps the reason into a RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"trl {version} is installed but its GRPOTrainer cannot be imported: {error}. Install "
            "what it misses, or a version that fits your transformers",
            name="trl",
        ) from error
    if reason := misfit(GRPOTrainer):
        raise ImportError(
            f"sec_grpo.integrations.trl does not fit trl {version}: {reason}. It is tested with "
            f"trl {TESTED}; install one of these, or a newer sec-grpo",
            name="trl",
        )


def misfit(trainer: Any) -> str | None:
    """What the class lacks of the overridden methods, or None."""
    for name, needed in OVERRIDDEN.items():
        method = getattr(trainer, name, None)
        if method is None:
            return f"GRPOTrainer has no {name}"
        if reason := missing_arguments(method, needed):
            return f"GRPOTrainer.{name} {reason}"
    return None


def missing_arguments(function: Any, needed: tuple[str, ...]) -> str | None:
    """Whether `needed` are not the function's first arguments after self or ctx, in words."""
    found = tuple(inspect.signature(function).parameters)[1:]
    if found[: len(needed)] == needed:
        return None
    return f"takes ({', '.join(found)}) where ({', '.join(needed)}) is expected"
