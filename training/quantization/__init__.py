"""A base in four bits: W4A16 by GPTQ, and NF4 as QLoRA sees it."""
