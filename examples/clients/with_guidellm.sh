#!/usr/bin/env bash
# GuideLLM: a short benchmark of an adapter with prompts from a file.
set -euo pipefail
questions=$(realpath "$(dirname "$0")/lm_eval_questions.jsonl")
cd "$(mktemp -d)"  # it writes its reports here
guidellm run --disable-progress \
    --backend "kind=openai_http,target=$LORAPLEX_URL,model=smart-home,api_key=$LORAPLEX_API_KEY" \
    --data "kind=json_file,path=$questions" \
    --profile kind=concurrent,streams=2 --constraint kind=max_requests,count=6 \
    --tokenizer kind=huggingface_auto,model="${TOKENIZER:?the directory of the base, for its tokenizer}"
