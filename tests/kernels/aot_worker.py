"""Compile every Triton kernel ahead of time for one target and print its resources as JSON.

Run by test_ahead_of_time.py: python aot_worker.py cuda 90, or python aot_worker.py hip gfx942.
A process of its own, because the kernels must be decorated without TRITON_INTERPRET.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sec_grpo.kernels import group_advantages, linear_exp, policy_loss, row_exp

ADVANTAGE_TYPES = {
    "rewards_ptr": "*fp32",
    "groups_ptr": "*i64",
    "arms_ptr": "*i64",
    "advantages_ptr": "*fp32",
    "dead_ptr": "*u8",
    "arm_sum_ptr": "*fp32",
    "arm_count_ptr": "*i64",
    "arrived_ptr": "*i32",
    "num_rollouts": "i32",
    "consecutive": "i32",
    "num_arms": "i32",
    "eps": "fp32",
}
LOSS_TYPES = {
    "advantages_ptr": "*fp32",
    "mask_ptr": "*u8",
    "cu_seqlens_ptr": "*i32",
    "old_ptr": "*fp32",
    "ref_ptr": "*fp32",
    "policy_weights_ptr": "*fp32",
    "log_is_weights_ptr": "*fp32",
    "gradient_ptr": "*fp32",
    "partials_ptr": "*fp32",
    "padded_length": "i32",
    **dict.fromkeys(("low", "high", "cap", "cispo_high"), "fp32"),
    **dict.fromkeys(
        (
            "temperature_pos",
            "temperature_neg",
            "k_pos",
            "lambda_pos",
            "k_neg",
            "lambda_neg",
            "beta",
        ),
        "fp32",
    ),
}
NUM_WARPS = {
    group_advantages._group_advantages_kernel: group_advantages.NUM_WARPS,
    policy_loss._policy_loss_kernel: policy_loss.NUM_WARPS,
    policy_loss._reduce_partials_kernel: policy_loss.REDUCE_WARPS,
    row_exp._target_logit_kernel: row_exp.TARGET_WARPS,
    row_exp._exp_kernel: row_exp.NUM_WARPS,
    row_exp._combine_kernel: row_exp.COMBINE_WARPS,
    row_exp._finish_kernel: row_exp.FINISH_WARPS,
    row_exp._gradient_kernel: row_exp.NUM_WARPS,
    linear_exp._linear_exp_kernel: linear_exp.NUM_WARPS,
}
LOSS_FLAGS = {
    "PACKED": True,
    "HAS_MASK": False,
    "HAS_OLD": True,
    "KL": 0,
    "KL_CORRECTION": False,
    "HAS_POLICY_WEIGHTS": False,
    "HAS_LOG_IS_WEIGHTS": False,
    "PER_TOKEN_ADVANTAGES": False,
    "SEQUENCE_LEVEL": False,
    "CISPO": False,
    "SAPO": False,
    "VESPO": False,
    "SEQUENCE_MEAN": False,
    "NEED_GRADIENT": True,
    "BLOCK": policy_loss.BLOCK,
}


def cases():
    """(name, kernel, signature, constexprs) of the combinations users run, and the fullest."""
    for name, flags in {
        "consecutive, group": {"CONSECUTIVE": True, "SCALE_GROUP": True, "HAS_ARMS": False},
        "any groups, group, arms": {"CONSECUTIVE": False, "SCALE_GROUP": True, "HAS_ARMS": True},
        "any groups, batch, arms": {"CONSECUTIVE": False, "SCALE_GROUP": False, "HAS_ARMS": True},
    }.items():
        flags = {
            **flags,
            "SCALE_BATCH": not flags["SCALE_GROUP"],
            "LEAVE_ONE_OUT": True,
            "UNBIASED": True,
        }
        kernel = group_advantages._group_advantages_kernel
        yield (
            f"group_advantages: {name}",
            kernel,
            ADVANTAGE_TYPES,
            {**flags, **group_advantages.BLOCKS},
        )
    kernel = policy_loss._policy_loss_kernel
    for name, logprob_type, flags in (
        ("dapo, packed", "fp32", {}),
        ("dapo, bf16", "bf16", {"KL": 3}),
        ("grpo, padded", "fp32", {"PACKED": False, "HAS_MASK": True, "SEQUENCE_MEAN": True}),
        ("sapo", "fp32", {"SAPO": True, "SEQUENCE_MEAN": True}),
        ("cispo", "fp32", {"CISPO": True, "HAS_MASK": True}),
        ("vespo", "fp32", {"VESPO": True, "HAS_POLICY_WEIGHTS": True, "HAS_LOG_IS_WEIGHTS": True}),
        (
            "sequence, everything",
            "fp32",
            {
                "HAS_MASK": True,
                "KL": 3,
                "KL_CORRECTION": True,
                "HAS_POLICY_WEIGHTS": True,
                "PER_TOKEN_ADVANTAGES": True,
                "SEQUENCE_LEVEL": True,
                "SEQUENCE_MEAN": True,
            },
        ),
    ):
        types = {"logprobs_ptr": f"*{logprob_type}", **LOSS_TYPES}
        yield f"policy_loss: {name}", kernel, types, {**LOSS_FLAGS, **flags}
    types = {
        "partials_ptr": "*fp32",
        "sums_ptr": "*fp32",
        "num_tokens_ptr": "*i64",
        "num_rows": "i32",
    }
    yield (
        "reduce_partials",
        policy_loss._reduce_partials_kernel,
        types,
        {"BLOCK": policy_loss.REDUCED_ROWS},
    )


def row_cases():
    """The row kernels of the head, plain in bfloat16 and with everything in float16."""
    statistics = ("logp_ptr", "entropy_ptr", "anchor_ptr", "log_sum_ptr")
    pointers = ("target_logits_ptr", "anchors_ptr", "sums_ptr", "moments_ptr", "rest_ptr")
    others = ("raw_ptr", "grad_logp_ptr", "grad_entropy_ptr", "scale_ptr", "row_scale_ptr")
    common = {
        **dict.fromkeys((*statistics, *pointers, *others), "*fp32"),
        "targets_ptr": "*i64",
        "temperatures_ptr": "*fp32",
        **dict.fromkeys(("temperature", "logit_scale", "softcap"), "fp32"),
    }
    integers = (
        "states_stride",
        "weight_stride",
        "raw_stride",
        "exp_stride",
        "out_stride",
        "num_hidden",
        "num_blocks",
        "num_rows",
        "first_column",
        "num_columns",
    )
    common.update(dict.fromkeys(integers, "i32"))
    block = row_exp.BLOCK
    for name, dtype, everything in (("plain", "bf16", False), ("everything", "fp16", True)):
        low = ("states_ptr", "weight_ptr", "bias_ptr", "exp_ptr", "out_ptr")
        types = {**common, **dict.fromkeys(low, f"*{dtype}")}
        flags = {"HAS_BIAS": everything, "CAP": everything, "PER_ROW": everything}
        no_bias = {"CAP": everything, "PER_ROW": everything}
        blocks = {"BLOCKS": 64, "BLOCK": block, "HAS_ENTROPY": everything}
        storing = {"STORE": True, "STORE_SLOPE": everything, "LIMIT": 20.0, "BLOCK": block}
        for kernel, constexprs in (
            (row_exp._target_logit_kernel, {**flags, "BLOCK_D": 2048}),
            (row_exp._exp_kernel, {**flags, **storing}),
            (row_exp._combine_kernel, {"ROWS": 16, "BLOCKS": 64}),
            (row_exp._finish_kernel, {**no_bias, **blocks}),
            (
                row_exp._gradient_kernel,
                {**flags, "HAS_ENTROPY": everything, "HAS_SCALE": everything, "BLOCK": block},
            ),
        ):
            used = {n: types[n] for n in kernel.arg_names if n not in constexprs}
            yield f"{kernel.__name__}: {name}", kernel, used, constexprs


def product_cases(capability: int):
    """The product with its epilogue, where it is used: on GPUs with tensor memory access."""
    columns = linear_exp.BLOCK_N.get(capability // 10)
    if columns is None:
        return
    rows, depth = linear_exp.BLOCK_M, linear_exp.BLOCK_K
    boxes = {"states_desc": (rows, depth), "weight_desc": (columns, depth)}
    boxes["exp_desc"] = (rows, columns // 4)
    types = {name: f"tensordesc<bf16[{m}, {n}]>" for name, (m, n) in boxes.items()}
    types.update(
        dict.fromkeys(
            ("temperatures_ptr", "target_logits_ptr", "anchors_ptr", "sums_ptr", "moments_ptr"),
            "*fp32",
        )
    )
    types["targets_ptr"] = "*i64"
    types.update(dict.fromkeys(("num_rows", "num_columns", "num_hidden", "num_blocks"), "i32"))
    types.update(dict.fromkeys(("temperature", "logit_scale"), "fp32"))
    kernel = linear_exp._linear_exp_kernel
    for per_row, store in ((False, True), (True, True), (False, False)):
        constexprs = {
            "PER_ROW": per_row,
            "STORE": store,
            "LIMIT": 20.0,
            "BLOCK_M": rows,
            "BLOCK_N": columns,
            "BLOCK_K": depth,
        }
        name = f"{kernel.__name__}: per_row={per_row}, store={store}"
        yield name, kernel, types, constexprs


def nvidia_resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes, as the cubin states them; spilled registers live on the stack."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return {"registers": int(found[1]), "spills": int(found[2])}


def amd_resources(assembly: str) -> dict[str, int]:
    """Registers and spilled registers, as the code object's metadata states them."""
    count = {
        key: int(value)
        for key, value in re.findall(r"\.(vgpr_count|[sv]gpr_spill_count):\s+(\d+)", assembly)
    }
    spills = count["vgpr_spill_count"] + count["sgpr_spill_count"]
    return {"registers": count["vgpr_count"], "spills": spills}


def aligned_arguments(kernel, signature: dict[str, str]) -> dict:
    """What a launch tells the compiler where pointers and sizes are multiples of 16."""
    return {
        (parameter.num,): [["tt.divisibility", 16]]
        for parameter in kernel.params
        if signature[parameter.name].startswith("*")
        or (signature[parameter.name] == "i32" and not parameter.do_not_specialize)
    }


def compile_case(kernel, types, constexprs, target: GPUTarget) -> dict[str, int]:
    signature = {**types, **dict.fromkeys(constexprs, "constexpr")}
    # Triton wants the parameters in the kernel's order.
    signature = {name: signature[name] for name in kernel.arg_names}
    options = {"num_warps": NUM_WARPS[kernel]}
    if kernel is linear_exp._linear_exp_kernel:
        options["num_stages"] = linear_exp.NUM_STAGES
    source = ASTSource(kernel, signature, constexprs, aligned_arguments(kernel, signature))
    compiled = triton.compile(source, target=target, options=options)
    if target.backend == "cuda":
        resources = nvidia_resources(compiled.asm["cubin"])
        ptx = compiled.asm["ptx"]
        # The tensor cores' own instructions for operands in shared memory, of sm_90 and of sm_100.
        resources["tensor_core"] = ptx.count("wgmma.mma_async") + ptx.count("tcgen05.mma")
        # Of 16 bytes, and of 2 or 4.
        for name, access in (("loads", "ld.global"), ("stores", "st.global")):
            whole = rf"{access}\.v4\.b32|{access}\.v8\.b16"
            resources[f"wide_{name}"] = len(re.findall(whole, ptx))
            resources[f"narrow_{name}"] = len(re.findall(rf"{access}\.b(16|32)", ptx))
    else:
        resources = amd_resources(compiled.asm["amdgcn"])
    return {**resources, "shared": compiled.metadata.shared}


def main(backend: str, arch: str) -> None:
    if backend == "cuda":
        target = GPUTarget("cuda", int(arch), 32)
    else:
        target = GPUTarget("hip", arch, 64)
    product = product_cases(int(arch)) if backend == "cuda" else ()
    every = itertools.chain(cases(), row_cases(), product)
    print(json.dumps({name: compile_case(*rest, target) for name, *rest in every}))


if __name__ == "__main__":
    main(*sys.argv[1:])
