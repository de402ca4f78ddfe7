//! A part of a model: the graph up to a tensor, from one on, or between two, cut out of the file's bytes in memory.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use causeway_pipelines::did_you_mean;
use prost::Message as _;

use crate::onnx::{Annotation, FloatValue, Graph, Model, Named, Node, SparseTensor, Tensor};

/// Most names that an error lists.
const MAX_LISTED: usize = 8;

/// Which part of a model is wanted. A tensor is told by its name in the ONNX file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut<'a> {
    /// The tensor that takes the place of the model's input; `None`: the input itself.
    pub from: Option<&'a str>,
    /// The tensor that becomes the only output; `None`: all the model's outputs.
    pub to: Option<&'a str>,
}

/// Why a model cannot be cut so.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The bytes are no ONNX file.
    #[error("it is no ONNX model: {0}")]
    NotOnnx(String),
    /// No node gives this tensor.
    #[error("it has no tensor `{name}`{near}")]
    NoTensor {
        /// The tensor asked for.
        name: String,
        /// Names like it, as the end of the sentence.
        near: String,
    },
    /// The nodes need each other's outputs.
    #[error("its nodes go in a circle, through the tensor `{0}`")]
    Circle(String),
    /// More than the one tensor would have to be sent.
    #[error(
        "`{at}` does not carry all of it: {crossing} would have to be sent too; choose a tensor that everything behind it comes \
         from"
    )]
    NotAlone {
        /// The tensor of the cut.
        at: String,
        /// The others.
        crossing: String,
    },
    /// What is asked for does not come of the tensor.
    #[error("`{to}` does not come from `{from}`")]
    Apart {
        /// The tensor of the cut.
        from: String,
        /// What was asked for.
        to: String,
    },
}

impl Cut<'_> {
    /// Whether it is the whole model.
    pub(crate) fn is_whole(&self) -> bool {
        *self == Self::default()
    }

    /// The model of this part, out of the bytes of an ONNX file. [`Session`](crate::Session) does it itself; public for
    /// `tests/fuzz`.
    #[doc(hidden)]
    pub fn of(&self, file: Bytes) -> Result<Vec<u8>, CutError> {
        let not_onnx = |error: prost::DecodeError| CutError::NotOnnx(error.to_string());
        let mut model = Model::decode(file).map_err(not_onnx)?;
        let graph = model.graph.take().ok_or_else(|| CutError::NotOnnx("it has no graph".into()))?;
        let wiring = Wiring::of(&graph).map_err(not_onnx)?;
        let nodes = wiring.part(self)?;
        model.graph = Some(wiring.graph(&graph, &nodes, self).map_err(not_onnx)?);
        Ok(model.encode_to_vec())
    }
}

/// Which node gives and which nodes read a tensor.
struct Wiring {
    nodes: Vec<Node>,
    /// The node that gives a tensor.
    maker: HashMap<String, usize>,
    /// Inputs of the graph, less those that only name a weight.
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Wiring {
    fn of(graph: &Graph) -> Result<Self, prost::DecodeError> {
        let nodes: Vec<Node> = graph.node.iter().map(|node| Node::decode(node.clone())).collect::<Result<_, _>>()?;
        let weights: HashSet<String> = weights(graph)?.into_iter().map(|(name, _)| name).collect();
        let mut inputs = names(&graph.input)?;
        // Before IR version 4 every weight is an input too.
        inputs.retain(|name| !weights.contains(name));
        let given =
            |(at, node): (usize, &Node)| node.output.iter().map(move |name| (name.clone(), at)).collect::<Vec<_>>();
        let maker = nodes.iter().enumerate().flat_map(given).filter(|(name, _)| !name.is_empty()).collect();
        Ok(Self { nodes, maker, inputs, outputs: names(&graph.output)? })
    }

    /// The nodes of a part, in the order of the file.
    fn part(&self, cut: &Cut<'_>) -> Result<BTreeSet<usize>, CutError> {
        for name in [cut.from, cut.to].into_iter().flatten() {
            self.knows(name)?;
        }
        let order = self.in_order()?;
        let wanted: Vec<&str> = cut.to.map_or_else(|| self.outputs.iter().map(String::as_str).collect(), |to| vec![to]);
        let needed = self.needed(&wanted, cut.from);
        let Some(from) = cut.from else { return Ok(needed) };
        // What changes with the input, and what comes of the cut.
        let live = self.come_of(&order, self.inputs.iter().map(String::as_str));
        let behind = self.come_of(&order, std::iter::once(from));
        if let Some(apart) = wanted.iter().find(|name| !behind.contains(**name)) {
            return Err(CutError::Apart { from: from.into(), to: (*apart).into() });
        }
        let reads =
            needed.iter().map(|&at| &self.nodes[at]).filter(|node| node.output.iter().any(|o| behind.contains(&**o)));
        let crossing: BTreeSet<&str> =
            reads.flat_map(Node::reads).filter(|name| live.contains(name) && !behind.contains(name)).collect();
        if crossing.is_empty() {
            return Ok(needed);
        }
        Err(CutError::NotAlone { at: from.into(), crossing: listed(crossing.into_iter()) })
    }

    fn knows(&self, name: &str) -> Result<(), CutError> {
        if self.maker.contains_key(name) {
            return Ok(());
        }
        let known: BTreeSet<&str> = self.maker.keys().map(String::as_str).collect();
        let hint = did_you_mean(name, known.iter().copied());
        let shares = |known: &&str| {
            let start = name.split(['.', '/', '_']).find(|part| part.len() > 2).unwrap_or(name);
            known.contains(start)
        };
        let near: Vec<&str> = known.iter().copied().filter(shares).collect();
        let near = if near.is_empty() { known.into_iter().collect() } else { near };
        let hint = hint.map_or(String::new(), |hint| format!("; {hint}"));
        let near = format!("{hint}; tensors there: {}", listed(near.into_iter()));
        Err(CutError::NoTensor { name: name.into(), near })
    }

    /// The nodes, each behind those whose outputs it reads.
    fn in_order(&self) -> Result<Vec<usize>, CutError> {
        let makers = |at: usize| self.nodes[at].reads().into_iter().filter_map(|name| self.maker.get(name).copied());
        let mut readers = vec![Vec::new(); self.nodes.len()];
        let mut missing: Vec<usize> = vec![0; self.nodes.len()];
        for (at, missing) in missing.iter_mut().enumerate() {
            for maker in makers(at) {
                readers[maker].push(at);
                *missing += 1;
            }
        }
        let mut order: Vec<usize> = (0..self.nodes.len()).filter(|&at| missing[at] == 0).collect();
        let mut next = 0;
        while let Some(&at) = order.get(next) {
            next += 1;
            for &reader in &readers[at] {
                missing[reader] -= 1;
                if missing[reader] == 0 {
                    order.push(reader);
                }
            }
        }
        match missing.iter().position(|&missing| missing > 0) {
            Some(at) => Err(CutError::Circle(self.nodes[at].output.first().cloned().unwrap_or_default())),
            None => Ok(order),
        }
    }

    /// The nodes that `wanted` come of, as far back as `from`.
    fn needed(&self, wanted: &[&str], from: Option<&str>) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut open: Vec<&str> = wanted.to_vec();
        while let Some(name) = open.pop() {
            if let Some(&at) = self.maker.get(name).filter(|_| Some(name) != from)
                && needed.insert(at)
            {
                open.extend(self.nodes[at].reads());
            }
        }
        needed
    }

    /// All tensors that come of `starts`, these among them.
    fn come_of<'a>(&'a self, order: &[usize], starts: impl Iterator<Item = &'a str>) -> HashSet<&'a str> {
        let mut found: HashSet<&str> = starts.collect();
        for &at in order {
            let node = &self.nodes[at];
            if node.reads().iter().any(|name| found.contains(name)) {
                found.extend(node.output.iter().map(String::as_str));
            }
        }
        found
    }

    /// The graph of some nodes, with what belongs to them.
    fn graph(&self, whole: &Graph, nodes: &BTreeSet<usize>, cut: &Cut<'_>) -> Result<Graph, prost::DecodeError> {
        let kept: HashSet<&str> = nodes
            .iter()
            .flat_map(|&at| self.nodes[at].reads().into_iter().chain(self.nodes[at].output.iter().map(String::as_str)))
            .collect();
        let mut part = Graph { node: nodes.iter().map(|&at| whole.node[at].clone()).collect(), ..whole.clone() };
        let all: Vec<(String, Bytes)> = weights(whole)?;
        part.initializer = of(&all[..whole.initializer.len()], &kept);
        part.sparse_initializer = of(&all[whole.initializer.len()..], &kept);
        let values = named(whole.value_info.iter().chain(&whole.output))?;
        part.value_info = of(&named(&whole.value_info)?, &kept);
        let about = |one: &Bytes| Ok((Annotation::decode(one.clone())?.tensor_name, one.clone()));
        part.quantization_annotation = of(
            &whole.quantization_annotation.iter().map(about).collect::<Result<Vec<_>, prost::DecodeError>>()?,
            &kept,
        );
        // A type that the file tells of the tensor has its shape; else the engine finds it out.
        let value = |name: &str| {
            let told = values.iter().find(|(known, _)| known == name);
            told.map_or_else(|| FloatValue::encoded(name), |(_, value)| value.clone())
        };
        part.input = of(&named(&whole.input)?, &kept);
        if let Some(from) = cut.from {
            let weight_inputs = named(&whole.input)?.into_iter().filter(|(name, _)| !self.inputs.contains(name));
            part.input = std::iter::once(value(from)).chain(of(&weight_inputs.collect::<Vec<_>>(), &kept)).collect();
            part.value_info =
                of(&named(&part.value_info)?, &kept.iter().copied().filter(|name| *name != from).collect());
        }
        if let Some(to) = cut.to {
            part.output = vec![value(to)];
        }
        Ok(part)
    }
}

/// Weights by name: the dense ones, then the sparse ones.
fn weights(graph: &Graph) -> Result<Vec<(String, Bytes)>, prost::DecodeError> {
    let dense = graph.initializer.iter().map(|one| Ok((Tensor::decode(one.clone())?.name, one.clone())));
    let sparse = graph.sparse_initializer.iter().map(|one| {
        let name = SparseTensor::decode(one.clone())?.values.unwrap_or_default().name;
        Ok((name, one.clone()))
    });
    dense.chain(sparse).collect()
}

fn names(values: &[Bytes]) -> Result<Vec<String>, prost::DecodeError> {
    Ok(named(values)?.into_iter().map(|(name, _)| name).collect())
}

fn named<'a>(values: impl IntoIterator<Item = &'a Bytes>) -> Result<Vec<(String, Bytes)>, prost::DecodeError> {
    values.into_iter().map(|value| Ok((Named::decode(value.clone())?.name, value.clone()))).collect()
}

/// Those that are kept.
fn of(all: &[(String, Bytes)], kept: &HashSet<&str>) -> Vec<Bytes> {
    all.iter().filter(|(name, _)| kept.contains(name.as_str())).map(|(_, one)| one.clone()).collect()
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(MAX_LISTED);
    let shown = names[..names.len().min(MAX_LISTED)].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

#[cfg(test)]
mod tests;
