use crate::check::{Check, Draught};
use crate::fault::Draft;

/// The two ends of a cut model have to be of the same model, at the same tensor.
impl Check<'_, '_> {
    /// A `classify` with a model takes the tensor that the stages before it give. It may be said at one end alone: the other
    /// is told.
    pub(crate) fn parts(&mut self, stages: &mut [Draught<'_>]) {
        for at in 0..stages.len() {
            let Some(model) = text(&stages[at], "model").filter(|_| is_use(&stages[at], "classify")) else {
                self.needs_model(&stages[at]);
                continue;
            };
            let from: Vec<usize> = (0..stages.len())
                .filter(|&other| stages[at].from.iter().any(|(name, _)| *name == stages[other].name))
                .filter(|&other| is_use(&stages[other], "extract"))
                .collect();
            for other in from {
                self.same_model(&stages[at], &model, &stages[other]);
                self.same_tensor(stages, at, other);
            }
        }
    }

    fn needs_model(&mut self, stage: &Draught<'_>) {
        for key in ["input", "top_k"] {
            if is_use(stage, "classify") && stage.spec.as_ref().is_some_and(|spec| spec.options.contains_key(key)) {
                let draft =
                    Draft::new(format!("`{key}` is for a model: this stage names none, so it asks the gallery"));
                self.findings.push(stage.at(key), draft.stage(Some(&stage.name)).key(key));
            }
        }
    }

    fn same_model(&mut self, stage: &Draught<'_>, model: &str, before: &Draught<'_>) {
        let Some(theirs) = text(before, "model").filter(|theirs| theirs != model) else { return };
        let message = format!(
            "`{}` gives tensors of the model `{theirs}`, this stage runs the rest of `{model}`: both have to be the same model",
            before.name
        );
        self.findings.push(stage.at("model"), Draft::new(message).stage(Some(&stage.name)).key("model"));
    }

    fn same_tensor(&mut self, stages: &mut [Draught<'_>], at: usize, before: usize) {
        let (Some(given), wanted) = (text(&stages[before], "output"), text(&stages[at], "input")) else {
            // Neither end says one: the answer itself. This end alone: the stage before has to say it too.
            if let Some(wanted) = text(&stages[at], "input") {
                let (stage, name) = (&stages[at], &stages[before].name);
                let message = format!("`input` is `{wanted}`, and `{name}` gives the model's answer");
                let help = Some(format!("write in [stage.{name}]: output = \"{wanted}\""));
                self.findings
                    .push(stage.at("input"), Draft::new(message).stage(Some(&stage.name)).key("input").help(help));
            }
            return;
        };
        match wanted {
            Some(wanted) if wanted != given => {
                let stage = &stages[at];
                let message = format!("`input` is `{wanted}`, and `{}` gives `{given}`", stages[before].name);
                self.findings.push(stage.at("input"), Draft::new(message).stage(Some(&stage.name)).key("input"));
            }
            Some(_) => {}
            None => {
                if let Some(spec) = &mut stages[at].spec {
                    spec.options.insert("input".into(), toml::Value::String(given));
                }
            }
        }
    }
}

fn is_use(stage: &Draught<'_>, name: &str) -> bool {
    stage.uses.is_some_and(|uses| uses.name == name)
}

/// A text of a stage's own keys.
fn text(stage: &Draught<'_>, key: &str) -> Option<String> {
    Some(stage.spec.as_ref()?.options.get(key)?.as_str()?.to_owned())
}
