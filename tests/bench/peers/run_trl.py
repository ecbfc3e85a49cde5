"""TRL's GRPOTrainer on a shared workload, timed from outside by wrapping its bound methods.

    TRL_PYTHON tests/bench/peers/run_trl.py W1 --out results.jsonl

Its defaults are changed where the work would differ: float32 in place of bfloat16, no gradient
checkpointing, the `grpo` loss, exactly the stated number of new tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.metadata import version

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import torch
import workload
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=workload.WORKS)
    parser.add_argument("--out", default="results.jsonl")
    args = parser.parse_args()
    work = workload.WORKS[args.work]
    shape = work.model
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.width,
            intermediate_size=shape.mlp_width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_width,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    ).float()
    num_steps = work.warm_steps + work.steps
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=work.rows,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=work.samples,
        num_iterations=1,
        max_completion_length=work.max_new_tokens,
        beta=0.0,
        loss_type="grpo",
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        generation_kwargs={"min_new_tokens": work.max_new_tokens},
        bf16=False,
        fp16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        learning_rate=1e-6,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        max_steps=num_steps,
        logging_strategy="no",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        seed=0,
    )
    texts = [workload.text(p) for p in workload.prompts(work, work.prompts * num_steps)]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=workload.text_reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=workload.tokenizer(shape.vocab),
    )
    clock = workload.Clock()
    lengths: set[int] = set()
    generate = trainer._generate_single_turn

    def roll_out(prompt_ids, *rest, **kwargs):
        if work.spread:
            # The rest of what it returns is optional, and None here as from `generate`.
            given = workload.completions(work, len(clock.steps) - 1)
            lengths.update(map(len, given))
            return (given, *[None] * (width - 1))
        result = generate(prompt_ids, *rest, **kwargs)
        lengths.update(map(len, result[0]))
        return result

    # How many values it returns has changed between versions: ask it once, on one short prompt.
    kept, trainer.generation_config.max_new_tokens = trainer.generation_config.max_new_tokens, 1
    trainer.generation_config.min_new_tokens = 1
    width = len(generate([[3]], None, {}, 1)) if work.spread else 0
    trainer.generation_config.max_new_tokens = kept
    trainer.generation_config.min_new_tokens = work.max_new_tokens

    trainer._generate_single_turn = clock.timed("rollout", roll_out)
    trainer._prepare_inputs = clock.timed(
        "rollout_and_scoring", trainer._prepare_inputs, first=clock.begin
    )
    trainer.train()
    clock.end()
    for step in clock.steps:
        # All of a step that is neither rollout nor scoring: loss, backward, clipping, optimizer.
        step["train_s"] = step["step_s"] - step["rollout_and_scoring_s"]
        step["train_cpu_s"] = step["step_cpu_s"] - step["rollout_and_scoring_cpu_s"]
    facts = {
        "versions": {p: version(p) for p in ("trl", "torch", "transformers", "accelerate")},
        "python": sys.version.split()[0],
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "completion_lengths": [min(lengths), max(lengths)],
    }
    workload.record("trl", args.work, clock, facts, args.out)


if __name__ == "__main__":
    main()
