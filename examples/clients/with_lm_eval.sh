#!/usr/bin/env bash
# lm-eval: an adapter's answers to a task of one's own, over chat completions.
set -euo pipefail
cd "$(dirname "$0")"
OPENAI_API_KEY=$LORAPLEX_API_KEY lm-eval run --model local-chat-completions --apply_chat_template \
    --model_args "model=smart-home,base_url=$LORAPLEX_URL/v1/chat/completions,num_concurrent=3" \
    --include_path . --tasks rooms
