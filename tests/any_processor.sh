#!/bin/sh
# Runs the tests as older processors would round, with one thread and two, and in random order.
# Usage: tests/any_processor.sh [PYTEST ARGUMENT ...]      prints a line an environment; OUT=DIR keeps the logs
# PYTEST and ENVIRONMENTS (lines of `VARIABLE=value ...`) may be set.
set -u
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
pytest=${PYTEST:-pytest}
[ $# -gt 0 ] || set -- tests
environments=${ENVIRONMENTS:-"
OMP_NUM_THREADS=1
OMP_NUM_THREADS=2
OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default
OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2
OMP_NUM_THREADS=1 MKL_CBWR=COMPATIBLE
OMP_NUM_THREADS=1 MKL_ENABLE_INSTRUCTIONS=SSE4_2
OMP_NUM_THREADS=1 MKL_ENABLE_INSTRUCTIONS=AVX2
OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=SSE41
OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2
OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX512_CORE
OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41
OMP_NUM_THREADS=1 RANDOM_ORDER=1
"}
failed=0 number=0
while read -r environment; do
    [ -n "$environment" ] || continue
    number=$((number + 1))
    log=$out/$number.log
    # What torch.compile kept of one instruction set does not compile for another.
    export TORCHINDUCTOR_CACHE_DIR="$out/inductor.$number"
    # shellcheck disable=SC2086  # words of the line, and of $PYTEST
    env $environment $pytest -m "not timing" -p no:cacheprovider "$@" >"$log" 2>&1 </dev/null || failed=1
    printf '%s  %s  %s\n' "$(grep -E '[0-9]+ (passed|failed|error)' "$log" | tail -n 1)" "$environment" "$log"
    grep -E '^(FAILED|ERROR)' "$log"
done <<EOF
$environments
EOF
exit $failed
