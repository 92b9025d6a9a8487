"""What verl 0.9 loads by the entry point group ``verl.plugins``: our trainer, by its name.

verl leaves plug-ins that fail out without a word, and then knows no trainer_mode of that name; so a
misfit is logged here.
"""

from __future__ import annotations

import logging

try:
    import sec_grpo.integrations.verl.trainer  # noqa: F401
except ImportError as error:
    logging.getLogger(__name__).warning("trainer_mode=sec_grpo is not available: %s", error)
    raise
