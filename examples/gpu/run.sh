#!/bin/sh
# What a GPU computes and how fast, in about five minutes; from the repository's root. JSON goes to runs/gpu, or to $1.
set -eu
out=${1:-runs/gpu} device=${DEVICE:-cuda}
mkdir -p "$out"
python examples/gpu/check.py --device "$device" --out "$out"
bench() { textsafe bench "$@" --device "$device" --repeats 2 --json -q; }
small="--hidden 576 --layers 30 --heads 9 --mlp 1536 --vocab 49152"
{
    # shellcheck disable=SC2086  # words of the sizes
    bench rollout --dtype bfloat16 $small
    bench rollout --dtype bfloat16 --batch 256 $small
    bench rollout --dtype bfloat16 --hidden 896 --layers 24 --heads 14 --mlp 4864 --vocab 151936
    bench rollout --dtype bfloat16 --hidden 1536 --layers 28 --heads 12 --mlp 8960 --vocab 151936
    bench iteration --dtype bfloat16 $small
    bench iteration --dtype bfloat16 --compile $small
    bench iteration --dtype float32 $small
} >"$out/bench.jsonl"
