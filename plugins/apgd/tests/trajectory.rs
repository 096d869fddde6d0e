//! Replays the reference's runs, recorded by tests/parity/record_apgd.py. The same network and the
//! same random starts must give the same iterates and the same verdicts.

use apgd::{Apgd, Loss, Options};
use plugin_api::losses::{correct, cross_entropy, margin};
use plugin_api::tch::{self, Kind, Tensor};
use plugin_api::{Attack, Norm, Random, Result, Target, ThreatModel, Victim, VictimCalls};
use replay::{ReplayedNumbers, SmallNet, read_fixture};
use std::cell::Cell;
use std::collections::HashMap;

/// One loss of a fixture.
struct Recording {
    tensors: HashMap<String, Tensor>,
    loss: &'static str,
    norm: Norm,
}

impl Recording {
    fn read(file: &str, norm: Norm, loss: &'static str) -> Self {
        Self { tensors: read_fixture(file).expect("a fixture"), loss, norm }
    }

    fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn of_loss(&self, name: &str) -> &Tensor {
        &self.tensors[&format!("{}.{name}", self.loss)]
    }

    fn net(&self) -> SmallNet {
        SmallNet::new(&self.tensors).expect("a network")
    }

    fn options(&self) -> Options {
        let setting = |number| self.of_loss("settings").int64_value(&[number]) as usize;
        let loss = match self.loss {
            "ce" => Loss::Ce,
            "dlr" => Loss::Dlr,
            "dlr-targeted" => Loss::DlrTargeted,
            unknown => panic!("no loss {unknown}"),
        };
        let (steps, restarts, target_classes) = (setting(0), setting(1), setting(2));
        Options { loss, steps, restarts, target_classes, ..Options::default() }
    }

    fn threat(&self) -> ThreatModel {
        let epsilon = self.tensor("epsilon").double_value(&[0]);
        ThreatModel { norm: self.norm, epsilon, domain: (0.0, 1.0) }
    }

    fn numbers(&self) -> ReplayedNumbers {
        let draws = self.of_loss("draws");
        ReplayedNumbers::new((0..draws.size()[0]).map(|run| draws.get(run)).collect())
    }

    /// Candidates for these points.
    fn attack(
        &self,
        options: Options,
        threat: ThreatModel,
        victim: &dyn VictimCalls,
        points: &[i64],
    ) -> Tensor {
        let (rows, numbers) = (Tensor::from_slice(points), self.numbers().rows(points));
        let target = Target {
            natural: &self.tensor("images").index_select(0, &rows),
            labels: &self.tensor("labels").index_select(0, &rows),
            points,
            classes: 10,
            threat,
            victim: Victim::new(victim),
            random: Random::new(&numbers),
        };
        tch::no_grad(|| Apgd::new(options).and_then(|attack| attack.run(&target))).expect("candidates")
    }

    fn all_points(&self) -> Vec<i64> {
        (0..self.tensor("labels").size()[0]).collect()
    }

    fn correct(&self, candidates: &Tensor) -> Vec<bool> {
        let logits = self.net().forward(candidates).expect("logits");
        Vec::try_from(correct(&logits, self.tensor("labels"))).expect("bools")
    }
}

/// The largest difference of any two elements.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// The numbers of iterations after which step sizes may halve, in a run of `steps`. The first
/// window is 22 % of the steps; each next one is shorter by 3 % of the steps, down to 6 %.
fn checkpoints(steps: usize) -> Vec<usize> {
    let share = |percent: usize| (percent * steps / 100).max(1);
    let windows =
        std::iter::successors(Some(share(22)), |window| Some(window.saturating_sub(share(3)).max(share(6))));
    let ends = windows.scan(0, |end, window| {
        *end += window;
        Some(*end)
    });
    ends.take_while(|end| *end <= steps).collect()
}

/// Whether two of these images are equal up to rounding. Their losses are then equal up to
/// rounding, too. Which loss is higher decides when step sizes halve, and depends on the order of
/// additions on this processor. (Images that are equal to the bit have the same loss.)
fn has_tie(images: &[Tensor]) -> bool {
    let is_rounding = |apart: f64| apart > 0.0 && apart < 1e-12;
    let mut pairs =
        images.iter().enumerate().flat_map(|(n, image)| images[..n].iter().map(move |other| (image, other)));
    pairs.any(|(image, other)| is_rounding(difference(image, other)))
}

/// Follows the queries of a replayed attack and compares each with the recording. A point that
/// differs after a tie is not compared any further.
fn assert_replays(recording: &Recording) {
    let (loss, options) = (recording.loss, recording.options());
    let net = recording.net();
    let points = recording.all_points();
    let candidates = recording.attack(options.clone(), recording.threat(), &net, &points);

    let mut queries = net.queries().into_iter();
    if options.loss == Loss::DlrTargeted {
        // The pass that chooses the targets.
        assert_eq!(queries.next().as_ref(), Some(recording.tensor("images")));
    }
    let places: Vec<Vec<i64>> = Vec::try_from(recording.of_loss("snapshot_places")).expect("places");
    let mut standing = points.clone();
    let expected_candidates = recording.tensor("images").copy();
    let mut highest_loss = vec![f64::NEG_INFINITY; points.len()];
    let mut parted: Vec<i64> = Vec::new();
    for run in 0..recording.of_loss("draws").size()[0] {
        let mut before: HashMap<i64, Vec<Tensor>> = HashMap::new();
        for iterate in 0..=options.steps as i64 {
            if standing.is_empty() {
                break;
            }
            let place = format!("{loss}, run {run}, iterate {iterate}");
            let images = queries.next().unwrap_or_else(|| panic!("{place}: no query"));
            let rows = Tensor::from_slice(&standing);
            let labels = recording.tensor("labels").index_select(0, &rows);
            let logits = net.forward(&images).expect("logits");

            let recorded = recording.of_loss("margins").get(run).get(iterate).index_select(0, &rows);
            let margins = margin(&logits, &labels);
            // Possible causes of the first difference.
            let why = |point: i64| {
                let natural = recording.tensor("images").narrow(0, point, 1);
                let suspects = before
                    .get(&point)
                    .and_then(|images| images.last())
                    .map_or("this is the start".to_owned(), |image| {
                        net.suspects(image, &natural, &recording.threat())
                    });
                format!("{suspects}; step sizes may halve after {:?}", checkpoints(options.steps))
            };
            for (row, &point) in standing.iter().enumerate() {
                let [got, expected] = [&margins, &recorded].map(|all| all.double_value(&[row as i64]));
                let close = parted.contains(&point) || (got - expected).abs() < 1e-9;
                if !close && before.get(&point).is_some_and(|images| has_tie(images)) {
                    eprintln!("{place}, point {point}: not compared any further, after a tie");
                    parted.push(point);
                    continue;
                }
                assert!(close, "{place}, point {point}: margin {got}, recorded {expected}; {}", why(point));
            }
            if let Some(number) = places.iter().position(|known| *known == [run, iterate]) {
                let recorded = recording.of_loss("snapshots").get(number as i64).index_select(0, &rows);
                for (row, &point) in standing.iter().enumerate().filter(|(_, point)| !parted.contains(point))
                {
                    let [got, expected] = [&images, &recorded].map(|all| all.get(row as i64).flatten(0, -1));
                    let pixel = (&got - &expected).abs().argmax(0, false).int64_value(&[]);
                    let [got, expected] = [got, expected].map(|image| image.double_value(&[pixel]));
                    let close = (got - expected).abs() < 1e-9;
                    assert!(
                        close,
                        "{place}, point {point}, pixel {pixel}: {got}, recorded {expected}; {}",
                        why(point)
                    );
                }
            }
            for (row, &point) in (0..).zip(&standing) {
                before.entry(point).or_default().push(images.narrow(0, row, 1));
            }

            // A fooled point is not queried again.
            let stands: Vec<bool> = Vec::try_from(correct(&logits, &labels)).expect("bools");
            let losses: Vec<f64> = Vec::try_from(cross_entropy(&logits, &labels)).expect("f64");
            for (row, &point) in standing.iter().enumerate() {
                let hardest = loss == "ce" && losses[row] > highest_loss[point as usize];
                if hardest || !stands[row] {
                    highest_loss[point as usize] = losses[row];
                    expected_candidates.get(point).copy_(&images.get(row as i64));
                }
            }
            let mut stands = stands.into_iter();
            standing.retain(|_| stands.next() == Some(true));
        }
    }
    assert!(queries.next().is_none(), "{loss}: more queries than were recorded");

    let fooled: Vec<bool> = Vec::try_from(recording.of_loss("fooled").to_kind(Kind::Bool)).expect("verdicts");
    let correct = recording.correct(&candidates);
    for &point in &points {
        let (row, fooled) = (point as usize, fooled[point as usize]);
        assert_eq!(standing.contains(&point), correct[row], "{loss}: whether point {point} is fooled");
        assert!(correct[row] != fooled || parted.contains(&point), "{loss}: verdict on point {point}");
        // The first misclassified iterate, or the one of highest loss, exactly.
        if !correct[row] || loss == "ce" {
            assert_eq!(candidates.get(point), expected_candidates.get(point), "{loss}: point {point}");
        }
    }
    assert!(parted.len() * 4 <= points.len(), "{loss}: {parted:?} of {} points had ties", points.len());
    let inside = recording.threat().contains(&candidates, recording.tensor("images"));
    assert!(bool::try_from(inside.all()).expect("a bool"));
}

#[test]
#[should_panic(expected = "ce, run 0, iterate 30, point 4: margin ")]
fn the_first_difference_is_named() {
    let recording = Recording::read("apgd-linf-1x10x10.safetensors", Norm::Linf, "ce");
    let margins = recording.of_loss("margins").narrow(1, 30, recording.options().steps as i64 - 29);
    let mut margins = margins.select(2, 4);
    margins += 1e-6;
    assert_replays(&recording);
}

#[test]
fn checkpoints_are_those_of_the_paper() {
    assert_eq!(checkpoints(100), [22, 41, 57, 70, 80, 87, 93, 99]);
}

#[test]
fn linf_runs_equal_those_of_the_reference() {
    for loss in ["ce", "dlr", "dlr-targeted"] {
        assert_replays(&Recording::read("apgd-linf-1x10x10.safetensors", Norm::Linf, loss));
    }
}

#[test]
fn l2_runs_equal_those_of_the_reference() {
    for loss in ["ce", "dlr", "dlr-targeted"] {
        assert_replays(&Recording::read("apgd-l2-1x10x10.safetensors", Norm::L2, loss));
    }
}

#[test]
fn restarts_on_colour_images_that_are_not_square_equal_those_of_the_reference() {
    for loss in ["ce", "dlr-targeted"] {
        assert_replays(&Recording::read("apgd-linf-3x6x8.safetensors", Norm::Linf, loss));
        assert_replays(&Recording::read("apgd-l2-3x6x8.safetensors", Norm::L2, loss));
    }
}

#[test]
fn a_point_does_not_depend_on_its_neighbours() {
    for (file, norm) in [("apgd-linf-3x6x8.safetensors", Norm::Linf), ("apgd-l2-3x6x8.safetensors", Norm::L2)]
    {
        for loss in ["ce", "dlr-targeted"] {
            let recording = Recording::read(file, norm, loss);
            let (options, threat) = (recording.options(), recording.threat());
            let points = recording.all_points();
            let together = recording.attack(options.clone(), threat, &recording.net(), &points);
            for point in points {
                let alone = recording.attack(options.clone(), threat, &recording.net(), &[point]);
                let apart = difference(&alone.get(0), &together.get(point));
                assert!(apart < 1e-9, "{file}, {loss}, point {point}: {apart} apart");
            }
        }
    }
}

#[test]
fn points_that_are_not_fooled_take_exactly_the_query_budget() {
    for loss in ["ce", "dlr-targeted"] {
        let recording = Recording::read("apgd-linf-3x6x8.safetensors", Norm::Linf, loss);
        let options = Options { gradient_averages: 3, ..recording.options() };
        let runs = recording.of_loss("draws").size()[0] as u64;
        let points = recording.all_points();
        let budget = Apgd::new(options.clone()).expect("an attack").query_budget().expect("a budget");

        // In a ball this small no point is fooled.
        let threat = ThreatModel { epsilon: 1e-6, ..recording.threat() };
        let net = recording.net();
        let candidates = recording.attack(options.clone(), threat, &net, &points);
        assert!(recording.correct(&candidates).iter().all(|&correct| correct));
        assert_eq!(net.forward_passes(), budget * points.len() as u64);
        assert_eq!(net.backward_passes(), runs * 3 * options.steps as u64 * points.len() as u64);
    }
}

#[test]
fn points_misclassified_without_an_attack_take_one_pass() {
    let mut recording = Recording::read("apgd-linf-3x6x8.safetensors", Norm::Linf, "dlr-targeted");
    let wrong = (recording.tensor("labels") + 1).remainder(10);
    recording.tensors.insert("labels".to_owned(), wrong);
    let (net, points) = (recording.net(), recording.all_points());
    let candidates = recording.attack(recording.options(), recording.threat(), &net, &points);
    assert_eq!(candidates, *recording.tensor("images"));
    assert_eq!(net.forward_passes(), points.len() as u64);
}

/// A network whose gradients have an error of +1 and -1 in turn.
struct Alternating {
    net: SmallNet,
    passes: Cell<u64>,
}

impl VictimCalls for Alternating {
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        self.net.logits(images)
    }

    fn differentiable(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        self.net.differentiable(images)
    }

    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor> {
        let number = self.passes.replace(self.passes.get() + 1);
        let error = if number.is_multiple_of(2) { 1.0 } else { -1.0 };
        Ok(self.net.input_gradient(loss, leaf)? + error)
    }
}

#[test]
fn averaging_removes_the_noise_of_gradients() {
    let recording = Recording::read("apgd-l2-1x10x10.safetensors", Norm::L2, "ce");
    let (threat, points) = (recording.threat(), recording.all_points());
    let with_noise = |gradient_averages| {
        let victim = Alternating { net: recording.net(), passes: Cell::new(0) };
        let options = Options { gradient_averages, ..recording.options() };
        recording.attack(options, threat, &victim, &points)
    };
    let without_noise = |gradient_averages| {
        let options = Options { gradient_averages, ..recording.options() };
        recording.attack(options, threat, &recording.net(), &points)
    };
    assert!(difference(&with_noise(1), &without_noise(1)) > 0.01, "noise without averaging");
    let apart = difference(&with_noise(2), &without_noise(2));
    assert!(apart < 1e-9, "{apart} apart");
}

/// A network that confuses every class with the one before it, at some passes.
struct Unreliable {
    net: SmallNet,
    passes: Cell<u64>,
    mistaken_at: [u64; 2],
}

impl Unreliable {
    fn confuse(&self, logits: Tensor) -> Tensor {
        let number = self.passes.replace(self.passes.get() + 1);
        if self.mistaken_at.contains(&number) { tch::with_grad(|| logits.roll([1], [1])) } else { logits }
    }
}

impl VictimCalls for Unreliable {
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.confuse(self.net.logits(images)?))
    }

    fn differentiable(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let (logits, leaf) = self.net.differentiable(images)?;
        Ok((self.confuse(logits), leaf))
    }

    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor> {
        self.net.input_gradient(loss, leaf)
    }
}

#[test]
fn with_averaged_gradients_the_candidate_is_the_latest_misclassified_iterate() {
    let recording = Recording::read("apgd-linf-1x10x10.safetensors", Norm::Linf, "ce");
    let points = recording.all_points();
    // In a ball this small no point is fooled except in the passes `mistaken_at`.
    let threat = ThreatModel { epsilon: 1e-6, ..recording.threat() };
    let attack = |gradient_averages| {
        // With two passes per iterate, these are the last passes of iterates 2 and 4.
        let victim = Unreliable { net: recording.net(), passes: Cell::new(0), mistaken_at: [5, 9] };
        let options = Options { steps: 5, restarts: 2, gradient_averages, ..recording.options() };
        let candidates = recording.attack(options, threat, &victim, &points);
        (candidates, victim.net.queries())
    };
    let (candidates, queries) = attack(2);
    assert_ne!(queries[5], queries[9]);
    assert_eq!(candidates, queries[9]);
    assert_eq!(queries.len(), 11, "one run to its end, and no second one");
    // With one pass per iterate, the run stops at the first misclassified iterate.
    let (candidates, queries) = attack(1);
    assert_eq!((queries.len(), &candidates), (6, &queries[5]));
}
