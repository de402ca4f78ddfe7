#!/bin/sh
# ./dev fuzz [TARGET] [SECONDS]: looks for new inputs of one target or of all, so many seconds each.
# ./dev fuzz keep [TARGET]: takes what covers more into the corpus that is committed.
set -eu

# New inputs gather here; what is committed is read too.
found=target/fuzz/found
crashes=target/fuzz/crashes
corpus=tests/fuzz/corpus
# What the replay allows (tests/fuzz/tests/replay/main.rs).
most_files=60

# LLVM's coverage, which stable Rust passes on: no sanitizer, which it does not. Only for what is built for the target, not for
# build scripts and macros, hence --target.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="$coverage" cargo build --locked -p causeway-fuzz --features engine --target "$host" --target-dir target/fuzz >&2
engine="target/fuzz/$host/debug/causeway-fuzz"

keep=
if [ "${1:-}" = keep ]; then
    keep=yes
    shift
fi
if [ "${1:-all}" = all ]; then
    targets=$(ls "$corpus")
else
    targets=$1
fi
seconds=${2:-60}

broken=
for target in $targets; do
    mkdir -p "$found/$target" "$crashes" "$corpus/$target"
    export CAUSEWAY_FUZZ_TARGET="$target"
    if [ -n "$keep" ]; then
        # The fewest of the new ones that reach what the committed ones do not, the shortest first.
        more=$(mktemp -d)
        cp "$corpus/$target"/* "$more"
        "$engine" -merge=1 -set_cover_merge=1 -use_counters=0 "$more" "$found/$target" >/dev/null 2>&1
        room=$((most_files - $(ls "$corpus/$target" | wc -l)))
        for input in $(ls -rS "$more"); do
            if [ ! -e "$corpus/$target/$input" ] && [ "$room" -gt 0 ]; then
                cp "$more/$input" "$corpus/$target/found-$(printf %.12s "$input")"
                room=$((room - 1))
            fi
        done
        rm -r "$more"
        echo "$target: $(ls "$corpus/$target" | wc -l) inputs"
    else
        "$engine" "$found/$target" "$corpus/$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 \
            -rss_limit_mb=2048 -artifact_prefix="$crashes/$target-" -print_final_stats=1 >"$found/$target.log" 2>&1 ||
            broken="$broken $target"
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$found/$target.log")
        rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$found/$target.log")
        echo "$target: ${runs:-?} inputs, ${rate:-?} a second, $(ls "$found/$target" | wc -l) kept"
    fi
done
if [ -n "$broken" ]; then
    echo "broken:$broken; the inputs are in $crashes, what was said is in $found/TARGET.log" >&2
    exit 1
fi
