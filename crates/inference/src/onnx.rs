//! As much of the ONNX format as cutting a model needs (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>, IR version
//! 13). What is only carried along stays bytes, shared with the file's: a weight is not copied, and no field of it is lost.

use bytes::Bytes;
use prost::Message;

/// `ModelProto`.
#[expect(clippy::struct_field_names, reason = "the format's own names")]
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Model {
    #[prost(int64, optional, tag = "1")]
    ir_version: Option<i64>,
    #[prost(string, optional, tag = "2")]
    producer_name: Option<String>,
    #[prost(string, optional, tag = "3")]
    producer_version: Option<String>,
    #[prost(string, optional, tag = "4")]
    domain: Option<String>,
    #[prost(int64, optional, tag = "5")]
    model_version: Option<i64>,
    #[prost(string, optional, tag = "6")]
    doc_string: Option<String>,
    #[prost(message, optional, tag = "7")]
    pub(crate) graph: Option<Graph>,
    #[prost(bytes = "bytes", repeated, tag = "8")]
    opset_import: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "14")]
    metadata_props: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "25")]
    functions: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "26")]
    configuration: Vec<Bytes>,
}

/// `GraphProto`. Its parts are bytes; [`Node`], [`Named`] and [`Annotation`] look into them.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Graph {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(crate) node: Vec<Bytes>,
    #[prost(string, optional, tag = "2")]
    pub(crate) name: Option<String>,
    /// `TensorProto`.
    #[prost(bytes = "bytes", repeated, tag = "5")]
    pub(crate) initializer: Vec<Bytes>,
    #[prost(string, optional, tag = "10")]
    pub(crate) doc_string: Option<String>,
    /// `ValueInfoProto`, as the two below.
    #[prost(bytes = "bytes", repeated, tag = "11")]
    pub(crate) input: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "12")]
    pub(crate) output: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "13")]
    pub(crate) value_info: Vec<Bytes>,
    /// `TensorAnnotation`.
    #[prost(bytes = "bytes", repeated, tag = "14")]
    pub(crate) quantization_annotation: Vec<Bytes>,
    /// `SparseTensorProto`.
    #[prost(bytes = "bytes", repeated, tag = "15")]
    pub(crate) sparse_initializer: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "16")]
    pub(crate) metadata_props: Vec<Bytes>,
}

/// What a `NodeProto` reads and writes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Node {
    #[prost(string, repeated, tag = "1")]
    pub(crate) input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(crate) output: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) attribute: Vec<Attribute>,
}

/// The graphs in an `AttributeProto`: the branches of an `If`, the body of a `Loop`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Attribute {
    #[prost(message, optional, tag = "6")]
    pub(crate) g: Option<Inner>,
    #[prost(message, repeated, tag = "11")]
    pub(crate) graphs: Vec<Inner>,
}

/// A graph within a node. It may read any tensor of the graph around it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Inner {
    #[prost(message, repeated, tag = "1")]
    pub(crate) node: Vec<Node>,
    #[prost(message, repeated, tag = "12")]
    pub(crate) output: Vec<Named>,
}

/// The name of a `ValueInfoProto`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Named {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

/// The name of a `TensorProto`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Tensor {
    #[prost(string, tag = "8")]
    pub(crate) name: String,
}

/// The name of a `SparseTensorProto`, which is its values'.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SparseTensor {
    #[prost(message, optional, tag = "1")]
    pub(crate) values: Option<Tensor>,
}

/// The tensor that a `TensorAnnotation` is about.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Annotation {
    #[prost(string, tag = "1")]
    pub(crate) tensor_name: String,
}

/// A `ValueInfoProto` of 32-bit floats whose shape is not said.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FloatValue {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<FloatType>,
}

/// `TypeProto`.
#[derive(Clone, PartialEq, Message)]
struct FloatType {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<ElementType>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
struct ElementType {
    #[prost(int32, tag = "1")]
    elem_type: i32,
}

/// `TensorProto.DataType.FLOAT`.
const FLOAT: i32 = 1;

impl Node {
    /// Every tensor that it reads, also within its inner graphs; names of these graphs' own among them.
    pub(crate) fn reads(&self) -> Vec<&str> {
        let mut reads = Vec::new();
        let mut nodes = vec![self];
        while let Some(node) = nodes.pop() {
            reads.extend(node.input.iter().map(String::as_str));
            let inner = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
            for graph in inner {
                reads.extend(graph.output.iter().map(|output| output.name.as_str()));
                nodes.extend(&graph.node);
            }
        }
        // An input that is left out has an empty name.
        reads.retain(|name| !name.is_empty());
        reads
    }
}

impl FloatValue {
    pub(crate) fn encoded(name: &str) -> Bytes {
        let tensor_type = Some(ElementType { elem_type: FLOAT });
        Self { name: name.into(), r#type: Some(FloatType { tensor_type }) }.encode_to_vec().into()
    }
}
