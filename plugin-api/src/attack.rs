use crate::{PluginOptions, Random, Result, Task, ThreatModel};
use tch::Tensor;

/// A whole procedure that looks for adversarial examples.
pub trait Attack: Sized + Send + 'static {
    /// What a user may set; documented and checked by its JSON schema.
    type Options: PluginOptions;

    /// An attack with these options.
    ///
    /// # Errors
    /// If the options contradict one another.
    fn new(options: Self::Options) -> Result<Self>;

    /// Whether the attack knows this threat model; asked before any work starts.
    ///
    /// # Errors
    /// Why not.
    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        let _ = threat;
        Ok(())
    }

    /// Whether the attack can run on models of this task (it may need several classes, say);
    /// asked before any work starts.
    ///
    /// # Errors
    /// Why not.
    fn supports_task(&self, task: &Task) -> Result<()> {
        let _ = task;
        Ok(())
    }

    /// How many forward passes of each example the attack needs at most, if it can promise
    /// any number. Needing more is an error: the evaluation stops.
    fn query_budget(&self) -> Option<u64> {
        None
    }

    /// One candidate for each example, inside ball and domain, `[N, C, H, W]`. Where nothing
    /// was found, the natural example or any other allowed point: the host gives the verdict.
    /// Runs without gradient tracking.
    ///
    /// # Errors
    /// If the attack cannot run on this victim; the evaluation stops with the message.
    fn run(&self, target: &Target) -> Result<Tensor>;
}

/// What an attack is given: N examples and the model to fool, in evaluation mode.
///
/// Float tensors share one dtype and device; do not assume which. Inputs are only lent:
/// never write to them in place.
pub struct Target<'a> {
    /// The natural examples, `[N, C, H, W]`.
    pub natural: &'a Tensor,
    /// Their labels, `[N]`, i64.
    pub labels: &'a Tensor,
    /// A number of each example's own, the same in every call: its index among the test points, or
    /// among those held out of training. Length N.
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

/// The host's side of a victim: each call is one pass of each row, and is counted.
pub trait VictimCalls {
    /// Logits `[N, classes]` without a graph.
    ///
    /// # Errors
    /// If the model fails.
    fn logits(&self, images: &Tensor) -> Result<Tensor>;

    /// Differentiable logits, and the leaf towards which they can be differentiated.
    ///
    /// # Errors
    /// If the model fails.
    fn differentiable(&self, images: &Tensor) -> Result<(Tensor, Tensor)>;

    /// The gradient of the sum of `loss` towards the leaf; the graph is kept.
    ///
    /// # Errors
    /// If `loss` does not come from the leaf's logits.
    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor>;
}

/// The model under attack. It gives logits and input gradients; its parameters stay out of
/// sight, and their gradients are never touched.
#[derive(Clone, Copy)]
pub struct Victim<'a> {
    calls: &'a dyn VictimCalls,
}

impl<'a> Victim<'a> {
    /// A victim behind these calls.
    pub fn new(calls: &'a dyn VictimCalls) -> Self {
        Self { calls }
    }

    /// Logits `[M, classes]` of any M images: one forward pass each, no gradient.
    ///
    /// # Errors
    /// If the model fails.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        self.calls.logits(images)
    }

    /// Logits that can be differentiated towards the images: one forward pass each.
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

    /// The value and the input gradient (`[M, C, H, W]`) of a loss per row that the caller
    /// forms from the logits (`[M]`): one backward pass each. May be called again with
    /// another loss.
    ///
    /// # Errors
    /// If the loss fails or does not depend on the logits it was given.
    pub fn gradient(&self, loss: impl FnOnce(&Tensor) -> Tensor) -> Result<(Tensor, Tensor)> {
        let loss = tch::with_grad(|| loss(&self.logits));
        let gradient = self.calls.input_gradient(&loss, &self.leaf)?;
        Ok((loss.detach(), gradient))
    }
}
