"""Checkpoints that are whole or absent: staged, sealed with a manifest, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from sec_grpo.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import Trainer

STATE_FILE = "sec_grpo.pt"
MANIFEST_FILE = "manifest.json"
STAGING_DIR = "_incomplete"  # push_to_hub leaves out what begins with an underscore
REPLACED_SUFFIX = ".replaced"
REMOVED_SUFFIX = ".removed"
FORMAT = 1


def save_state(directory: Path, state: dict[str, Any]) -> None:
    """Write the trainer's own state (curriculum, pending rollouts) into a checkpoint."""
    torch.save({"format": FORMAT, **state}, directory / STATE_FILE)


def load_state(directory: Path) -> dict[str, Any]:
    """The state written by `save_state`.

    Raises:
        CheckpointError: it is not there, not readable, or of a newer format.
    """
    path = directory / STATE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{directory} has no {STATE_FILE}: it was not written by sec_grpo's GRPOTrainer. To "
            "start from its weights, pass the folder as the model instead of resuming from it"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format')!r}; this version reads {FORMAT}. Install the "
            "version of sec-grpo that wrote it"
        )
    return state


def save_rollouts(directory: Path, rollouts: dict[str, Any], rank: int) -> None:
    """Write one process's completions that are still to be used."""
    torch.save(rollouts, directory / f"rollouts_{rank}.pt")


def load_rollouts(directory: Path, rank: int, world_size: int) -> dict[str, Any] | None:
    """The completions saved by `save_rollouts`, or None when the step used them all.

    Raises:
        CheckpointError: they were saved by another number of processes.
    """
    saved = len(list(directory.glob("rollouts_*.pt")))
    if not saved:
        return None
    if saved != world_size:
        raise CheckpointError(
            f"{directory} was saved by {saved} processes in the middle of a generation batch and "
            f"cannot be resumed by {world_size}; resume with {saved}, or from a checkpoint at a "
            "multiple of the optimizer steps per generation"
        )
    path = directory / f"rollouts_{rank}.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def clear(staging: Path) -> None:
    """Remove the staging folder and what a killed save left in it."""
    shutil.rmtree(staging, ignore_errors=True)


def recover(output_dir: Path) -> None:
    """Put an output folder in order after a kill: no staging, nothing half replaced or deleted."""
    clear(output_dir / STAGING_DIR)
    for removed in output_dir.glob(f"checkpoint-*{REMOVED_SUFFIX}"):
        shutil.rmtree(removed, ignore_errors=True)
    for replaced in output_dir.glob(f"checkpoint-*{REPLACED_SUFFIX}"):
        final = replaced.with_name(replaced.name.removesuffix(REPLACED_SUFFIX))
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.replace(replaced, final)


def rotate(trainer: Trainer, output_dir: Path) -> None:
    """Keep the newest `save_total_limit` checkpoints and the best, as transformers does.

    The newest by time: after resuming from an earlier step that is not the highest number.
    """
    limit, best = trainer.args.save_total_limit, trainer.state.best_model_checkpoint
    if limit is None or limit <= 0:
        return
    by_time = [Path(path) for path in _sorted_by_time(trainer, output_dir)]
    kept = {by_time[-1], *([] if best is None else [Path(best)])}
    surplus = len(by_time) - max(limit, len(kept))
    for checkpoint in [path for path in by_time if path not in kept][: max(surplus, 0)]:
        remove(checkpoint)


def _sorted_by_time(trainer: Trainer, output_dir: Path) -> list[str]:
    """Checkpoints, the oldest first; by number on file systems that do not keep times."""
    if hasattr(trainer, "_sorted_checkpoints"):  # transformers 4
        return list(trainer._sorted_checkpoints(use_mtime=True, output_dir=str(output_dir)))
    from transformers.trainer_utils import sort_checkpoints

    return list(sort_checkpoints(str(output_dir), use_mtime=True))


def saved(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run."""
    return [path for path in output_dir.glob("checkpoint-*") if path.name[11:].isdigit()]


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: under another name, so that a kill leaves no half of one."""
    removed = checkpoint.with_name(checkpoint.name + REMOVED_SUFFIX)
    os.replace(checkpoint, removed)
    shutil.rmtree(removed, ignore_errors=True)


def publish(staged: Path, final: Path) -> None:
    """Seal a staged checkpoint and move it into place.

    After a crash at any moment `final` is the old checkpoint, the new one, or absent; it is never
    a mixture, and where it is absent `recover` brings the old one back. Everything is flushed to
    the disk before the rename.
    """
    manifest = {}
    for path in _files(staged):
        manifest[path.relative_to(staged).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        _fsync(path)
    target = staged / MANIFEST_FILE
    target.write_text(json.dumps({"format": FORMAT, "files": manifest}, indent=1))
    _fsync(target)
    _fsync(staged)
    replaced = final.with_name(final.name + REPLACED_SUFFIX)
    if final.exists():
        os.replace(final, replaced)
    os.replace(staged, final)
    _fsync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def find(output_dir: Path, resume_from_checkpoint: str | bool | None) -> Path | None:
    """The verified checkpoint that Trainer's argument names; True is the last in `output_dir`.

    Raises:
        CheckpointError: there is none, or it is not whole.
    """
    if resume_from_checkpoint is None or resume_from_checkpoint is False:
        return None
    if resume_from_checkpoint is True:
        last = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
        if last is None:
            raise CheckpointError(
                f"{output_dir} holds no checkpoint to resume from; start without resuming, or "
                "name the checkpoint folder"
            )
        resume_from_checkpoint = last
    path = Path(str(resume_from_checkpoint))
    verify(path)
    return path


def check_layout(path: Path, saved: dict[str, Any], mine: dict[str, Any]) -> None:
    """Compare what must not change between the parts of a run.

    Raises:
        CheckpointError: it has changed.
    """
    for name, value in mine.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{path} was trained with {name}={saved.get(name)!r}, now it is {value!r}; set it "
                "back to continue the run, or start a new one from the checkpoint's weights"
            )


def verify(directory: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: the folder or a file is missing, or a file has changed.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} does not exist or is not a folder")
    path = directory / MANIFEST_FILE
    if not path.is_file():
        load_state(directory)  # names the reason when the checkpoint is another program's
        raise CheckpointError(
            f"{directory} has no {MANIFEST_FILE}, so whether it is whole cannot be told; resume "
            "from another checkpoint"
        )
    try:
        files = json.loads(path.read_text())["files"]
        entries = [(name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for name, size, digest in entries:
        file = directory / name
        if not file.is_file():
            raise CheckpointError(f"{directory} lacks {name}; resume from another checkpoint")
        if file.stat().st_size != size or _sha256(file) != digest:
            raise CheckpointError(
                f"{file} is corrupt: it is not what was saved ({size} bytes); resume from another "
                "checkpoint"
            )


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST_FILE)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
