#!/usr/bin/env bash
# GRPO with a curriculum on verl 0.8: our command in the place of verl.trainer.main_ppo.
# First: python prepare.py countdown data/
set -euo pipefail
python3 -m sec_grpo.integrations.verl.main_ppo \
    +data.curriculum.name=sec \
    +data.curriculum.temperature=0.4 \
    +data.curriculum.category=extra_info.difficulty \
    data.train_files=data/train.parquet \
    data.val_files=data/test.parquet \
    data.train_batch_size=64 \
    data.max_prompt_length=512 \
    data.max_response_length=1024 \
    data.dataloader_num_workers=0 \
    custom_reward_function.path=prepare.py \
    custom_reward_function.name=compute_score \
    algorithm.adv_estimator=grpo \
    actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen2.5-1.5B-Instruct}" \
    actor_rollout_ref.model.use_fused_kernels=True \
    actor_rollout_ref.model.external_lib=sec_grpo.integrations.verl.fused \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    trainer.n_gpus_per_node="${GPUS:-8}" \
    trainer.nnodes="${NODES:-1}" \
    trainer.total_epochs=3 \
    trainer.save_freq=20 \
    "$@"
