use crate::Options;
use crate::bridge::{self, Host, Method, Object};
use plugin_api::law::Law;
use plugin_api::tch::Tensor;
use plugin_api::{Error, Next, Projection, Result, Sampler, Start, Step, ThreatModel};
use serde::Deserialize;
use serde_json::json;

/// A class with a method `step`, and the declarations of a sampler as attributes.
pub struct PythonSampler {
    object: Object,
    declared: Declared,
}

/// What a class declares, with the defaults of [`Sampler`].
#[derive(Deserialize)]
#[serde(default)]
struct Declared {
    object: i64,
    start: Start,
    default_steps: usize,
    projection: Projection,
    law: Law,
    state_tensors: usize,
    numbers: Vec<String>,
    figures: Vec<String>,
    visit_tensors: usize,
    uses_gradient: bool,
    judges_last_proposal: bool,
    judges_by_gradient: bool,
    ascends: bool,
    begins: bool,
    reach: f64,
    interacts: bool,
}

impl Default for Declared {
    fn default() -> Self {
        Self {
            object: 0,
            start: Start::Store,
            default_steps: 1,
            projection: Projection::Host,
            law: Law::Undeclared,
            state_tensors: 0,
            numbers: Vec::new(),
            figures: Vec::new(),
            visit_tensors: 0,
            uses_gradient: true,
            judges_last_proposal: false,
            judges_by_gradient: false,
            ascends: true,
            begins: false,
            reach: 1.0,
            interacts: false,
        }
    }
}

impl PythonSampler {
    fn moved(&self, method: &str, step: &Step) -> Result<Next> {
        let points = Tensor::from_slice(step.points);
        let mut tensors = vec![step.natural, step.labels, step.particles, step.loss, step.gradient, &points];
        tensors.extend(step.state);
        let values = json!({
            "method": method, "particles_per_point": step.particles_per_point, "number": step.number,
            "of": step.of, "threat": step.threat,
        });
        let host = Host::of_step(step);
        let answer = self.object.call(Method::Move, &values.to_string(), &tensors, Some(&host))?;
        let mut tensors = answer.tensors.into_iter();
        let particles = tensors.next().ok_or_else(|| Error::new("returned nothing"))?;
        Ok(Next { particles, state: tensors.collect() })
    }
}

/// Names that live as long as the process, as a declaration needs them. A sampler declares them
/// once.
fn kept(names: &[String]) -> Vec<&'static str> {
    names.iter().map(|name| &*String::leak(name.clone())).collect()
}

impl Sampler for PythonSampler {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        let (declared, _) = bridge::create::<Declared>("sampler", &options, json!({}), &[])?;
        Ok(Self { object: Object::new(declared.object), declared })
    }

    fn start(&self) -> Start {
        self.declared.start
    }

    fn default_steps(&self) -> usize {
        self.declared.default_steps
    }

    fn projection(&self) -> Projection {
        self.declared.projection
    }

    fn law(&self) -> Law {
        self.declared.law
    }

    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        let values = json!({"method": "supports", "threat": threat});
        self.object.call(Method::Supports, &values.to_string(), &[], None).map(drop)
    }

    fn state_tensors(&self) -> usize {
        self.declared.state_tensors
    }

    fn numbers(&self) -> Vec<&'static str> {
        kept(&self.declared.numbers)
    }

    fn figures(&self) -> Vec<&'static str> {
        kept(&self.declared.figures)
    }

    fn visit_tensors(&self) -> usize {
        self.declared.visit_tensors
    }

    fn uses_gradient(&self) -> bool {
        self.declared.uses_gradient
    }

    fn judges_last_proposal(&self) -> bool {
        self.declared.judges_last_proposal
    }

    fn judges_by_gradient(&self) -> bool {
        self.declared.judges_by_gradient
    }

    fn ascends(&self) -> bool {
        self.declared.ascends
    }

    fn begins(&self) -> bool {
        self.declared.begins
    }

    fn reach(&self) -> f64 {
        self.declared.reach
    }

    fn interacts(&self) -> bool {
        self.declared.interacts
    }

    fn begin(&self, start: &Step) -> Result<Next> {
        self.moved("begin", start)
    }

    fn step(&self, step: &Step) -> Result<Next> {
        self.moved("step", step)
    }

    fn finish(&self, proposal: &Step) -> Result<Next> {
        self.moved("finish", proposal)
    }
}
