use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;

use async_nats::client::RequestErrorKind;

use crate::bus::error_chain;
use crate::{Bus, BusError};

/// A question that somebody asked.
pub struct Question {
    /// What it says.
    pub body: Bytes,
    reply: async_nats::Subject,
    client: async_nats::Client,
}

impl Question {
    /// Answers it.
    pub async fn answer(self, body: Bytes) {
        if let Err(error) = self.client.publish(self.reply, body).await {
            tracing::debug!(%error, "a question is not answered");
        }
    }
}

impl Bus {
    /// Asks whoever answers questions on a subject; `None` where nobody does.
    pub async fn ask(&self, subject: &str, body: Bytes) -> Result<Option<Bytes>, BusError> {
        match self.client.request(subject.to_owned(), body).await {
            Ok(answer) => Ok(Some(answer.payload)),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(None),
            Err(error) => Err(BusError::request(format!("ask {subject}"), error_chain(&error))),
        }
    }

    /// The questions on a subject, for as long as there is a connection.
    pub async fn questions(&self, subject: &str) -> Result<BoxStream<'static, Question>, BusError> {
        let asked = self.client.subscribe(subject.to_owned()).await;
        let asked = asked.map_err(|error| BusError::request(format!("subscribe {subject}"), error))?;
        let client = self.client.clone();
        let questions = asked.filter_map(move |asked| {
            let client = client.clone();
            std::future::ready(asked.reply.map(|reply| Question { body: asked.payload, reply, client }))
        });
        Ok(questions.boxed())
    }
}
