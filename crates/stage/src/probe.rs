//! `causeway-STAGE health`: asks the stage that runs beside it, in the same container, whether it is ready.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;

/// Asks the stage that listens at ADDR whether it is ready. Exit code 0: it is; 1: it is not, or does not answer.
///
/// For the health check of a container, whose image has no other program.
#[derive(Debug, Clone, Parser)]
#[command(name = "health", max_term_width = 100)]
pub(crate) struct HealthArgs {
    /// Where its /readyz answers: what it was given as --health.
    #[arg(long = "health", env = "CAUSEWAY_HEALTH", value_name = "ADDR", default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// How long its answer may take.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = crate::args::seconds)]
    timeout: Duration,
}

/// Longest answer that is read, bytes: a state is a line.
const MAX_ANSWER: u64 = 4 << 10;

pub(crate) fn main(args: &HealthArgs) -> ExitCode {
    match ask(args) {
        Ok(state) => {
            println!("{state}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Its state, if it is ready.
fn ask(args: &HealthArgs) -> anyhow::Result<String> {
    let address = reachable(args.address);
    if address.port() == 0 {
        bail!(
            "cannot ask: no port is given; start the stage with --health 127.0.0.1:PORT and ask with the same, or set CAUSEWAY_HEALTH for both"
        );
    }
    let told = || format!("cannot ask the stage at {address}");
    let mut stream = TcpStream::connect_timeout(&address, args.timeout).with_context(told)?;
    stream.set_read_timeout(Some(args.timeout)).with_context(told)?;
    // In one piece: who answers at once and goes is heard all the same.
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(told)?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).with_context(told)?;
    let status = answer.split(' ').nth(1);
    let state = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim().to_owned();
    ensure!(matches!(status, Some("200" | "503")), "cannot tell: what listens at {address} is no stage");
    ensure!(status == Some("200"), "not ready: {state}");
    Ok(state)
}

/// Who listens on every address is asked on this machine's own.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn asked(answer: &'static str) -> anyhow::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // As a stage is told to listen in a container.
        let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listener.local_addr().unwrap().port());
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let asked = ask(&HealthArgs { address, timeout: Duration::from_secs(5) });
        answering.join().unwrap();
        asked
    }

    #[test]
    fn a_ready_stage_says_its_state() {
        assert_eq!(asked("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nrunning\n").unwrap(), "running");
    }

    #[test]
    fn one_that_is_not_ready_says_why() {
        let error = asked("HTTP/1.1 503 Service Unavailable\r\n\r\ndraining\n").unwrap_err();
        assert_eq!(error.to_string(), "not ready: draining");
    }

    #[test]
    fn a_stranger_is_not_healthy() {
        let error = asked("SSH-2.0-OpenSSH_9.2\r\n").unwrap_err();
        assert!(error.to_string().contains("is no stage"), "{error}");
    }

    #[test]
    fn where_nobody_listens_it_says_so() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let timeout = Duration::from_secs(5);
        let error = ask(&HealthArgs { address: free, timeout }).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot ask the stage at {free}")), "{error}");
        let unknown = HealthArgs { address: "127.0.0.1:0".parse().unwrap(), timeout };
        assert!(ask(&unknown).unwrap_err().to_string().contains("CAUSEWAY_HEALTH"));
    }
}
