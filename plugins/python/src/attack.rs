use crate::Options;
use crate::bridge::{self, Host, Method, Object};
use plugin_api::tch::Tensor;
use plugin_api::{Attack, Result, Target, Task, ThreatModel};
use serde::Deserialize;
use serde_json::{Value, json};

/// A class with a method `run`, and the declarations of an attack as attributes.
pub struct PythonAttack {
    object: Object,
    query_budget: Option<u64>,
}

/// What a class declares.
#[derive(Deserialize)]
struct Declared {
    object: i64,
    #[serde(default)]
    query_budget: Option<u64>,
}

impl PythonAttack {
    fn check(&self, values: &Value) -> Result<()> {
        self.object.call(Method::Supports, &values.to_string(), &[], None).map(drop)
    }
}

impl Attack for PythonAttack {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        let (declared, _) = bridge::create::<Declared>("attack", &options, json!({}), &[])?;
        Ok(Self { object: Object::new(declared.object), query_budget: declared.query_budget })
    }

    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        self.check(&json!({"method": "supports", "threat": threat}))
    }

    fn supports_task(&self, task: &Task) -> Result<()> {
        self.check(&json!({"method": "supports_task", "task": bridge::task(*task)}))
    }

    fn query_budget(&self) -> Option<u64> {
        self.query_budget
    }

    fn run(&self, target: &Target) -> Result<Tensor> {
        let points = Tensor::from_slice(target.points);
        let values = json!({"classes": target.classes, "threat": target.threat});
        let host = Host::of_attack(target);
        let tensors = [target.natural, target.labels, &points];
        self.object.call(Method::Run, &values.to_string(), &tensors, Some(&host))?.one()
    }
}
