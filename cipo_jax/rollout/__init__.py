"""From prompts to judged completions: prefill, decode, draw, verdicts."""
