"""Rounds a base to four bits: W4A16 by GPTQ, or NF4 as in QLoRA."""
