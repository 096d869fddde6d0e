//! Replays searches of the reference's Square Attack, query by query. tests/parity/record_square.py
//! describes the fixtures and records them.

use plugin_api::losses::margin;
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Attack, Norm, Random, Target, ThreatModel, Victim};
use replay::{ReplayedNumbers, SmallNet, read_fixture};
use square::{Options, QUERIES_PER_DRAW, Square};
use std::collections::HashMap;

/// Both sides compute in f64.
const TOLERANCE: f64 = 1e-12;

/// In l2, proposals scale the old change, so differences in rounding between processors grow over
/// hundreds of queries. A different square or colour would change pixels by 0.001 or more.
const TOLERANCE_OF_L2: f64 = 1e-9;

/// A fixture, with the threat model, the options and the random numbers of its search.
struct Recorded {
    tensors: HashMap<String, Tensor>,
    threat: ThreatModel,
    options: Options,
    /// The random numbers of one search as the attack draws them, a row for each point.
    draws: Vec<Tensor>,
}

impl Recorded {
    fn read(name: &str, norm: Norm) -> Self {
        let tensors = read_fixture(&format!("square-{name}.safetensors")).expect("a fixture");
        let threat = ThreatModel { norm, epsilon: tensors["epsilon"].double_value(&[0]), domain: (0.0, 1.0) };

        let numbers = |name: &str| tensors[name].to_kind(Kind::Double) / 256.0;
        let query_numbers = numbers("query_numbers");
        let queries = query_numbers.size()[1] as usize;
        let never_used = queries.next_multiple_of(QUERIES_PER_DRAW) - queries;
        let blocks = query_numbers.constant_pad_nd([0, 0, 0, never_used as i64]);
        let mut draws = vec![numbers("start_numbers")];
        draws.extend(blocks.split(QUERIES_PER_DRAW as i64, 1));

        let rescale_schedule = tensors["rescale_schedule"].int64_value(&[0]) == 1;
        let options = Options { queries, rescale_schedule, ..Options::default() };
        Self { tensors, threat, options, draws }
    }

    fn points(&self) -> i64 {
        self.tensors["labels"].size()[0]
    }

    fn fooled(&self, point: i64) -> bool {
        self.tensors["fooled"].int64_value(&[point]) == 1
    }

    /// Candidates for these points with the recorded numbers, and the network with its record of
    /// every query.
    fn run(&self, points: &[i64]) -> (Tensor, SmallNet) {
        self.run_with(self.options.clone(), &self.draws, points)
    }

    fn run_with(&self, options: Options, draws: &[Tensor], points: &[i64]) -> (Tensor, SmallNet) {
        let rows = Tensor::from_slice(points);
        let net = SmallNet::new(&self.tensors).expect("a network");
        let numbers = ReplayedNumbers::new(draws.iter().map(Tensor::shallow_clone).collect()).rows(points);
        let attack = Square::new(options).expect("an attack");
        let target = Target {
            natural: &self.tensors["images"].index_select(0, &rows),
            labels: &self.tensors["labels"].index_select(0, &rows),
            points,
            classes: 10,
            threat: self.threat,
            victim: Victim::new(&net),
            random: Random::new(&numbers),
        };
        let candidates = attack.run(&target).expect("candidates");
        let budget = attack.query_budget().expect("a number") * points.len() as u64;
        assert!(net.forward_passes() <= budget, "{} passes of {budget}", net.forward_passes());
        (candidates, net)
    }

    /// The network's margin of one image `[1, C, H, W]` of a point.
    fn margin(&self, net: &SmallNet, image: &Tensor, point: i64) -> f64 {
        let label = self.tensors["labels"].narrow(0, point, 1);
        margin(&net.forward(image).expect("logits"), &label).double_value(&[0])
    }

    /// The best image after each of a search's queries, the start first. Asserts at each query that
    /// the decision is that of the reference. `passes` are the queried images.
    fn follow(&self, net: &SmallNet, mut passes: impl Iterator<Item = Tensor>, point: i64) -> Vec<Tensor> {
        let flag = |name: &str, query| self.tensors[name].int64_value(&[point, query]) == 1;
        let mut pass = || passes.next().expect("as many passes as proposals that change something");
        let mut best = vec![pass()];
        let mut smallest = self.margin(net, &best[0], point);
        for query in 0..self.tensors["queries"].int64_value(&[point]) {
            assert!(smallest > 0.0, "point {point}: fooled before query {query}");
            let current = best.last().expect("the start").shallow_clone();
            // A proposal without a change takes no pass.
            let proposed = if flag("changed", query) { pass() } else { current.shallow_clone() };
            let proposed_margin = self.margin(net, &proposed, point);
            let accepted = proposed_margin < smallest;
            let recorded = flag("accepted", query);
            assert_eq!(
                accepted,
                recorded,
                "point {point}, query {query}: margin {proposed_margin} after {smallest}, accepted here: \
                 {accepted}, by the reference: {recorded} (margins that are nearly equal, or another square, \
                 colour or projection: the image is {:.3e} from the one before)",
                distance(&proposed, &current)
            );
            smallest = smallest.min(proposed_margin);
            best.push(if accepted { proposed } else { current });
        }
        assert!(passes.next().is_none(), "point {point}: more passes than the reference's queries");
        assert_eq!(smallest <= 0.0, self.fooled(point), "point {point}");
        best
    }
}

fn distance(one: &Tensor, other: &Tensor) -> f64 {
    (one - other).abs().max().double_value(&[])
}

/// Attacks every point alone. Asserts that the decision at each query, the images at the snapshots,
/// the number of queries and the verdict are those of the reference.
#[track_caller]
fn assert_same_searches(name: &str, norm: Norm) {
    let recorded = Recorded::read(name, norm);
    let Recorded { tensors, .. } = &recorded;
    let snapshot_queries = Vec::<i64>::try_from(&tensors["snapshot_queries"]).expect("numbers");
    let tolerance = if norm == Norm::L2 { TOLERANCE_OF_L2 } else { TOLERANCE };
    for point in 0..recorded.points() {
        let (candidate, net) = recorded.run(&[point]);
        let mut passes = net.queries().into_iter();
        let natural = passes.next().expect("a pass of the natural example");
        assert_eq!(natural, tensors["images"].narrow(0, point, 1));
        if recorded.margin(&net, &natural, point) <= 0.0 {
            assert!(passes.next().is_none(), "point {point}: attacked, although it is misclassified");
            assert_eq!(candidate, natural);
            continue;
        }
        let best = recorded.follow(&net, passes, point);
        for (number, &query) in snapshot_queries.iter().enumerate() {
            let best = &best[(query as usize).min(best.len() - 1)];
            let distance =
                distance(&best.squeeze_dim(0), &tensors["snapshots"].get(point).get(number as i64));
            assert!(distance <= tolerance, "point {point} after {query} queries: {distance:.3e} apart");
        }
        let margins =
            [&natural, &best[best.len() - 1], &candidate].map(|image| recorded.margin(&net, image, point));
        assert_eq!(margins[2], margins[0].min(margins[1]), "point {point}: the smallest margin");
        assert_eq!(margins[2] <= 0.0, recorded.fooled(point), "point {point}");
    }
    let fooled = (0..recorded.points()).filter(|&point| recorded.fooled(point)).count() as i64;
    assert!(fooled >= 5 && recorded.points() - fooled >= 5, "both verdicts occur; {fooled} are fooled");
}

#[test]
fn linf_searches_equal_those_of_the_reference() {
    assert_same_searches("linf-1x10x10", Norm::Linf);
}

#[test]
fn linf_searches_of_colour_images_that_are_not_square_equal_those_of_the_reference() {
    assert_same_searches("linf-3x6x8", Norm::Linf);
}

#[test]
fn l2_searches_equal_those_of_the_reference() {
    assert_same_searches("l2-1x10x10", Norm::L2);
}

#[test]
fn l2_searches_of_colour_images_that_are_not_square_equal_those_of_the_reference() {
    assert_same_searches("l2-3x6x8", Norm::L2);
}

#[test]
fn a_points_candidate_does_not_depend_on_its_neighbours() {
    for (name, norm) in [("linf-1x10x10", Norm::Linf), ("l2-3x6x8", Norm::L2)] {
        let recorded = Recorded::read(name, norm);
        let all: Vec<i64> = (0..recorded.points()).collect();
        let (together, _) = recorded.run(&all);
        for point in all {
            let (alone, _) = recorded.run(&[point]);
            let distance = distance(&alone, &together.narrow(0, point, 1));
            assert!(distance <= TOLERANCE, "{name}, point {point}: {distance:.3e} apart");
        }
    }
}

#[test]
fn points_that_are_not_fooled_are_searched_again() {
    let recorded = Recorded::read("linf-1x10x10", Norm::Linf);
    let all: Vec<i64> = (0..recorded.points()).collect();
    // Random numbers of zero give a dark start and proposals without a change.
    let dark: Vec<Tensor> = recorded.draws.iter().map(Tensor::zeros_like).collect();
    let both: Vec<Tensor> = recorded.draws.iter().chain(&dark).map(Tensor::shallow_clone).collect();
    let twice = Options { restarts: 2, ..recorded.options.clone() };
    let (first, net) = recorded.run(&all);
    let (second, _) = recorded.run_with(recorded.options.clone(), &dark, &all);
    let (best, net_of_both) = recorded.run_with(twice, &both, &all);

    let mut standing = 0;
    for point in all {
        let [first, second, best] =
            [&first, &second, &best].map(|images| recorded.margin(&net, &images.narrow(0, point, 1), point));
        if first > 0.0 {
            standing += 1;
            assert_eq!(best, first.min(second), "point {point}");
        } else {
            assert_eq!(best, first, "point {point}");
        }
    }
    // The second search takes one pass per point: its dark start.
    assert_eq!(net_of_both.forward_passes(), net.forward_passes() + standing);
}
