//! What a model that cannot be used is told as, and what a run gives. With the models that `./dev` brings.

use std::path::{Path, PathBuf};
use std::{env, fs};

use causeway_inference::{OpenError, Port, RunError, Session};
use causeway_pipelines::Manifest;
use ndarray::Array4;

const INPUT: Port<'_> = Port { name: "data", shape: &[Some(1), Some(3), Some(112), Some(112)] };
const OUTPUT: Port<'_> = Port { name: "fc1", shape: &[Some(1), Some(128)] };

fn manifest(name: &str) -> Manifest {
    let tools = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/models");
    let models = env::var_os("CAUSEWAY_MODELS").map_or_else(tools, PathBuf::from);
    assert!(models.is_dir(), "cannot find the models: {} is no folder; run ./dev", models.display());
    Manifest::load(&models, name).unwrap()
}

#[test]
fn a_file_with_another_hash_is_refused_before_it_is_parsed() {
    let file = env::temp_dir().join(format!("causeway-open-{}.onnx", std::process::id()));
    fs::write(&file, "this is no ONNX file").unwrap();
    let opened = Session::open(&Manifest { file: file.clone(), ..manifest("yunet") }, 1);
    fs::remove_file(&file).unwrap();
    let Err(error) = opened else { panic!("it was opened") };
    assert!(matches!(error, OpenError::OtherHash { .. }), "{error}");
    assert!(error.to_string().starts_with("cannot trust "), "{error}");
}

#[test]
fn a_model_that_is_not_there_is_told() {
    let Err(error) = Session::open(&Manifest { file: "/no/such.onnx".into(), ..manifest("yunet") }, 1) else {
        panic!("it was opened")
    };
    assert!(error.to_string().contains("`yunet`: /no/such.onnx"), "{error}");
}

#[test]
fn a_model_of_another_sort_is_told_with_both_shapes() {
    let session = Session::open(&manifest("yunet"), 1).unwrap();
    let Err(error) = session.expecting(INPUT, &[OUTPUT]) else { panic!("a detector was taken for an embedding model") };
    let text = error.to_string();
    for part in ["`data` f32 [1, 3, 112, 112]", "`fc1` f32 [1, 128]", "`input` f32 [N, 3, H, W]", "`cls_8` f32 ["] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_run_gives_outputs_by_name_and_an_unfit_input_can_never_work() {
    let mut session = Session::open(&manifest("sface"), 1).unwrap().expecting(INPUT, &[OUTPUT]).unwrap();
    assert_eq!(session.model().name, "sface");
    let outputs = session.run(&Array4::<f32>::zeros([1, 3, 112, 112])).unwrap();
    assert_eq!(outputs.view("fc1").unwrap().shape(), [1, 128]);
    assert!(matches!(outputs.view("fc2"), Err(RunError::Never { .. })));
    drop(outputs);
    let Err(error) = session.run(&Array4::<f32>::zeros([1, 3, 96, 96])) else { panic!("96 × 96 was taken") };
    assert!(!error.is_passing(), "{error}");
    let turned = Array4::<f32>::zeros([1, 112, 112, 3]).permuted_axes([0, 3, 1, 2]);
    assert!(matches!(session.run(&turned), Err(RunError::Never { .. })));
}
