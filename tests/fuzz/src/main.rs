//! The program `causeway-fuzz`: `LLVM`'s libFuzzer on one target, which the variable `CAUSEWAY_FUZZ_TARGET` names, since libFuzzer
//! reads all arguments itself.

#![no_main]

use std::sync::LazyLock;

use causeway_fuzz::{Counting, Target};

#[global_allocator]
static MEMORY: Counting = Counting;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("CAUSEWAY_FUZZ_TARGET").unwrap_or_default();
    Target::named(&name).unwrap_or_else(|| panic!("CAUSEWAY_FUZZ_TARGET=`{name}` is no target"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET.run(bytes).check_memory());
