#!/usr/bin/env bash
# The main job from beginning to end: English text -> token store -> a trained GPT -> its evaluation and a sample of its text.
# `make demo` runs it after the set-up. Every step says what is already there and goes on from it.
#
#   DEMO_OVERRIDES="train.steps=20"  settings to change in configs/demo.yaml for the training, separated by spaces

set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

text=data/demo/topics.txt
run=runs/demo
read -ra overrides <<<"${DEMO_OVERRIDES:-}"

step() { printf '\n== %s\n' "$*"; }

step "1/5 the text: the help topics that every Python carries (pydoc_data.topics)"
if [[ -s $text ]]; then
    echo "$text is there: $(wc -c <"$text") bytes"
else
    mkdir -p "$(dirname "$text")"
    python -c 'from pydoc_data.topics import topics; print("\n".join(topics[name] for name in sorted(topics)))' >"$text.partial"
    mv "$text.partial" "$text"
    echo "wrote $text: $(wc -c <"$text") bytes"
fi

step "2/5 prepare: text -> tokenizer and token store"
drumline prepare configs/demo.yaml

# One rank per GPU, as many as a power of two allows so that the batch divides; without GPUs, two ranks on the CPU.
ranks=2
if [[ -e /dev/nvidia0 ]]; then
    gpus=$(python -c 'import tensorflow as tf; print(len(tf.config.list_physical_devices("GPU")))' 2>/dev/null)
    if ((gpus > 0)); then
        ranks=1
        while ((ranks * 2 <= gpus)); do ((ranks *= 2)); done
    fi
fi
step "3/5 train: $ranks ranks under horovodrun"
[[ -d $run ]] && echo "$run is there: training goes on from its newest checkpoint"
drumline launch local configs/demo.yaml --workers "$ranks" ${overrides[@]+"${overrides[@]}"}

step "4/5 evaluate"
drumline evaluate "$run"

step "5/5 predict: a sample of the model's text, in $run/sample.jsonl"
drumline predict "$run" --text "The" --max-tokens 120 --temperature 0.7 --top-p 0.9 >"$run/sample.jsonl.partial"
mv "$run/sample.jsonl.partial" "$run/sample.jsonl"
cat "$run/sample.jsonl"

printf '\nWatch the curves:\n  .venv/bin/tensorboard --logdir %s/tensorboard\n' "$run"
