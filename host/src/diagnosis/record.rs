//! The contents of `diagnosis.json`.

use crate::law::dual::{Dual, Order};
use crate::law::effective::Effective;
use crate::law::faces::Places;
use crate::plugin::Record;
use crate::run::Versions;
use crate::torch::arithmetic::Arithmetic;
use plugin_api::ThreatModel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far the particles of a run are from the law that its inner problem has, at the weights of one
/// checkpoint. Parts that are not measured yet are absent.
///
/// Every loss is the cross-entropy in evaluation mode. A list "per point" has an entry for each of
/// `settings.points`, in their order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The command that began it.
    pub command: Vec<String>,
    /// When it was begun (UTC).
    pub begun: String,
    /// What decides the figures. The same command goes on with a diagnosis of the same settings.
    pub settings: Settings,
    /// The software.
    pub versions: Versions,
    /// How it computed.
    pub arithmetic: Arithmetic,
    /// Passes so far: forward and backward passes of one sample, a forward alone counted as one.
    pub passes: u64,
    /// Where the particles of the whole store are.
    pub particles: Option<Particles>,
    /// How adversarial some distributions are.
    pub losses: Option<Losses>,
    /// The run's own sampler at fixed weights, from its stored particles.
    pub chain: Option<Chain>,
    /// Other samplers at the same weights.
    #[serde(default)]
    pub beside: Vec<Beside>,
    /// The law at each lambda of the ladder, from 0 upwards.
    #[serde(default)]
    pub laws: Vec<LawAt>,
    /// The lambda whose law is as adversarial as the stored particles; none without two rungs.
    pub effective_of_stored: Option<Effective>,
    /// The lambda whose law is as adversarial as the run's own chain.
    pub effective_of_chain: Option<Effective>,
    /// The dual value at each lambda of the ladder.
    #[serde(default)]
    pub dual: Vec<Dual>,
    /// The order E_uniform <= g <= E_q <= max at each lambda of the ladder.
    #[serde(default)]
    pub order: Vec<Order>,
    /// What either player could gain.
    pub game: Option<Game>,
    /// What the stored particles do to other runs.
    #[serde(default)]
    pub transfer: Vec<Transfer>,
}

/// What decides the figures of a diagnosis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The update of the checkpoint.
    pub update: u64,
    /// SHA-256 of the checkpoint's weights.
    pub weights: String,
    /// Indices of the training points.
    pub points: Vec<i64>,
    /// The ball of the particles: that of training.
    pub threat: ThreatModel,
    /// The lambdas that were asked for.
    pub lambdas: Vec<f64>,
    /// Chains of each point from either end.
    pub chains: usize,
    /// Steps of a chain at each lambda; the first half is not used.
    pub steps: usize,
    /// Epochs of the classifier that is trained anew.
    pub anew_epochs: usize,
    /// The seed.
    pub seed: u64,
    /// The sampler of the law.
    pub law_sampler: Record,
    /// The sampler that finds the maximum.
    pub maximiser: Record,
    /// The samplers that are run beside the run's own.
    #[serde(default)]
    pub beside: Vec<Record>,
    /// The other runs that the particles are tried on, with the digests of their weights.
    pub transfer: BTreeMap<String, String>,
}

/// Where the particles of the whole store are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Particles {
    /// Distances, faces and corners.
    pub places: Places,
    /// The same for uniform draws rounded as the store rounds: the share on faces that says nothing.
    pub uniform: Places,
    /// The inf-Wasserstein distance between the stored law and the training points, where each point
    /// has the same mass.
    pub w_infinity: f64,
    /// Training points within 2 epsilon of another one. If there are none, Assumption 3.1 of the
    /// paper holds, and the distance is the largest of a particle from its own point. A particle of
    /// any other point can only come from its own; among these, the distance is that of a bottleneck
    /// assignment.
    pub close_points: usize,
}

/// Mean losses over the points.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Losses {
    /// At the natural examples.
    pub natural: Level,
    /// At uniform draws from the ball.
    pub uniform: Level,
    /// At the stored particles.
    pub stored: Level,
    /// Where the maximiser ends, the largest loss of its chains at each point.
    pub maximum: Level,
}

/// A mean loss over the points.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Level {
    /// The mean over the points.
    pub mean: f64,
    /// Its standard error for these very points: that of the draws alone. 0 if nothing was drawn.
    /// That of the stored particles takes the variance from the run's own chain.
    pub error: f64,
    /// Share of these particles that are classified correctly.
    pub accuracy: f64,
    /// The mean of each point.
    pub per_point: Vec<f64>,
}

/// Chains at fixed weights, in their second half.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chain {
    /// The mean loss over the points.
    pub mean: f64,
    /// Its standard error for these very points, with autocorrelation.
    pub error: f64,
    /// The variance of the loss within a point, averaged over the points.
    pub variance: f64,
    /// The mean loss of each point.
    pub per_point: Vec<f64>,
    /// The standard error of each point's mean; none where chains did not move.
    pub error_per_point: Vec<Option<f64>>,
    /// The variance of the loss of each point.
    pub variance_per_point: Vec<f64>,
    /// How the chains of a point mix.
    pub mixing: Option<MixingOfPoints>,
    /// The sampler's figures, averaged over chains and steps.
    pub figures: BTreeMap<String, f64>,
}

/// Another sampler at the weights of the run, from natural examples or where it begins by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Beside {
    /// The sampler, as written.
    pub sampler: String,
    /// What its chains say.
    pub chain: Chain,
    /// Where they are in the end.
    pub places: Places,
    /// The lambda whose law is as adversarial; none before the laws are measured.
    pub effective: Option<Effective>,
}

/// How the chains of a point mix, over the points.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MixingOfPoints {
    /// Draws of all chains of a point. A draw is the loss after a visit.
    pub draws: usize,
    /// Steps between two draws.
    pub steps_per_draw: usize,
    /// The median over the points of the integrated autocorrelation time, in draws.
    pub autocorrelation_time: f64,
    /// The median of the effective sample size of the mean.
    pub effective: f64,
    /// The median of split R-hat; none if half of the points' chains do not move.
    pub r_hat: Option<f64>,
    /// The largest split R-hat; none if a point's chains never moved.
    pub largest_r_hat: Option<f64>,
    /// Points whose R-hat exceeds 1.05, or whose chains did not move.
    pub unmixed_points: usize,
}

/// The law at one lambda.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LawAt {
    /// The inverse temperature; 0 is the uniform law.
    pub lambda: f64,
    /// Chains that began at uniform draws, with lambda rising.
    pub from_uniform: Option<Chain>,
    /// Chains that began where the maximiser ends, with lambda falling.
    pub from_maximum: Option<Chain>,
    /// How all chains of a point mix with each other, from both ends. Where they do not meet, the
    /// mean loss lies between those of both ends.
    pub mixing: Option<MixingOfPoints>,
    /// The exact values, where they are known.
    pub exact: Option<Exact>,
}

/// Exact values of the law of softmax regression at a whole lambda.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exact {
    /// The dual value, averaged over the points.
    pub g: f64,
    /// The dual value of each point.
    pub g_per_point: Vec<f64>,
    /// The mean loss, from exact independent draws.
    pub mean: f64,
    /// Its standard error.
    pub error: f64,
    /// The mean loss of each point.
    pub per_point: Vec<f64>,
    /// The standard error of each point's mean.
    pub error_per_point: Vec<f64>,
    /// Points whose mean loss differs from that of the chains by at most 2 standard errors of the
    /// difference, and by at most 3.
    pub agreeing_means: [usize; 2],
    /// Points whose dual value differs from that of the chains by at most 2 of its standard errors,
    /// and by at most 3.
    pub agreeing_duals: [usize; 2],
}

/// What either player could gain by leaving the game as it stands (exploitability).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Game {
    /// The largest mean loss of any chain above at the points, less that of their stored particles:
    /// what the adversary could gain against these weights, at least.
    pub adversary_gains: f64,
    /// The chains that reach it.
    pub adversary: String,
    /// The same for the run's own chain, which had many more steps at these weights.
    pub longer_chain_gains: f64,
    /// The mean loss of the run's weights at all stored particles.
    pub loss_of_run: f64,
    /// That of a classifier trained anew against these particles, which stayed where they are.
    pub loss_of_anew: f64,
    /// The difference: what the classifier could gain against these particles, at least. Below 0 the
    /// new one was not trained for long enough to tell.
    pub classifier_gains: f64,
    /// Epochs that it was trained for.
    pub epochs: usize,
}

/// What the stored particles of the points do to another run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Transfer {
    /// The other run.
    pub run: String,
    /// Its mean loss at the natural examples.
    pub natural: Level,
    /// Its mean loss at these particles.
    pub particles: Level,
}
