use crate::{PluginOptions, Random, Result, Task, ThreatModel};
use tch::Tensor;

/// A whole procedure that looks for adversarial examples.
pub trait Attack: Sized + Send + 'static {
    /// The user's options, documented and checked by their JSON schema.
    type Options: PluginOptions;

    /// An attack with these options.
    ///
    /// # Errors
    /// If the options contradict one another.
    fn new(options: Self::Options) -> Result<Self>;

    /// Whether the attack supports this threat model; called before any work starts.
    ///
    /// # Errors
    /// If it does not: the reason.
    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        let _ = threat;
        Ok(())
    }

    /// Whether the attack can run on models of this task; called before any work starts. For
    /// example, an attack may need four classes.
    ///
    /// # Errors
    /// If it cannot: the reason.
    fn supports_task(&self, task: &Task) -> Result<()> {
        let _ = task;
        Ok(())
    }

    /// The largest number of forward passes per example, if there is a limit. More passes are an
    /// error, which stops the evaluation.
    fn query_budget(&self) -> Option<u64> {
        None
    }

    /// One candidate for each example, inside ball and domain, `[N, C, H, W]`. If the attack found
    /// nothing, the candidate is the natural example or any other allowed point: the host
    /// classifies all candidates. Runs without gradient tracking.
    ///
    /// # Errors
    /// If the attack cannot run on this victim; the evaluation stops with the message.
    fn run(&self, target: &Target) -> Result<Tensor>;
}

/// The inputs of an attack: N examples and the model to fool, in evaluation mode.
///
/// Float tensors share one dtype and device, which may be any. Inputs are only lent: never write to
/// them in place.
pub struct Target<'a> {
    /// The natural examples, `[N, C, H, W]`.
    pub natural: &'a Tensor,
    /// Their labels, `[N]`, i64.
    pub labels: &'a Tensor,
    /// The number of each example, the same in every call: its index among the test points, or
    /// among the held-out training points. Length N.
    pub points: &'a [i64],
    /// Number of classes.
    pub classes: i64,
    /// Norm, epsilon and domain.
    pub threat: ThreatModel,
    /// The model under attack.
    pub victim: Victim<'a>,
    /// The host's random numbers, one stream per example.
    pub random: Random<'a>,
}

/// The host's side of a victim. Each call is one pass per row, which the host counts.
pub trait VictimCalls {
    /// Logits `[N, classes]` without a graph.
    ///
    /// # Errors
    /// If the model fails.
    fn logits(&self, images: &Tensor) -> Result<Tensor>;

    /// Differentiable logits, and the leaf tensor with respect to which they can be differentiated.
    ///
    /// # Errors
    /// If the model fails.
    fn differentiable(&self, images: &Tensor) -> Result<(Tensor, Tensor)>;

    /// The gradient of the sum of `loss` with respect to the leaf; the graph is kept.
    ///
    /// # Errors
    /// If `loss` does not come from the leaf's logits.
    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor>;
}

/// The model under attack. It gives logits and input gradients. An attack has no access to its
/// parameters or their gradients.
#[derive(Clone, Copy)]
pub struct Victim<'a> {
    calls: &'a dyn VictimCalls,
}

impl<'a> Victim<'a> {
    /// A victim behind these calls.
    pub fn new(calls: &'a dyn VictimCalls) -> Self {
        Self { calls }
    }

    /// Logits `[M, classes]` of any M images, without a graph: one forward pass per image.
    ///
    /// # Errors
    /// If the model fails.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        self.calls.logits(images)
    }

    /// Logits that can be differentiated with respect to the images: one forward pass per image.
    ///
    /// # Errors
    /// If the model fails.
    pub fn forward(&self, images: &Tensor) -> Result<Evaluation<'a>> {
        let (logits, leaf) = self.calls.differentiable(images)?;
        Ok(Evaluation { calls: self.calls, logits, leaf })
    }
}

/// Differentiable logits of a batch of images.
pub struct Evaluation<'a> {
    calls: &'a dyn VictimCalls,
    logits: Tensor,
    leaf: Tensor,
}

impl Evaluation<'_> {
    /// The logits, `[M, classes]`, without a graph.
    pub fn logits(&self) -> Tensor {
        self.logits.detach()
    }

    /// The logits, `[M, classes]`, with their graph: for a loss that [`Evaluation::gradient`] cannot
    /// compute in a closure.
    pub fn tracked_logits(&self) -> Tensor {
        self.logits.shallow_clone()
    }

    /// The input gradient (`[M, C, H, W]`) of the sum of a loss that was computed from
    /// [`Evaluation::tracked_logits`]: one backward pass per image.
    ///
    /// # Errors
    /// If the loss does not depend on the logits.
    pub fn gradient_of(&self, loss: &Tensor) -> Result<Tensor> {
        self.calls.input_gradient(loss, &self.leaf)
    }

    /// The value (`[M]`) and the input gradient (`[M, C, H, W]`) of the loss per row that `loss`
    /// computes from the logits: one backward pass per image. May be called again with another
    /// loss.
    ///
    /// # Errors
    /// If the loss fails or does not depend on the logits.
    pub fn gradient(&self, loss: impl FnOnce(&Tensor) -> Tensor) -> Result<(Tensor, Tensor)> {
        let loss = tch::with_grad(|| loss(&self.logits));
        let gradient = self.gradient_of(&loss)?;
        Ok((loss.detach(), gradient))
    }
}
