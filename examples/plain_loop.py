"""GRPO with a curriculum in a plain PyTorch loop: a tiny model learns to sort letters on a CPU."""

import string

import torch

from sec_grpo import SEC, Curriculum, group_advantages, linear_policy_loss
from sec_grpo.tasks import get
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

TASK, LEVELS, GROUP = get("sort"), (2, 4, 6, 8), 8


def answers(model, tokenizer, rows, **options):
    """Token ids (B, P + T) of prompts and completions, P, and the rewards of the completions."""
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    ids, start = model.generate(**inputs, max_new_tokens=9, **options), inputs["input_ids"].shape[1]
    texts = tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
    truths = [row["ground_truth"] for row in rows]
    return ids, start, torch.tensor(TASK.reward([""] * len(rows), texts, ground_truth=truths))


def train(model, tokenizer, rows, steps):
    """Train the model in place; returns the curriculum."""
    curriculum = Curriculum([row["difficulty"] for row in rows], SEC(temperature=0.2), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.0)
    for _ in range(steps):
        indices = curriculum.draw(16)
        batch = [rows[i] for i in indices for _ in range(GROUP)]
        ids, start, rewards = answers(model, tokenizer, batch, do_sample=True)
        advantages = group_advantages(rewards, num_generations=GROUP).advantages
        groups = {"advantages": advantages.view(-1, GROUP), "rewards": rewards.view(-1, GROUP)}
        curriculum.observe(indices, **{name: t.numpy() for name, t in groups.items()})

        ends = ids[:, start:] == tokenizer.eos_token_id
        mask = ends.cumsum(1) - ends.long() == 0  # up to and including the end token
        attention = torch.cat([ids[:, :start] != tokenizer.pad_token_id, mask], dim=1).long()
        hidden = model.model(input_ids=ids, attention_mask=attention).last_hidden_state
        result = linear_policy_loss(
            hidden[:, start - 1 : -1], model.lm_head.weight, ids[:, start:], advantages, mask=mask
        )
        optimizer.zero_grad()
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return curriculum


def warm_start(model, tokenizer, steps):
    """Supervised training on up to 3 letters: GRPO needs answers that are sometimes right."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rows = [row for level in (1, 2, 3) for row in TASK.generate(level, 32 * steps, seed=1)]
    for step in range(steps):
        texts = [row["prompt"] + row["ground_truth"] + "<eos>" for row in rows[step::steps]]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        is_prompt = (inputs["input_ids"] == tokenizer.convert_tokens_to_ids(">")).cumsum(1) == 0
        labels = inputs["input_ids"].masked_fill(is_prompt, -100)
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def accuracy(model, tokenizer):
    """The share of greedy answers that are right at each level."""
    tests = {level: TASK.generate(level, 64, seed=2) for level in LEVELS}
    return {
        level: answers(model, tokenizer, rows, do_sample=False)[2].mean().item()
        for level, rows in tests.items()
    }


def main(warm_steps=120, steps=60):
    """Accuracies before and after, and the curriculum."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer(string.ascii_lowercase + ">")
    model = tiny_qwen2(tokenizer)
    warm_start(model, tokenizer, warm_steps)
    before = accuracy(model, tokenizer)
    rows = [row for level in LEVELS for row in TASK.generate(level, 200, seed=0)]
    curriculum = train(model, tokenizer, rows, steps)
    return before, accuracy(model, tokenizer), curriculum


if __name__ == "__main__":
    torch.set_num_threads(1)  # the model is too small to be shared
    before, after, curriculum = main()
    for level, share in zip(curriculum.arms, curriculum.probabilities(), strict=True):
        print(f"{level} letters: {before[level]:.2f} right before, {after[level]:.2f} after; "
              f"probability at the end {share:.2f}")  # fmt: skip
