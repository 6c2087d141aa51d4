#!/usr/bin/env bash
# Two versions of one adapter, a split between them, a promotion and the way back.
# Usage: examples/canary.sh NAME DIRECTORY-OF-VERSION-1 DIRECTORY-OF-VERSION-2
set -euo pipefail
name=$1 first=$2 second=$3

loraplex adapters register "$name" "$first"      # version 1; the first one is live at once
loraplex adapters register "$name" "$second"     # version 2; ready, and not live
loraplex adapters canary "$name" 2 --weight 10   # a tenth of the requests, by conversation
loraplex adapters canary "$name" 2 --weight 50   # who was on version 2 stays there
loraplex adapters rollback "$name"               # however many steps: one way back
loraplex adapters promote "$name" 2              # all requests
loraplex adapters show "$name"
