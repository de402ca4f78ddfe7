# One recipe a verb, run by `./dev VERB`, which first brings the tools that these call.

set positional-arguments

# The list of recipes.
_list:
    @just --list --unsorted

# The face pipeline, at an edge and a cloud on this machine, on the demo's photos; ends with tables and a report. --again runs all anew, --json for machines.
[no-exit-message]
demo *ARGS: build
    @CAUSEWAY_HOME="${CAUSEWAY_HOME:-.causeway/demo}" \
    CAUSEWAY_PIPELINE="${CAUSEWAY_PIPELINE:-pipelines/faces-edge-cloud.toml}" \
    target/debug/causeway demo "$@"

# How right the pipeline is on a folder of named people (DIR/NAME/*.jpg): detection, AUC, accuracy, clustering.
[no-exit-message]
accuracy *ARGS: build
    @target/debug/causeway accuracy "$@"

# How fast the pipelines are on this machine, beside the bare models and Python peers: about 15 minutes. --json for machines.
[no-exit-message]
bench *ARGS:
    @python3 -B deploy/setup/bench.py >&2
    @cargo build --locked --release --workspace --bins
    @target/release/causeway-bench "$@"

# The `causeway` command itself: ./dev causeway up pipelines/faces.toml --input DIR
[no-exit-message]
causeway *ARGS: build
    @target/debug/causeway "$@"

# All tests but the long ones. ARGS go to the test runner: a name to pick tests.
test *ARGS: build
    @if cargo nextest --version >/dev/null 2>&1; \
    then cargo nextest run --locked --workspace "$@"; \
    else cargo test --locked --workspace "$@"; fi

# The tests that take minutes: those marked #[ignore], but for the ones of containers, of services and of the hub.
test-long *ARGS: build
    @if cargo nextest --version >/dev/null 2>&1; \
    then cargo nextest run --locked --workspace --run-ignored only --no-tests pass -E 'not test(/^containers::|^units::|^hub::/)' "$@"; \
    else cargo test --locked --workspace "$@" -- --ignored --skip containers:: --skip units:: --skip hub::; fi

# The long series of faults with its table (docs/guarantees.md): two hours. --share 0.1 for a tenth, --part for some, --json for machines.
[no-exit-message]
chaos *ARGS: build
    @target/debug/causeway-series "$@"

# Edge and cloud in figures: cuts, moves, many edges, NATS beside it, keys, bytes a photo; an hour and a half. --share 0.1, --part cuts, --json.
[no-exit-message]
sites *ARGS: build
    @target/debug/causeway-series --sites "$@"

# Two hours of the real models at 80 % of what they can do, with a fault every 30 s. --share 0.1 for twelve minutes.
[no-exit-message]
soak *ARGS: build
    @target/debug/causeway-series --part soak "$@"

# Looks for inputs that break a decoder: ./dev fuzz [TARGET] [SECONDS], all of them and 60 by default; CONTRIBUTING.md has the rest.
[no-exit-message]
fuzz *ARGS:
    @tests/fuzz/fuzz.sh "$@"

# The faces pipeline as containers, built from nothing: a quarter of an hour; needs root, podman and debootstrap.
test-containers: build
    cargo test --locked -p causeway-tests --test integration -- --ignored --nocapture containers::

# The pipeline as services of systemd, at two sites: boots a machine of its own for each; needs root and systemd.
test-services: build
    cargo test --locked -p causeway-tests --test integration -- --ignored --nocapture units::

# What CI looks at before the tests: format, lints, documentation, spelling.
check:
    cargo fmt --all --check
    if command -v taplo >/dev/null; then taplo fmt --check && taplo lint pipelines/*.toml pipelines/tests/*.toml; fi
    typos
    cargo clippy --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --workspace --document-private-items

# Formats Rust and TOML.
fmt:
    cargo fmt --all
    if command -v taplo >/dev/null; then taplo fmt; fi

# The container images, by docker or podman: one a stage, the command, nats-server. ./dev images --help has the choices.
[no-exit-message]
images *ARGS:
    @python3 -B deploy/containers/images.py "$@"

# The JSON Schemas of pipeline files, which editors read, out of the types.
schema: build
    target/debug/causeway schema > schemas/pipeline.schema.json
    target/debug/causeway schema --tests > schemas/pipeline-tests.schema.json

# Every binary of the workspace, for debugging.
build:
    @cargo build --locked --workspace --bins
