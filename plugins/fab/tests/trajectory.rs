//! Replays the reference's walks, recorded by tests/parity/record_fab.py. The same network and the
//! same random starts must give the same iterates, distances and verdicts.

use fab::{Fab, Options};
use plugin_api::losses::margin;
use plugin_api::tch::{self, Kind, Tensor};
use plugin_api::{Attack, Norm, Random, Result, Target, ThreatModel, Victim, VictimCalls};
use replay::{ReplayedNumbers, SmallNet, read_fixture};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Both sides compute in f64, but not in the same order. Results may differ by rounding only, which
/// an iteration does not amplify much.
const TOLERANCE: f64 = 1e-8;

/// One mode of a fixture.
struct Recording {
    tensors: HashMap<String, Tensor>,
    mode: &'static str,
    norm: Norm,
}

impl Recording {
    fn read(name: &str, norm: Norm, mode: &'static str) -> Self {
        let tensors = read_fixture(&format!("fab-{name}.safetensors")).expect("a fixture");
        Self { tensors, mode, norm }
    }

    fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn of_mode(&self, name: &str) -> &Tensor {
        &self.tensors[&format!("{}.{name}", self.mode)]
    }

    fn setting(&self, number: i64) -> usize {
        self.of_mode("settings").int64_value(&[number]) as usize
    }

    fn options(&self) -> Options {
        Options {
            targeted: self.mode == "targeted",
            steps: self.setting(0),
            restarts: self.setting(1),
            target_classes: self.setting(2),
            eta: self.of_mode("eta").double_value(&[0]),
            ..Options::default()
        }
    }

    /// The threat model with the epsilon of this name.
    fn threat(&self, epsilon: &str) -> ThreatModel {
        let epsilon = self.of_mode(epsilon).double_value(&[0]);
        ThreatModel { norm: self.norm, epsilon, domain: (0.0, 1.0) }
    }

    fn points(&self) -> Vec<i64> {
        (0..self.tensor("labels").size()[0]).collect()
    }

    fn image(&self, point: i64) -> Tensor {
        self.tensor("images").narrow(0, point, 1)
    }

    fn label(&self, point: i64) -> Tensor {
        self.tensor("labels").narrow(0, point, 1)
    }

    fn fooled(&self, point: i64) -> bool {
        self.of_mode("fooled").int64_value(&[point]) == 1
    }

    /// Candidates for these points, and the network with its record of every query.
    fn attack(&self, threat: ThreatModel, points: &[i64]) -> (Tensor, SmallNet) {
        let draws = self.of_mode("draws");
        let draws = (0..draws.size()[0]).map(|number| draws.get(number)).collect();
        let (rows, numbers) = (Tensor::from_slice(points), ReplayedNumbers::new(draws).rows(points));
        let net = SmallNet::new(&self.tensors).expect("a network");
        let target = Target {
            natural: &self.tensor("images").index_select(0, &rows),
            labels: &self.tensor("labels").index_select(0, &rows),
            points,
            classes: 10,
            threat,
            victim: Victim::new(&net),
            random: Random::new(&numbers),
        };
        (run(self.options(), &target), net)
    }
}

fn run(options: Options, target: &Target) -> Tensor {
    // With images this small, further threads only wait for one another.
    tch::set_num_threads(1);
    tch::no_grad(|| Fab::new(options).and_then(|attack| attack.run(target))).expect("candidates")
}

/// The largest difference of any two elements.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// Attacks a single point, follows its queries and compares each iterate with the recording until
/// the point is fooled. Returns whether it is fooled.
fn assert_replays(recording: &Recording, epsilon: &str, point: i64) -> bool {
    let (threat, options) = (recording.threat(epsilon), recording.options());
    let places: Vec<Vec<i64>> = Vec::try_from(recording.of_mode("snapshot_places")).expect("places");
    let (candidate, net) = recording.attack(threat, &[point]);
    let (natural, label) = (recording.image(point), recording.label(point));
    let margin_of = |image: &Tensor| margin(&net.forward(image).expect("logits"), &label).double_value(&[0]);
    let mut queries = net.queries().into_iter().peekable();
    assert_eq!(queries.next().as_ref(), Some(&natural));

    let (mut best, mut smallest) = (natural.copy(), margin_of(&natural));
    for walk in 0..recording.of_mode("margins").size()[0] {
        let start = queries.next().expect("a start");
        if walk % options.restarts as i64 == 0 {
            assert_eq!(start, natural);
        } else {
            let apart = threat.distance(&start, &natural).double_value(&[0]);
            assert!(apart > 0.0 && apart <= threat.epsilon / 2.0 + TOLERANCE, "a start {apart} away");
        }
        let mut nearest: f64 = 1e10;
        // The point of the last linearisation.
        let mut before = start.copy();
        for step in 0..options.steps as i64 {
            let place = format!("{}, {epsilon}, point {point}, walk {walk}, step {step}", recording.mode);
            let iterate = queries.next().unwrap_or_else(|| panic!("{place}: no query"));
            let margin = margin_of(&iterate);
            let recorded = recording.of_mode("margins").double_value(&[walk, step, point]);
            // Possible causes of the first difference.
            let why = || {
                // Iterates are projected onto the domain, not onto the ball.
                let threat = ThreatModel { epsilon: f64::INFINITY, ..threat };
                net.suspects(&before, &natural, &threat)
            };
            let close = (margin - recorded).abs() < TOLERANCE;
            assert!(close, "{place}: margin {margin}, recorded {recorded}; {}", why());
            if let Some(number) = places.iter().position(|known| *known == [walk, step]) {
                let recorded = recording.of_mode("snapshots").get(number as i64).narrow(0, point, 1);
                let apart = difference(&iterate, &recorded);
                assert!(apart < TOLERANCE, "{place}: images differ by {apart}; {}", why());
            }

            let distance = threat.distance(&iterate, &natural).double_value(&[0]);
            let inside = distance <= threat.epsilon;
            if inside && margin < smallest {
                (best, smallest) = (iterate.copy(), margin);
            }
            if margin < 0.0 {
                nearest = nearest.min(distance);
            }
            if margin < 0.0 && inside {
                assert_eq!(candidate, iterate, "{place}");
                let recorded = recording.of_mode("distances").double_value(&[point]);
                assert!(recorded < distance + TOLERANCE, "{place}: {distance}, nearest {recorded}");
                assert!(queries.next().is_none(), "{place}: queries after the point was fooled");
                return true;
            }
            if step + 1 == options.steps as i64 {
                break;
            }
            if margin < 0.0 {
                let back = queries.next().expect("the point it moves back to");
                let apart = difference(&back, &(&natural + (&iterate - &natural) * options.beta));
                assert!(apart < 1e-12, "{place}: moved back elsewhere, {apart}");
                before = back;
            } else {
                // A second pass of the iterate, unless the graph was kept.
                let _ = queries.next_if_eq(&iterate);
                before = iterate;
            }
        }
        let recorded = recording.of_mode("nearest").double_value(&[walk, point]);
        let apart = (nearest - recorded).abs();
        assert!(apart < TOLERANCE, "point {point}, walk {walk}: nearest {nearest}, recorded {recorded}");
    }
    assert!(queries.next().is_none(), "point {point}: more queries than were recorded");
    assert_eq!(candidate, best, "point {point}: the smallest margin inside");
    false
}

const FILES: [(&str, Norm); 4] = [
    ("linf-1x10x10", Norm::Linf),
    ("l2-1x10x10", Norm::L2),
    ("linf-3x6x8", Norm::Linf),
    ("l2-3x6x8", Norm::L2),
];

fn assert_walks_and_verdicts(name: &str, norm: Norm, mode: &'static str) {
    let recording = Recording::read(name, norm, mode);
    let mut counts = [0, 0];
    for point in recording.points() {
        let fooled = recording.fooled(point);
        assert_eq!(assert_replays(&recording, "epsilon", point), fooled, "{name}, {mode}, point {point}");
        counts[usize::from(fooled)] += 1;
        // The rest of a fooled point's walks is compared in a ball so small that no point is
        // fooled.
        if fooled && recording.options().restarts == 1 {
            assert!(!assert_replays(&recording, "walked_epsilon", point));
        }
    }
    assert!(counts.iter().all(|count| *count > 3), "{name}, {mode}: verdicts {counts:?}");
}

#[test]
#[should_panic(expected = "targeted, walked_epsilon, point 4, walk 0, step 30: margin ")]
fn the_first_difference_is_named() {
    let recording = Recording::read("linf-1x10x10", Norm::Linf, "targeted");
    let mut margins = recording.of_mode("margins").get(0).narrow(0, 30, 70).select(1, 4);
    margins += 1e-6;
    assert_replays(&recording, "walked_epsilon", 4);
}

#[test]
fn targeted_walks_and_verdicts_equal_those_of_the_reference() {
    for (name, norm) in FILES {
        assert_walks_and_verdicts(name, norm, "targeted");
    }
}

#[test]
fn untargeted_walks_and_verdicts_equal_those_of_the_reference() {
    for (name, norm) in FILES {
        assert_walks_and_verdicts(name, norm, "untargeted");
    }
}

#[test]
fn a_point_does_not_depend_on_its_neighbours() {
    for (name, norm) in &FILES[2..] {
        for mode in ["targeted", "untargeted"] {
            let recording = Recording::read(name, *norm, mode);
            let (threat, points) = (recording.threat("epsilon"), recording.points());
            let (together, net) = recording.attack(threat, &points);
            let (mut passes, mut sum) = (0, 0.0);
            for &point in &points {
                let (alone, net) = recording.attack(threat, &[point]);
                let apart = difference(&alone.get(0), &together.get(point));
                assert!(apart < TOLERANCE, "{name}, {mode}, point {point}: {apart} apart");
                passes += net.forward_passes();
                sum += sum_of_queries(&net);
            }
            // The queries are the same, too.
            assert_eq!(net.forward_passes(), passes, "{name}, {mode}");
            let apart = (sum_of_queries(&net) / sum - 1.0).abs();
            assert!(apart < TOLERANCE, "{name}, {mode}: queries {apart} apart");
            let inside = threat.contains(&together, recording.tensor("images"));
            assert!(bool::try_from(inside.all()).expect("a bool"));
        }
    }
}

fn sum_of_queries(net: &SmallNet) -> f64 {
    net.queries().iter().map(|images| images.square().sum(Kind::Double).double_value(&[])).sum()
}

#[test]
fn points_that_always_move_back_take_exactly_the_query_budget() {
    let recording = Recording::read("l2-1x10x10", Norm::L2, "targeted");
    let margins = recording.of_mode("margins");
    let always: Vec<bool> = Vec::try_from(margins.lt(0.0).flatten(0, 1).all_dim(0, false)).expect("bools");
    let points: Vec<i64> = recording.points().into_iter().filter(|&point| always[point as usize]).collect();
    assert!(points.len() > 10);
    let (_, net) = recording.attack(recording.threat("walked_epsilon"), &points);
    let options = recording.options();
    let linearisations = (options.target_classes * options.steps * points.len()) as u64;
    let budget = Fab::new(options).expect("an attack").query_budget().expect("a budget");
    assert_eq!(net.forward_passes(), budget * points.len() as u64);
    assert_eq!(net.backward_passes(), linearisations);
}

#[test]
fn points_misclassified_without_an_attack_take_one_pass() {
    let mut recording = Recording::read("linf-3x6x8", Norm::Linf, "targeted");
    let wrong = (recording.tensor("labels") + 1).remainder(10);
    recording.tensors.insert("labels".to_owned(), wrong);
    let points = recording.points();
    let (candidates, net) = recording.attack(recording.threat("epsilon"), &points);
    assert_eq!(candidates, *recording.tensor("images"));
    assert_eq!(net.forward_passes(), points.len() as u64);
}

/// Two classes. Their boundary is at a first pixel of 0.5 if the second pixel is dark, and at 2,
/// outside the domain, if it is bright.
#[derive(Default)]
struct Threshold {
    queries: RefCell<Vec<Tensor>>,
    backward_passes: Cell<i64>,
}

impl Threshold {
    fn forward(&self, images: &Tensor) -> Tensor {
        self.queries.borrow_mut().push(images.detach().copy());
        let (first, second) = (images.select(3, 0).flatten(0, -1), images.select(3, 1).flatten(0, -1));
        let thresholds = second.detach().gt(0.5).to_kind(Kind::Double) * 1.5 + 0.5;
        let values = first - thresholds;
        Tensor::stack(&[values.zeros_like(), values], 1)
    }

    /// The first pixels of the queried images with this second pixel.
    fn queried(&self, second: f64) -> Vec<f64> {
        let queries = self.queries.borrow();
        let rows = queries.iter().flat_map(|batch| (0..batch.size()[0]).map(|row| batch.get(row)));
        let of_kind = rows.filter(|image| image.double_value(&[0, 0, 1]) == second);
        of_kind.map(|image| image.double_value(&[0, 0, 0])).collect()
    }
}

impl VictimCalls for Threshold {
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        Ok(tch::no_grad(|| self.forward(images)))
    }

    fn differentiable(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let leaf = images.detach().set_requires_grad(true);
        Ok((tch::with_grad(|| self.forward(&leaf)), leaf))
    }

    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor> {
        self.backward_passes.set(self.backward_passes.get() + leaf.size()[0]);
        let total = tch::with_grad(|| loss.sum(Kind::Double));
        Ok(Tensor::f_run_backward(&[total], &[leaf], true, false)?.remove(0))
    }
}

/// Candidates for images of two pixels labelled 0 in an linf ball of 0.1.
fn attack_threshold(steps: usize, images: &[f64]) -> (Vec<f64>, Threshold) {
    let natural = Tensor::from_slice(images).reshape([-1, 1, 1, 2]);
    let points: Vec<i64> = (0..natural.size()[0]).collect();
    let (victim, numbers) = (Threshold::default(), ReplayedNumbers::new(vec![]));
    let target = Target {
        natural: &natural,
        labels: &Tensor::zeros([natural.size()[0]], (Kind::Int64, natural.device())),
        points: &points,
        classes: 2,
        threat: ThreatModel { norm: Norm::Linf, epsilon: 0.1, domain: (0.0, 1.0) },
        victim: Victim::new(&victim),
        random: Random::new(&numbers),
    };
    let candidates = run(Options { steps, ..Options::default() }, &target);
    (Vec::try_from(candidates.flatten(0, -1)).expect("numbers"), victim)
}

fn assert_close(got: &[f64], expected: &[f64]) {
    let close = got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-12);
    assert!(close && got.len() == expected.len(), "got {got:?}, expected {expected:?}");
}

#[test]
fn two_iterations_are_those_computed_by_hand() {
    let (candidates, victim) = attack_threshold(2, &[0.2, 0.25]);
    // The natural example is classified and linearised at distance 0.3 from the boundary; both
    // projections are 0.5. With the overshoot of 1.05: 0.2 + 0.315 = 0.515. The iterate moves back
    // to 0.2 + 0.9 * 0.315 = 0.4835, at distance 0.0165. So alpha, the weight of 0.515, is 0.0165 /
    // 0.3165, and the other point of the mean is 0.4835 + 1.05 * 0.0165.
    let alpha = 0.0165 / 0.3165;
    let second = (1.0 - alpha) * (0.4835 + 1.05 * 0.0165) + alpha * 0.515;
    assert_close(&victim.queried(0.25), &[0.2, 0.2, 0.515, 0.4835, second]);
    // None of these iterates is within 0.1.
    assert_close(&candidates, &[0.2, 0.25]);

    // From 0.45, the first iterate is: 0.45 + 1.05 * 0.05.
    let (candidates, victim) = attack_threshold(2, &[0.45, 0.25]);
    assert_close(&victim.queried(0.25), &[0.45, 0.45, 0.5025]);
    assert_close(&candidates, &[0.5025, 0.25]);
}

#[test]
fn an_iterate_that_does_not_move_back_takes_one_forward_pass() {
    let steps = 10;
    let (candidates, victim) = attack_threshold(steps, &[0.2, 0.25, 0.95, 0.75]);
    // The first point moves back from every iterate and takes all passes of the budget. The second
    // stays at the domain's bound, the nearest point to the boundary. It takes passes of the
    // natural example, the start and the iterates, and a second pass of the first iterate, before
    // there are statistics.
    assert_eq!(victim.queried(0.25).len(), 1 + 2 * steps);
    assert_eq!(victim.queried(0.75).len(), 1 + 1 + steps + 1);
    assert_close(&victim.queried(0.75)[2..], &[1.0; 11]);
    assert_eq!(victim.backward_passes.get(), 2 * steps as i64);
    // Within epsilon, 1 has the smaller margin.
    assert_close(&candidates, &[0.2, 0.25, 1.0, 0.75]);
}
