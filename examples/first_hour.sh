#!/usr/bin/env bash
# From a fresh clone to an adapter of your own that serves.
# Usage: examples/first_hour.sh [FOLDER]   (it keeps what it makes in FOLDER; SHORT=1 trains less)
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath -m "${1:-var/first-hour}") scenario=examples/my_scenario.toml
mkdir -p "$work"
steps=24 batch=4 validation=0.05 held_out=6 seconds=10
if [ -n "${SHORT:-}" ]; then
    steps=4 batch=1 validation=0 held_out=2 seconds=4
    sed 's/^count = .*/count = 2/; s/^warmup_seconds = .*/warmup_seconds = 0/' $scenario > "$work/short.toml"
    scenario=$work/short.toml
fi
step() { printf '\n== %s\n' "$*"; }

step "Install"
[ -x .venv/bin/loraplex ] || make install
export PATH=$PWD/.venv/bin:$PATH
loraplex --version

step "Serve"
export LORAPLEX_DATA_DIR=$work/server LORAPLEX_PORT=${LORAPLEX_PORT:-8000}
export LORAPLEX_URL=http://127.0.0.1:$LORAPLEX_PORT
loraplex serve > "$work/server.log" 2>&1 &
server=$!
trap 'kill $server 2> /dev/null || true; wait $server || true' EXIT
until curl -sf "$LORAPLEX_URL/readyz" > /dev/null; do
    kill -0 $server || { cat "$work/server.log"; exit 1; }
    sleep 1
done
echo "ready at $LORAPLEX_URL"

step "Thirty examples of your own, and six that are held out"
python - "$work" << 'PYTHON'
import json
import sys
from pathlib import Path

rooms = ["kitchen", "bedroom", "garage", "office", "hall", "cellar"]
orders = {"Lights on in the {}": "on", "Lights off in the {}": "off", "Dim the {}": "dim",
          "Make the {} bright": "on", "It is too bright in the {}": "dim", "Leave the {} dark": "off"}
lines = []
for order, state in orders.items():
    for room in rooms:
        answer = json.dumps({"room": room, "light": state})
        lines.append(json.dumps({"messages": [{"role": "user", "content": order.format(room)},
                                              {"role": "assistant", "content": answer}]}))
held_out = lines[5::6]
kept = [line for line in lines if line not in held_out]
Path(sys.argv[1], "train.jsonl").write_text("\n".join(kept) + "\n")
Path(sys.argv[1], "held-out.jsonl").write_text("\n".join(held_out) + "\n")
PYTHON
loraplex data inspect "$work/train.jsonl"

train() {  # NAME RANK STEPS
    rm -rf "${work:?}/$1"
    loraplex train "$work/$1" --data "$work/train.jsonl" --rank "$2" --steps "$3" --batch-size $batch \
        --validation-share $validation
}
ask() {
    curl -sf "$LORAPLEX_URL/v1/chat/completions" -H 'Content-Type: application/json' \
        -H "Authorization: Bearer $(cat "$LORAPLEX_DATA_DIR/admin.key")" \
        -d '{"model": "'"$1"'", "max_tokens": 30, "temperature": 0,
             "messages": [{"role": "user", "content": "Lights on in the cellar"}]}' |
        python -c 'import json, sys; a = json.load(sys.stdin); print(a["model"], a["choices"][0]["message"]["content"])'
}

step "Train an adapter, register it, and ask it"
train first 8 $((steps / 2))
loraplex adapters register lights "$work/first"
ask lights

step "A second version: a canary, then a promotion"
train second 16 "$steps"
loraplex adapters register lights "$work/second"
loraplex adapters canary lights 2 --weight 10
loraplex adapters promote lights 2
ask lights

step "Roll back, and forward again"
loraplex adapters rollback lights
ask lights
loraplex adapters rollback lights
loraplex adapters list

step "Evaluate both versions on what was held out"
loraplex evaluate served:lights@2 served:lights@1 served:base --data "$work/held-out.jsonl" --limit $held_out

step "Who did what"
loraplex audit --limit 5

step "Load test"
rm -rf "${work:?}/load-test"
loraplex loadtest run "$scenario" --duration $seconds --slo 'error_rate<1%' --out "$work/load-test"

step "Done: lights@2 is live, the report is $work/load-test/report.html"
