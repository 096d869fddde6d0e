use crate::Options;
use crate::bridge::{self, Method, Object};
use plugin_api::tch::{Kind, Tensor, nn};
use plugin_api::{Error, Model, Result, Task};
use serde::Deserialize;
use serde_json::json;

/// A `torch.nn.Module`. The host has its parameters and the buffers of its `state_dict`.
pub struct PythonModel {
    module: Object,
    train_differs: bool,
}

/// What Python tells of a new module.
#[derive(Deserialize)]
struct Made {
    object: i64,
    /// The names of its tensors, and whether they are trained.
    state: Vec<(String, bool)>,
    train_differs: bool,
}

impl Model for PythonModel {
    type Options = Options;

    fn new(options: Options, task: Task, path: &nn::Path) -> Result<Self> {
        let dtype = match path.kind() {
            kind @ (Kind::Float | Kind::Double) => format!("{kind:?}"),
            kind => return Err(Error::new(format!("expected weights in Float or Double, got {kind:?}"))),
        };
        let like = Tensor::zeros([0], (path.kind(), path.device()));
        let further = json!({"task": bridge::task(task), "dtype": dtype});
        let (made, tensors) = bridge::create::<Made>("model", &options, further, &[&like])?;
        if made.state.is_empty() {
            return Err(Error::new(format!("the network of {} has no parameters", options.file)));
        }
        for ((name, trains), tensor) in made.state.iter().zip(tensors) {
            let mut folders: Vec<_> = name.split('.').collect();
            let name = folders.pop().unwrap_or_default();
            let folder = folders.into_iter().fold(path.clone(), |path, folder| path / folder);
            let _ = folder.add(name, tensor, *trains);
        }
        Ok(Self { module: Object::new(made.object), train_differs: made.train_differs })
    }

    fn train_differs(&self) -> bool {
        self.train_differs
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mode = if train { "train" } else { "eval" };
        self.module.call(Method::Forward, mode, &[images], None)?.one()
    }
}
