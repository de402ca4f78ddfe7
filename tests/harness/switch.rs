use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::link::ip;

/// Machines on one network, which the test is on too: namespaces behind a bridge. Dropped, they are gone.
pub struct Switch {
    name: String,
    number: u16,
    machines: usize,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Switch {
    /// So many machines; `None` where one may not, or the tools for it are missing.
    ///
    /// # Panics
    /// When they can be made in part only.
    pub fn new(machines: usize) -> Option<Self> {
        let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("cs{pid}x{number}");
        // Another one for each process and switch, so that tests run side by side.
        let number = ((u64::from(pid) * 7 + number) % 16_000) as u16;
        if !ip(&["link", "add", &name, "type", "bridge"]) {
            return None;
        }
        let switch = Self { name, number, machines };
        let made = |arguments: &[&str]| assert!(ip(arguments), "{arguments:?}");
        made(&["addr", "add", &format!("{}/24", switch.address(254)), "dev", &switch.name]);
        made(&["link", "set", &switch.name, "up"]);
        for machine in 1..=machines {
            let (namespace, cable) = (switch.namespace(machine), format!("{}p{machine}", switch.name));
            made(&["netns", "add", &namespace]);
            made(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
            made(&["link", "set", &cable, "master", &switch.name, "up"]);
            made(&["-n", &namespace, "addr", "add", &format!("{}/24", switch.address(machine)), "dev", "eth0"]);
            made(&["-n", &namespace, "link", "set", "eth0", "up"]);
            made(&["-n", &namespace, "link", "set", "lo", "up"]);
        }
        Some(switch)
    }

    fn namespace(&self, machine: usize) -> String {
        format!("{}n{machine}", self.name)
    }

    /// Where a machine is, 1 the first.
    pub fn address(&self, machine: usize) -> String {
        format!("10.{}.{}.{machine}", 192 + (self.number >> 8), self.number & 0xff)
    }

    /// A program on a machine.
    pub fn command(&self, machine: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(machine), program]);
        command
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for machine in 1..=self.machines {
            ip(&["netns", "delete", &self.namespace(machine)]);
        }
        ip(&["link", "delete", &self.name]);
    }
}
