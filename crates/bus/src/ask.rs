use std::time::Duration;

use async_nats::client::RequestErrorKind;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;

use crate::bus::{RENEWED, error_chain};
use crate::{Bus, BusError};

/// A question that somebody asked.
pub struct Question {
    /// What it says.
    pub body: Bytes,
    /// Where it was asked.
    pub subject: String,
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
    /// Asks whoever answers questions on a subject, who may take so long; `None` where nobody does.
    pub async fn ask(&self, subject: &str, body: Bytes, patience: Duration) -> Result<Option<Bytes>, BusError> {
        let request = async_nats::Request::new().payload(body).timeout(Some(patience));
        // One who was connected anew was forgotten by whom he asked.
        let asked = self.unless_renewed(self.client.send_request(subject.to_owned(), request)).await;
        let asked = asked.ok_or_else(|| BusError::request(format!("ask {subject}"), RENEWED))?;
        match asked {
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
            let subject = asked.subject.to_string();
            std::future::ready(asked.reply.map(|reply| Question { body: asked.payload, subject, reply, client }))
        });
        Ok(questions.boxed())
    }
}
