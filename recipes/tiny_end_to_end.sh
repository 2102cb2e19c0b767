#!/usr/bin/env bash
# The whole life of a small model, in minutes on one core of a CPU: text and tokenizer, pretraining, instruction
# tuning, quantization, evaluation, and one request to a server.
#
#     pip install 'griffinlm[train,serve]'
#     recipes/tiny_end_to_end.sh WORK
#
# WORK is a directory that is not there yet. The last line is the model's answer to a question.
set -euo pipefail

work=${1:?usage: tiny_end_to_end.sh WORK}
recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Stories, questions about them, and a tokenizer of 512 tokens.
"$python" "$recipes/tiny_text.py" "$work"
cd "$work"

# A Griffin of 0.2 million parameters learns the stories. Interrupted, the same command goes on.
cat > pretrain.toml <<'TOML'
output = "pretrained"
tokenizer = "tokenizer"
batch_rows = 8
precision = "float32"
device = "cpu"
sources.stories.files = ["stories.jsonl"]
data.row_tokens = 128
stages = [{ steps = 150, mixture = { stories = 1 } }]
optimizer.learning_rate = 1e-2
schedule.warm_up_steps = 10
checkpoints.every_steps = 50

[model]
preset = "tiny-griffin"
vocab_size = 512
width = 64
mlp_hidden = 128
recurrent.width = 64
embedding_scale = 8.0
attention.window_tokens = 64
TOML
griffin train pretrain --config pretrain.toml

# It learns to answer, under the int4 weights that it will be served with.
cat > tune.toml <<'TOML'
output = "tuned"
model = "pretrained/model"
batch_rows = 4
steps = 80
precision = "float32"
device = "cpu"
quantization_aware = "int4"
sources.chat.files = ["chat.jsonl"]
data.row_tokens = 128
optimizer.learning_rate = 5e-3
schedule.warm_up_steps = 5
TOML
griffin train sft --config tune.toml

# The weights as they will be served; nothing of them changes but their size.
griffin quantize tuned/model int4 --bits 4 > quantized.txt
tail -n 1 quantized.txt

# Stories that it has not seen, before and after it learned to answer.
griffin evaluate pretrained/model --text held_out.jsonl
griffin evaluate int4 --text held_out.jsonl

# A server for one question.
griffin serve --model int4 --port 0 2> server.log &
server=$!
trap 'kill "$server" 2> /dev/null || true' EXIT
until grep -q listening server.log; do
    kill -0 "$server" # ends the script where the server has ended
    sleep 0.2
done
"$python" - server.log <<'PYTHON'
import json
import sys
import urllib.request

started = next(json.loads(line) for line in open(sys.argv[1]) if '"listening"' in line)
question = {
    "model": started["model"],
    "messages": [{"role": "user", "content": "Where does the owl live?"}],
    "temperature": 0,
    "max_tokens": 20,
}
request = urllib.request.Request(
    f"http://127.0.0.1:{started['port']}/v1/chat/completions",
    json.dumps(question).encode(),
    {"Content-Type": "application/json"},
)
with urllib.request.urlopen(request) as response:
    print(json.load(response)["choices"][0]["message"]["content"])
PYTHON
