#!/bin/sh
# Fits three models to public data and compares three algorithms on them; see README.md next to it.
#   sh examples/real_data/run.sh DATA        from the repository's root; writes runs/real_data
set -eu
data=${1:?usage: sh examples/real_data/run.sh DATA}
out=runs/real_data
export PATH="$PWD/.venv/bin:$PATH"

python examples/real_data/prepare.py "$data" $out/data

textsafe fit sft --data $out/data/sft.jsonl --out $out/sft \
    --model tiny:hidden=192,layers=4,heads=4,vocab=4096 --epochs 6 --learning-rate 2e-3 --max-length 128

# The two score models start from the policy's trunk; one core each.
OMP_NUM_THREADS=1 textsafe fit reward --data $out/data/reward.jsonl --out $out/reward \
    --model $out/sft --epochs 3 --learning-rate 5e-4 --max-length 128 --test-fraction 0.2 &
OMP_NUM_THREADS=1 textsafe fit cost --data $out/data/cost_xstest.jsonl --data $out/data/cost_diasafety.jsonl \
    --out $out/cost --model $out/sft --epochs 2 --learning-rate 5e-4 --max-length 128 --test-fraction 0.2
wait $!

textsafe compare ppo reward_shaping ppo_lagrangian --env examples/real_data/env.yaml \
    --set learning_rate=3e-4 --set kl_coefficient=0.02 --set ptx_coefficient=1 \
    --set ppo_lagrangian.limit_includes_kl=false \
    --episodes 3072 --seeds 3 --workers 2 --out $out/compare
