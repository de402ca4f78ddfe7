use std::sync::{Arc, mpsc};

use anyhow::{Context as _, anyhow};
use tokio::sync::oneshot;

use crate::Fold;
use crate::env::{Env, Unfit};

/// The fold on a thread of its own.
pub(super) struct State<F> {
    calls: mpsc::Sender<Call<F>>,
}

type Call<F> = Box<dyn FnOnce(&mut F) + Send>;

impl<F> Clone for State<F> {
    fn clone(&self) -> Self {
        Self { calls: self.calls.clone() }
    }
}

impl<F: Fold> State<F> {
    /// The empty one.
    pub(super) async fn start(env: &Arc<Env>) -> anyhow::Result<Self> {
        let (calls, called) = mpsc::channel::<Call<F>>();
        let (built, is_built) = oneshot::channel();
        let env = Arc::clone(env);
        std::thread::Builder::new().name(F::NAME.into()).spawn(move || {
            let options = env.spec.options::<F::Options>().map_err(|why| anyhow!(why));
            match options.and_then(|options| F::new(options, &env.ctx).context(Unfit)) {
                Ok(mut fold) => {
                    let _ = built.send(Ok(()));
                    for call in called {
                        call(&mut fold);
                    }
                }
                Err(error) => {
                    let _ = built.send(Err(error));
                }
            }
        })?;
        is_built.await??;
        Ok(Self { calls })
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut F) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let (answer, answered) = oneshot::channel();
        let call = move |fold: &mut F| {
            let _ = answer.send(call(fold));
        };
        self.calls.send(Box::new(call)).map_err(|_| anyhow!("the fold's thread has ended"))?;
        answered.await.map_err(|_| anyhow!("the fold panicked"))
    }
}
