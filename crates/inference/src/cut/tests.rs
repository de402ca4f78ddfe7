use super::*;

/// A node of one output: what it reads, what it gives.
fn node(reads: &[&str], gives: &str) -> Bytes {
    let text = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Node { input: text(reads), output: text(&[gives]), ..Node::default() }.encode_to_vec().into()
}

fn value(name: &str) -> Bytes {
    Named { name: name.into() }.encode_to_vec().into()
}

fn weight(name: &str) -> Bytes {
    Tensor { name: name.into() }.encode_to_vec().into()
}

fn file(graph: Graph) -> Bytes {
    let mut model = Model::decode(Bytes::new()).unwrap();
    model.graph = Some(graph);
    model.encode_to_vec().into()
}

/// x → a → b → c → y with a way round from a to c, a weight each, and a constant that both halves read.
fn model() -> Bytes {
    let graph = Graph {
        node: vec![
            node(&[], "k"),
            node(&["x", "wa", "k"], "a"),
            node(&["a", "wb"], "b"),
            node(&["b", "a"], "c"),
            node(&["c", "wy", "k"], "y"),
            node(&["y"], "z"),
        ],
        initializer: ["wa", "wb", "wy"].map(weight).to_vec(),
        input: vec![value("x"), value("wa")],
        output: vec![value("y"), value("z")],
        ..Graph::default()
    };
    file(graph)
}

/// What a part has: what its nodes give, its weights, its inputs, its outputs.
type Part = (Vec<String>, Vec<String>, Vec<String>, Vec<String>);

fn part(from: Option<&str>, to: Option<&str>) -> Result<Part, CutError> {
    let graph = Model::decode(Bytes::from(Cut { from, to }.of(model())?)).unwrap().graph.unwrap();
    let gives = graph.node.iter().map(|node| Node::decode(node.clone()).unwrap().output.remove(0)).collect();
    let weights = weights(&graph).unwrap().into_iter().map(|(name, _)| name).collect();
    Ok((gives, weights, names(&graph.input).unwrap(), names(&graph.output).unwrap()))
}

fn listed_as<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(Into::into).to_vec()
}

#[test]
fn both_parts_have_what_they_need_and_no_more() {
    let (gives, weights, inputs, outputs) = part(None, Some("c")).unwrap();
    assert_eq!(gives, listed_as(["k", "a", "b", "c"]));
    assert_eq!(weights, listed_as(["wa", "wb"]));
    assert_eq!((inputs, outputs), (listed_as(["x", "wa"]), listed_as(["c"])));

    let (gives, weights, inputs, outputs) = part(Some("c"), Some("y")).unwrap();
    assert_eq!(gives, listed_as(["k", "y"]));
    assert_eq!((weights, inputs, outputs), (listed_as(["wy"]), listed_as(["c"]), listed_as(["y"])));

    let (gives, _, _, outputs) = part(Some("c"), None).unwrap();
    assert_eq!((gives, outputs), (listed_as(["k", "y", "z"]), listed_as(["y", "z"])));
}

#[test]
fn a_tensor_that_is_not_alone_is_refused_with_the_others() {
    let error = part(Some("b"), None).unwrap_err();
    assert!(matches!(&error, CutError::NotAlone { crossing, .. } if crossing == "`a`"), "{error}");
    // The constant and the weights are on both sides: they need not be sent.
    assert!(part(Some("a"), None).is_ok());
}

#[test]
fn what_is_not_there_is_told_with_what_is() {
    for (from, to) in [(Some("cc"), None), (None, Some("cc")), (Some("x"), None), (Some("wa"), None)] {
        let error = part(from, to).unwrap_err();
        assert!(matches!(error, CutError::NoTensor { .. }), "{error}");
        assert!(error.to_string().contains("tensors there: `a`, `b`, `c`"), "{error}");
    }
    assert!(part(Some("cc"), None).unwrap_err().to_string().contains("did you mean `c`?"));
    let error = part(Some("c"), Some("b")).unwrap_err();
    assert!(matches!(error, CutError::Apart { .. }), "{error}");
}

#[test]
fn a_circle_and_bytes_that_are_no_model_are_refused() {
    let graph =
        Graph { node: vec![node(&["b"], "a"), node(&["a"], "b")], output: vec![value("b")], ..Graph::default() };
    let circle = file(graph);
    let error = Cut { from: None, to: Some("a") }.of(circle).unwrap_err();
    assert!(matches!(error, CutError::Circle(_)), "{error}");
    for bytes in [&b"no model"[..], b"", b"\x3a\xff\xff\xff\xff\x0f"] {
        let error = Cut { from: None, to: Some("a") }.of(Bytes::copy_from_slice(bytes)).unwrap_err();
        assert!(matches!(error, CutError::NotOnnx(_)), "{error}");
    }
}

/// The branches of an `If` read tensors of the graph around them.
#[test]
fn what_an_inner_graph_reads_crosses_too() {
    use crate::onnx::{Attribute, Inner};
    let inner = Inner { node: vec![Node::decode(node(&["a"], "inner")).unwrap()], ..Inner::default() };
    let attribute = vec![Attribute { g: Some(inner), ..Attribute::default() }];
    let branch = Node { input: vec!["b".into()], output: vec!["y".into()], attribute };
    let graph = Graph {
        node: vec![node(&["x"], "a"), node(&["a"], "b"), branch.encode_to_vec().into()],
        input: vec![value("x")],
        output: vec![value("y")],
        ..Graph::default()
    };
    let file = file(graph);
    let error = Cut { from: Some("b"), to: None }.of(file.clone()).unwrap_err();
    assert!(matches!(&error, CutError::NotAlone { crossing, .. } if crossing == "`a`"), "{error}");
    assert!(Cut { from: Some("a"), to: None }.of(file).is_ok());
}
