"""The scalars of the log reach the trackers of `report_to`, here real TensorBoard event files."""

from __future__ import annotations

import pytest

pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVAL_ROWS = [{"prompt": "abc"[: 1 + i % 3], "difficulty": i % 3} for i in range(6)]


def test_tensorboard_holds_what_was_logged(make_trainer, read_events, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    trainer = make_trainer(
        max_steps=4,
        report_to="tensorboard",
        eval_dataset=EVAL_ROWS,
        eval_strategy="steps",
        eval_steps=2,
        dynamic_sampling_refills=1,
    )
    trainer.train()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    steps = read_events(tmp_path / "run", "step")
    for event in steps:
        for name, value in event.items():
            if name not in ("event", "step", "time", "arms"):
                assert found[f"train/{name}"][event["step"]] == pytest.approx(value, rel=1e-6), name
    assert found["train/curriculum/probability/0"].keys() == {1, 2, 3, 4}
    probabilities = steps[-1]["arms"]["probability"]
    for arm, probability in enumerate(probabilities):
        logged = found[f"train/curriculum/probability/{arm}"][4]
        assert logged == pytest.approx(probability, rel=1e-6)
    for name in (
        "groups/mixed",
        "time/rollout",
        "dynamic_sampling/refills",
        "rewards/letter_reward/mean",
    ):
        assert len(found[f"train/{name}"]) == 4
    for event in read_events(tmp_path / "run", "eval"):
        for label, accuracy in event["accuracy"].items():
            assert found[f"eval/reward/{label}"][event["step"]] == pytest.approx(accuracy, rel=1e-6)
