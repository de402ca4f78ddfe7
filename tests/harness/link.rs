use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sched::{CloneFlags, setns};

use crate::disks::succeeds;

/// What a link is like, both ways alike.
#[derive(Debug, Clone, Copy)]
pub struct Quality {
    /// From one end to the other.
    pub delay: Duration,
    /// Which share of the packets is lost.
    pub loss: f64,
    /// Bits a second.
    pub rate: Option<u64>,
}

/// How a link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Packets vanish.
    Drop,
    /// Connections are reset.
    Reset,
}

/// One end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Which dials out.
    Edge,
    /// Which listens.
    Cloud,
}

/// Two network namespaces with a link between them whose packets a thread carries, late and not all of them: `netem` is not in every
/// kernel, and a TCP proxy would hide both from TCP. Dropped, they are gone.
pub struct Link {
    name: String,
    number: u16,
    ends: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
    passed: Arc<Passed>,
}

/// What came through, both ways together.
#[derive(Debug, Default)]
struct Passed {
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// Room for the packets on their way, beyond which they are lost, as in a router.
const ON_THE_WAY: usize = 20_000;
/// The device at either end.
const DEVICE: &str = "link0";
/// Longest packet.
const MTU: usize = 1500;
/// How often a thread looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How much may leave at once by the rate, bytes, and how long a packet may wait for its turn.
const SHAPED: [&str; 4] = ["burst", "16kb", "latency", "100ms"];

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Link {
    /// Makes one; `None` where one may not, or the tools for it are missing.
    ///
    /// # Panics
    /// When it can be made in part only.
    pub fn new(quality: Quality) -> Option<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let name = format!("cw{pid}x{number}");
        // Another one for each process and link, so that tests run side by side.
        let number = ((u64::from(pid) * 7 + number) % 16_000) as u16;
        let mut link = Self { name, number, ends: Arc::default(), threads: Vec::new(), passed: Arc::default() };
        for end in [End::Edge, End::Cloud] {
            if !ip(&["netns", "add", &link.namespace(end)]) {
                return None;
            }
            link.connect(end);
        }
        link.carry(quality);
        Some(link)
    }

    fn namespace(&self, end: End) -> String {
        format!("{}{}", self.name, if end == End::Edge { "e" } else { "c" })
    }

    /// The way between the test and an end, which is never cut.
    fn connect(&self, end: End) {
        let namespace = self.namespace(end);
        let (here, there) = (format!("{namespace}h"), format!("{namespace}t"));
        let [ours, theirs] = self.addresses(end);
        assert!(ip(&["link", "add", &here, "type", "veth", "peer", "name", &there, "netns", &namespace]), "veth");
        assert!(ip(&["addr", "add", &format!("{ours}/30"), "dev", &here]), "address");
        assert!(ip(&["link", "set", &here, "up"]), "up");
        for arguments in [
            &["addr", "add", &format!("{theirs}/30"), "dev", &there][..],
            &["link", "set", &there, "up"],
            &["link", "set", "lo", "up"],
        ] {
            assert!(ip(&[&["-n", &namespace], arguments].concat()), "{arguments:?}");
        }
    }

    /// Of the test and of the end, on their own way.
    fn addresses(&self, end: End) -> [String; 2] {
        let (high, low) = (self.number >> 8, self.number & 0xff);
        let first = if end == End::Edge { 0 } else { 4 };
        [first + 1, first + 2].map(|last| format!("10.{}.{low}.{last}", 128 + high))
    }

    /// Where the test meets an end.
    pub fn test_address(&self, end: End) -> String {
        let [_, theirs] = self.addresses(end);
        theirs
    }

    /// Where the ends meet each other.
    pub fn address(end: End) -> &'static str {
        if end == End::Edge { "10.77.0.1" } else { "10.77.0.2" }
    }

    fn carry(&mut self, quality: Quality) {
        let devices = [End::Edge, End::Cloud].map(|end| {
            let device = self.device(end);
            let namespace = self.namespace(end);
            let address = format!("{}/24", Self::address(end));
            for arguments in [
                &["addr", "add", &address, "dev", DEVICE][..],
                &["link", "set", DEVICE, "mtu", &MTU.to_string(), "txqueuelen", "1000", "up"],
            ] {
                assert!(ip(&[&["-n", &namespace], arguments].concat()), "{arguments:?}");
            }
            if let Some(rate) = quality.rate {
                let rate = format!("{rate}bit");
                let shape = ["-n", &namespace, "qdisc", "add", "dev", DEVICE, "root", "tbf", "rate", &rate];
                assert!(succeeds(Command::new("tc").args(shape).args(SHAPED)), "a rate");
            }
            device
        });
        for (seed, [from, to]) in [[&devices[0], &devices[1]], [&devices[1], &devices[0]]].into_iter().enumerate() {
            let [from, to] = [from, to].map(|device| device.try_clone().expect("a device"));
            let (ends, passed) = (Arc::clone(&self.ends), Arc::clone(&self.passed));
            let chance = fastrand::Rng::with_seed(seed as u64 + 1);
            self.threads.push(std::thread::spawn(move || forward(from, to, quality, chance, &ends, &passed)));
        }
    }

    /// A TUN device in a namespace: what is sent there can be read here.
    fn device(&self, end: End) -> File {
        let namespace = self.namespace(end);
        std::thread::spawn(move || {
            enter_namespace(&namespace);
            let device = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .expect("/dev/net/tun");
            attach(&device);
            device
        })
        .join()
        .expect("a device")
    }

    /// The calling thread, and what it starts, is at this end from now on.
    ///
    /// # Panics
    /// When it may not.
    pub fn enter(&self, end: End) {
        enter_namespace(&self.namespace(end));
    }

    /// A program at an end.
    pub fn command(&self, end: End, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(end), program]);
        command
    }

    /// Cuts it, both ways.
    ///
    /// # Panics
    /// When that cannot be done.
    pub fn cut(&self, how: Cut) {
        let target: &[&str] = match how {
            Cut::Drop => &["DROP"],
            Cut::Reset => &["REJECT", "--reject-with", "tcp-reset"],
        };
        for (chain, device) in [("INPUT", "-i"), ("OUTPUT", "-o")] {
            let mut command = self.command(End::Edge, "iptables");
            command.args(["-w", "-A", chain, device, DEVICE, "-p", "tcp", "-j"]).args(target);
            assert!(succeeds(&mut command), "{command:?}");
        }
    }

    /// It works again.
    ///
    /// # Panics
    /// When that cannot be done.
    pub fn heal(&self) {
        for chain in ["INPUT", "OUTPUT"] {
            let mut command = self.command(End::Edge, "iptables");
            assert!(succeeds(command.args(["-w", "-F", chain])), "{command:?}");
        }
    }

    /// How many packets came through, both ways together.
    pub fn packets(&self) -> u64 {
        self.passed.packets.load(Ordering::Relaxed)
    }

    /// How many bytes those had, with the headers of IP and TCP.
    pub fn bytes(&self) -> u64 {
        self.passed.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for end in [End::Edge, End::Cloud] {
            ip(&["netns", "delete", &self.namespace(end)]);
        }
    }
}

fn enter_namespace(name: &str) {
    let file = File::open(format!("/run/netns/{name}")).expect("the namespace");
    setns(file, CloneFlags::CLONE_NEWNET).expect("it can be entered");
}

/// Makes an open `/dev/net/tun` the device of this thread's namespace.
#[expect(unsafe_code, reason = "an ioctl")]
fn attach(device: &File) {
    const TUN_WITHOUT_HEADER: i16 = 0x0001 | 0x1000;
    // <https://docs.kernel.org/networking/tuntap.html>: `TUNSETIFF` with a `struct ifreq`, the name and then the flags.
    nix::ioctl_write_int!(set_interface, b'T', 202);
    let mut request = [0_u8; 40];
    request[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
    request[16..18].copy_from_slice(&TUN_WITHOUT_HEADER.to_ne_bytes());
    // SAFETY: the descriptor is open, and the kernel reads no more than an `ifreq`, 40 bytes, which outlives the call.
    unsafe { set_interface(device.as_raw_fd(), request.as_ptr() as u64) }.expect("a TUN device");
}

/// Carries packets one way until it is told to end.
fn forward(
    mut from: File,
    mut to: File,
    Quality { delay, loss, .. }: Quality,
    mut chance: fastrand::Rng,
    ends: &AtomicBool,
    passed: &Passed,
) {
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut packet = [0; 2 * MTU];
    while !ends.load(Ordering::Relaxed) {
        let now = Instant::now();
        while let Some((_, packet)) = under_way.pop_front_if(|(due, _)| *due <= now) {
            // A device whose queue is full loses it, as a router would.
            if to.write(&packet).is_ok() {
                passed.packets.fetch_add(1, Ordering::Relaxed);
                passed.bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
            }
        }
        let patience = under_way.front().map_or(LOOK_EVERY, |(due, _)| (*due - now).min(LOOK_EVERY));
        let mut polled = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        let _ = nix::poll::ppoll(&mut polled, Some(patience.into()), None);
        loop {
            match from.read(&mut packet) {
                Ok(length) if under_way.len() < ON_THE_WAY && chance.f64() >= loss => {
                    under_way.push_back((Instant::now() + delay, packet[..length].to_vec()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return,
            }
        }
    }
}

pub(crate) fn ip(arguments: &[&str]) -> bool {
    succeeds(Command::new("ip").args(arguments))
}
