#!/usr/bin/env bash
# English lines into French as they are typed: each is translated when it ends, most of it read by then.
#
#     recipes/translate_live.sh [MODEL] < english.txt
#     recipes/translate_live.sh                          # and type; Ctrl-D ends it
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "${PYTHON:-python}" "$recipes/translate_live.py" --model "${1:-eyas-it}"
