#!/usr/bin/env bash
# From text to a small model that says what somebody likes to hear, in minutes on one core of a CPU: pretraining,
# instruction tuning, a reward model from pairs of answers, REINFORCE leave-one-out, and a look at what has changed.
#
#     pip install 'griffinlm[train]'
#     recipes/rlhf_end_to_end.sh WORK
#
# WORK is a directory that is not there yet. The last two lines are the share of answers that speak of honey and the
# mean reward, before and after.
set -euo pipefail

work=${1:?usage: rlhf_end_to_end.sh WORK}
recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Stories and a tokenizer of 512 tokens; meals, pairs of answers of which the better one has honey, and questions.
"$python" "$recipes/tiny_text.py" "$work"
"$python" "$recipes/tiny_preferences.py" "$work"
cd "$work"

# A Griffin of 0.2 million parameters reads the stories. Interrupted, every command here goes on.
cat > pretrain.toml <<'TOML'
output = "pretrained"
tokenizer = "tokenizer"
batch_rows = 8
precision = "float32"
device = "cpu"
sources.stories.files = ["stories.jsonl"]
data.row_tokens = 128
stages = [{ steps = 60, mixture = { stories = 1 } }]
optimizer.learning_rate = 1e-2
schedule.warm_up_steps = 10
checkpoints.every_steps = 30

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

# It learns to answer; every food is as likely as any other.
cat > tune.toml <<'TOML'
output = "tuned"
model = "pretrained/model"
batch_rows = 4
steps = 80
precision = "float32"
device = "cpu"
sources.meals.files = ["meals.jsonl"]
data.row_tokens = 128
optimizer.learning_rate = 5e-3
schedule.warm_up_steps = 5
TOML
griffin train sft --config tune.toml

# What is liked, learned from pairs of answers; one in five openings is kept out to see how often it is right.
cat > reward.toml <<'TOML'
output = "judge"
model = "tuned/model"
batch_rows = 16
steps = 30
precision = "float32"
device = "cpu"
sources.pairs.files = ["pairs.jsonl"]
data = { row_tokens = 128, held_out_share = 0.2 }
optimizer.learning_rate = 1e-3
schedule.warm_up_steps = 5
checkpoints.every_steps = 10
TOML
griffin train reward --config reward.toml --json | tee reward.json

# The model answers by the scheduler that also serves, the judge scores, and a KL term holds it near where it began.
cat > align.toml <<'TOML'
output = "aligned"
model = "tuned/model"
reward = "judge/model"
batch_rows = 32
num_answers = 4
max_answer_tokens = 12
steps = 25
kl_coefficient = 0.05
unended_penalty = 2.0
precision = "float32"
device = "cpu"
log_every_steps = 1
sources.questions.files = ["questions.jsonl"]
data = { row_tokens = 128, held_out_share = 0.2 }
optimizer.learning_rate = 2e-3
schedule.kind = "constant"
checkpoints.every_steps = 10
TOML
griffin train rloo --config align.toml

# Sampled answers to every question, before and after.
"$python" - <<'PYTHON'
import json
from pathlib import Path

import griffinlm
from griffinlm.train.alignment.reward_model import RewardModel

judge = RewardModel(Path("judge/model"))
questions = [json.loads(line)["prompt"] for line in open("questions.jsonl")]
for name in ("tuned", "aligned"):
    model = griffinlm.load(f"{name}/model")
    prompts = [model.tokenizer.encode_chat([{"role": "user", "content": question}]) for question in questions]
    answers = [model.generate(prompt, max_tokens=12, seed=seed) for seed, prompt in enumerate(prompts)]
    honey = sum("honey" in answer.text for answer in answers) / len(answers)
    rewards = judge.score([prompt + answer.token_ids for prompt, answer in zip(prompts, answers, strict=True)])
    print(f"{name}: {honey:.0%} honey, mean reward {sum(rewards) / len(rewards):.2f}")
PYTHON
