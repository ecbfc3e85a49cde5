"""Weights and constants in and out of files: safetensors folders, GGUF, Hugging Face names."""
