"""Text and tokens: the tokenizer, and how problems and attempts become prompts."""
