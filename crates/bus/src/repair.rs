use async_nats::datetime::DateTime;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DeleteMessageErrorKind, RawMessage};
use async_nats::jetstream::{ErrorCode, context};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::TryStreamExt as _;
use serde::Deserialize;
use serde_json::json;

use crate::bus::{RENEWED, error_chain};
use crate::{Bus, BusError, Headers, names};

/// A stored message with its headers as bytes, whatever those are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    /// Its subject.
    pub subject: String,
    /// When the broker stored it, Unix time in ns.
    pub stored_at: u64,
    /// Its header block, the line `NATS/1.0` included; empty where it has none.
    pub headers: Vec<u8>,
    /// Its body.
    pub body: Bytes,
}

/// What the server answers to `STREAM.MSG.GET`.
#[derive(Deserialize)]
struct Answer {
    message: Option<RawMessage>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    err_code: u64,
    description: String,
}

/// The first line of a header block.
const VERSION_LINE: &str = "NATS/1.0";

impl Bus {
    /// Removes one message of a stream. `false`: it was not there.
    pub async fn delete_message(&self, stream: &str, sequence: u64) -> Result<bool, BusError> {
        let fail = |why: String| BusError::request(format!("remove message {sequence} of the stream {stream}"), why);
        let remove = async {
            let handle = self.js.get_stream_no_info(stream).await.map_err(|error| fail(error_chain(&error)))?;
            match handle.delete_message(sequence).await {
                Ok(done) => Ok(done),
                Err(error) => match error.kind() {
                    DeleteMessageErrorKind::JetStream(refusal) if is_gone(refusal.error_code().0) => Ok(false),
                    _ => Err(fail(error_chain(&error))),
                },
            }
        };
        // Not asked twice: what has its place by then may be another message.
        self.unless_renewed(remove).await.unwrap_or_else(|| Err(fail(RENEWED.into())))
    }

    /// Removes the dead letter at `sequence`, provided that it is the one of `stage` about the message `id`: a place may have
    /// been given anew since. Nothing to do where it is gone.
    pub async fn delete_letter(&self, sequence: u64, stage: &str, id: &str) -> Result<bool, BusError> {
        let stream = names::stream(&self.pipeline, names::DEAD);
        let Some(letter) = self.raw_message_at(&stream, sequence).await? else { return Ok(false) };
        if !letter.subject.ends_with(&format!(".{stage}.{id}")) {
            return Ok(false);
        }
        self.delete_message(&stream, sequence).await
    }

    /// The message at `sequence` with its headers as they are stored: also where the client cannot read them.
    pub async fn raw_message_at(&self, stream: &str, sequence: u64) -> Result<Option<RawRecord>, BusError> {
        let fail = |why: String| BusError::request(format!("read message {sequence} of the stream {stream}"), why);
        let ask = || async {
            let asked = self.js.request(format!("STREAM.MSG.GET.{stream}"), &json!({ "seq": sequence })).await;
            asked.map_err(|error: context::RequestError| fail(error_chain(&error)))
        };
        let answer: Answer = self.asked(ask).await?;
        match answer {
            Answer { error: Some(refusal), .. } if is_gone(refusal.err_code) => Ok(None),
            Answer { error: Some(refusal), .. } => Err(fail(refusal.description)),
            Answer { message: None, .. } => Ok(None),
            Answer { message: Some(message), .. } => {
                let bytes = |text: &str| STANDARD.decode(text).map_err(|error| fail(error.to_string()));
                Ok(Some(RawRecord {
                    stored_at: u64::try_from(message.time.unix_timestamp_nanos()).unwrap_or(0),
                    headers: bytes(message.headers.as_deref().unwrap_or_default())?,
                    body: bytes(&message.payload)?.into(),
                    subject: message.subject,
                }))
            }
        }
    }

    /// Acks in the name of a durable a message that the broker delivered once and cannot read any more: it would wait for it for ever.
    pub async fn ack_unreadable(&self, stream: &str, durable: &str, sequence: u64) -> Result<(), BusError> {
        // Deliveries, sequence, the durable's own sequence, time, pending: of these only the sequence is looked at.
        let subject = format!("$JS.ACK.{stream}.{durable}.1.{sequence}.1.0.0");
        let acked = self.client.publish(subject, "+ACK".into()).await;
        acked.map_err(|error| BusError::request(format!("ack message {sequence} of {stream} for {durable}"), error))
    }

    /// The names of all streams that the account has, also those behind tables and bodies.
    pub async fn stream_names(&self) -> Result<Vec<String>, BusError> {
        let names: Result<Vec<String>, _> = self.js.stream_names().try_collect().await;
        names.map_err(|error| BusError::request("list the streams", error_chain(&error)))
    }

    /// Removes a stream with all that is in it; nothing to do where there is none.
    pub async fn delete_stream(&self, stream: &str) -> Result<(), BusError> {
        if self.stream_state(stream).await?.is_none() {
            return Ok(());
        }
        let done = self.js.delete_stream(stream).await;
        done.map(|_| ()).map_err(|error| BusError::request(format!("remove the stream {stream}"), error_chain(&error)))
    }

    /// Removes a bucket, a table or a store of bodies, with all that is in it.
    pub async fn delete_bucket(&self, bucket: &str) -> Result<(), BusError> {
        for stream in [format!("KV_{bucket}"), format!("OBJ_{bucket}")] {
            self.delete_stream(&stream).await?;
        }
        Ok(())
    }
}

impl RawRecord {
    /// Whether the client library can read the header block, and reads it as a message's. It cannot where that is no UTF-8, or has
    /// a line that is no header (as behind a lone carriage return): then it takes the connection for broken, again at every
    /// delivery. Where the first line goes on with a status (`NATS/1.0 503`), every client takes the message for a word of the
    /// broker's own, and never acks it.
    pub fn is_readable(&self) -> bool {
        if self.headers.is_empty() {
            return true;
        }
        let Ok(text) = std::str::from_utf8(&self.headers) else { return false };
        let mut lines = text.lines().peekable();
        if lines.next().and_then(|line| line.strip_prefix(VERSION_LINE)).is_none_or(|status| !status.trim().is_empty())
        {
            return false;
        }
        while let Some(line) = lines.next() {
            if line.is_empty() {
                continue;
            }
            let Some((name, value)) = line.split_once(':') else { return false };
            if !name.bytes().all(|byte| byte.is_ascii_graphic()) || value.contains('\r') {
                return false;
            }
            // Only a header can go on in the next line.
            while let Some(more) = lines.next_if(|line| line.starts_with([' ', '\t'])) {
                if more.contains('\r') {
                    return false;
                }
            }
        }
        true
    }

    /// The headers as the client library reads them; `None` where it cannot.
    pub fn read_headers(&self) -> Option<Headers> {
        let headers = Some(STANDARD.encode(&self.headers)).filter(|headers| !headers.is_empty());
        let (subject, payload) = (self.subject.clone(), String::new());
        let time = DateTime::UNIX_EPOCH;
        let message = StreamMessage::try_from(RawMessage { subject, sequence: 0, payload, headers, time });
        message.ok().map(|message| Headers(message.headers))
    }

    /// The header block as name and value, as far as it can be told; what is no UTF-8 is replaced.
    pub fn header_pairs(&self) -> Vec<(String, String)> {
        let text = String::from_utf8_lossy(&self.headers);
        let lines = text.split("\r\n").skip(1).filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                (name.trim().to_owned(), value.trim().to_owned())
            })
            .collect()
    }

    /// The header block whole, as text (base64).
    pub fn headers_base64(&self) -> String {
        STANDARD.encode(&self.headers)
    }
}

/// No message has this sequence: it never had, or it was removed.
fn is_gone(code: u64) -> bool {
    [ErrorCode::NO_MESSAGE_FOUND.0, ErrorCode::SEQUENCE_NOT_FOUND.0].contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(headers: &[u8]) -> RawRecord {
        RawRecord { subject: "a".into(), stored_at: 0, headers: headers.to_vec(), body: Bytes::new() }
    }

    #[test]
    fn what_the_client_cannot_read_is_told() {
        for good in
            [&b""[..], b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\nA: b\r\nC:d\r\n\r\n", b"NATS/1.0\r\nA: b\r\n c\r\n\r\n"]
        {
            assert!(record(good).is_readable() && record(good).read_headers().is_some(), "{good:?}");
        }
        for bad in [
            &b"NATS/1.0\r\nA: \xff\r\n\r\n"[..],
            b"NATS/1.0\r\nA: b\rc\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"A: b\r\n\r\n",
            // Nothing that could go on in a second line.
            b"NATS/1.0\r\n more\r\n\r\n",
            b"NATS/1.0\r\nA: b\r\n\r\n more\r\n",
            // A word of the broker's own.
            b"NATS/1.0 503\r\n\r\n",
            b"NATS/1.0 no status\r\n\r\n",
        ] {
            assert!(!record(bad).is_readable(), "{bad:?}");
        }
    }

    #[test]
    fn headers_are_told_as_far_as_they_can_be() {
        let record = record(b"NATS/1.0\r\nCauseway-Id: x\r\nA: \xffb\r\n\r\n");
        let pairs = [("Causeway-Id".to_owned(), "x".to_owned()), ("A".into(), "\u{fffd}b".into())];
        assert_eq!(record.header_pairs(), pairs);
    }
}
