//! The harness: real servers, real stages, real kills, and an oracle that reads only what any user could read.

mod camera;
mod cluster;
mod collector;
mod faults;
mod flood;
mod hub;
mod oracle;
mod prometheus;
mod running;
mod saboteur;
mod scenario;
mod site;
mod stand_in;
mod stored;
mod tmpfs;
mod tools;
mod verdict;
mod work;

pub use camera::{Camera, FPS, ffmpeg, frame_number, make_video};
pub use cluster::Cluster;
pub use collector::{Collector, Span};
pub use faults::{at_work, faces_up, stand_ins_at, without_faults};
pub use flood::{Flood, flood};
pub use hub::{Hub, hub};
pub use oracle::Oracle;
pub use prometheus::{Prometheus, debian_program, free_port, http_get, may_skip};
pub use running::{Finished, Running, causeway, eventually, kill, signal, within};
pub use saboteur::{HeldBack, Sabotage, Saboteur};
pub use scenario::{Scenario, is_found, mutations_caught};
pub use site::{Site, StageProcess};
pub use stand_in::{StandIns, stand_in_pipeline};
pub use stored::{Stored, dead_letters, left_running};
pub use tmpfs::Tmpfs;
pub use tools::{Tools, shared_faces, workspace};
pub use verdict::{Verdict, verdict};
pub use work::{copy_photos, drained, drained_within, faces};
