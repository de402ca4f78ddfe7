//! The harness: real servers, real stages, real kills, and an oracle that reads only what any user could read.

mod running;
mod site;
mod tools;
mod verdict;

pub use running::{Finished, Running, causeway, eventually, kill};
pub use site::{Site, StageProcess};
pub use tools::{Tools, shared_faces, workspace};
pub use verdict::{Verdict, verdict};
