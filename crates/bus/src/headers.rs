use async_nats::HeaderMap;
use causeway_schemas::{Codec, Id, Meta, MetaError, header};

/// The headers of a message as they came.
#[derive(Debug, Clone, Default)]
pub struct Headers(pub(crate) HeaderMap);

impl Headers {
    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(async_nats::HeaderValue::as_str)
    }

    /// The headers that every message of ours carries.
    pub fn meta(&self) -> Result<Meta, MetaError> {
        Meta::from_headers(|name| self.get(name))
    }

    /// The kind, where one is named.
    pub fn kind(&self) -> Option<&str> {
        self.get(header::KIND)
    }

    /// How the body is written.
    pub fn codec(&self) -> Codec {
        Codec::of(self.get(header::CONTENT_TYPE))
    }

    /// An id header, where there is one that reads.
    pub fn id(&self, name: &str) -> Option<Id> {
        self.get(name)?.parse().ok()
    }

    /// Bytes that they have on the wire.
    pub(crate) fn len(&self) -> usize {
        // `: ` and the end of the line.
        const MARKS: usize = 4;
        let each = self.0.iter().flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(move |value| name.len() + value.as_str().len() + MARKS)
        });
        each.sum()
    }

    /// All headers as name and value.
    pub fn to_pairs(&self) -> Vec<(String, String)> {
        let pairs = self
            .0
            .iter()
            .flat_map(|(name, values)| values.iter().map(|value| (name.to_string(), value.as_str().to_owned())));
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort();
        pairs
    }
}
