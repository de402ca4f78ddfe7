//! The signals that end a command.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// What a shell gives for a process that Ctrl-C ended.
const EXIT_INTERRUPTED: i32 = 130;

/// Whether SIGTERM or Ctrl-C came. A second one ends the process at once: its children end with it.
#[derive(Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Looks for the signals from now on.
    pub(crate) fn on_signals() -> anyhow::Result<Self> {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                if stop.send_replace(true) || stop.is_closed() {
                    std::process::exit(EXIT_INTERRUPTED);
                }
            }
        });
        Ok(Self(stopped))
    }

    /// When the first has come.
    pub(crate) async fn told(mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}
