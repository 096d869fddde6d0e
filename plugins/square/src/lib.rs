//! Square Attack (Andriushchenko et al. 2020): random search by square patches, without
//! gradients, as AutoAttack (Croce and Hein 2020) runs it.
//!
//! A query changes one square of an image and keeps the change if the margin falls. The squares
//! shrink by a fixed schedule. The authors' implementation draws one square (and in an linf ball
//! one sign per channel) for the whole batch at each query, so a point's result depends on the
//! batch. Here each point has its own draws; for a batch of one point both are the same algorithm.
//!
//! Two further differences do not change any verdict. First, there is one pass of the natural
//! example. A point that is misclassified there is not attacked, and the result is never worse than
//! the natural example. Second, a proposal that changes no pixel counts as a query but takes no
//! pass: its margin would not fall.

mod l2;
mod linf;

use l2::L2;
use linf::Linf;
use plugin_api::losses::{correct, margin};
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Attack, Error, Norm, Random, Result, Target, Task, ThreatModel, export_attack};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_attack!("square", Square);

/// The norms that it has arithmetic for.
const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];

/// The Square attack.
pub struct Square {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Number of proposals for each point, after its random start.
    #[schemars(range(min = 1))]
    pub queries: usize,
    /// Share of an image's pixels in the first squares.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub p_init: f64,
    /// Number of searches, each from a new random start; later ones for the points that are not
    /// fooled.
    #[schemars(range(min = 1))]
    pub restarts: usize,
    /// Scale the schedule of the squares' sizes, made for 10,000 queries, to `queries`. AutoAttack
    /// does not scale it.
    pub rescale_schedule: bool,
}

impl Default for Options {
    /// The settings of AutoAttack.
    fn default() -> Self {
        Self { queries: 5000, p_init: 0.8, restarts: 1, rescale_schedule: false }
    }
}

/// The area of the squares halves after each of these queries, counted from 0: the authors'
/// schedule for 10,000 queries.
const HALVINGS: [usize; 9] = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];

/// Number of queries whose random numbers are drawn in one call.
pub const QUERIES_PER_DRAW: usize = 100;

impl Attack for Square {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        threat.norm.expect_one_of(&NORMS)
    }

    fn supports_task(&self, task: &Task) -> Result<()> {
        if task.classes < 2 {
            return Err(Error::new(format!(
                "the margin needs two classes or more; the task has {}",
                task.classes
            )));
        }
        Ok(())
    }

    /// One pass of the natural example; then those of each restart's start and proposals.
    fn query_budget(&self) -> Option<u64> {
        let of_a_restart = (self.options.queries as u64).saturating_add(1);
        Some((self.options.restarts as u64).saturating_mul(of_a_restart).saturating_add(1))
    }

    /// For each point, the queried image of smallest margin.
    fn run(&self, target: &Target) -> Result<Tensor> {
        let logits = target.victim.logits(target.natural)?;
        let mut answer = target.natural.copy();
        let mut smallest = margin(&logits, target.labels);
        let mut standing = rows_where(&correct(&logits, target.labels));
        for _ in 0..self.options.restarts {
            if standing.numel() == 0 {
                break;
            }
            // Every search draws for all points of the call, so a point's numbers do not depend on
            // the other points.
            let (images, margins) = self.search(target, &standing)?;
            let better = falls(&margins, &smallest);
            answer = images.where_self(&better.reshape([-1, 1, 1, 1]), &answer);
            smallest = margins.where_self(&better, &smallest);
            standing = still_standing(&standing, &margins);
        }
        Ok(answer)
    }
}

impl Square {
    /// One random search for the rows `standing` (`[M]`, i64). Returns the image of smallest margin
    /// for each of the N rows, and this margin, which is infinite for rows without a search.
    ///
    /// The search of a point ends at a margin of zero or below.
    fn search(&self, target: &Target, standing: &Tensor) -> Result<(Tensor, Tensor)> {
        let Target { natural, threat, random, .. } = target;
        let (points, channels, height, width) = natural.size4()?;
        let options = (natural.kind(), natural.device());
        let ball: &dyn Ball = match threat.norm {
            Norm::Linf => &Linf,
            Norm::L2 => &L2,
            Norm::L1 => return Err(Norm::L1.unexpected(&NORMS)),
        };
        let margins_of = |images: &Tensor, rows: &Tensor| -> Result<Tensor> {
            Ok(margin(&target.victim.logits(images)?, &target.labels.index_select(0, rows)))
        };

        let mut images = ball.start(natural, threat, random)?;
        let mut margins = Tensor::full([points], f64::INFINITY, options);
        let at_start = margins_of(&images.index_select(0, standing), standing)?;
        let _ = margins.index_copy_(0, standing, &at_start);
        let mut standing = still_standing(standing, &margins);

        let mut drawn = Tensor::empty([0], options);
        for query in 0..self.options.queries {
            if standing.numel() == 0 {
                break;
            }
            if query % QUERIES_PER_DRAW == 0 {
                let shape = [points, QUERIES_PER_DRAW as i64, ball.numbers_per_query(channels)];
                drawn = random.uniform(&Tensor::empty(shape, options))?;
            }
            let numbers = drawn.select(1, (query % QUERIES_PER_DRAW) as i64);
            let scheduled = self.scheduled_side(query, channels, height, width);
            let (changed, proposed) = ball.propose(&Query {
                natural: &natural.index_select(0, &standing),
                current: &images.index_select(0, &standing),
                numbers: &numbers.index_select(0, &standing),
                side: ball.side(scheduled).min(height).min(width),
                threat,
            });
            if changed.numel() == 0 {
                continue;
            }
            let rows = standing.index_select(0, &changed);
            let at_proposed = margins_of(&proposed, &rows)?;
            let accepted = rows_where(&falls(&at_proposed, &margins.index_select(0, &rows)));
            if accepted.numel() == 0 {
                continue;
            }
            let rows = rows.index_select(0, &accepted);
            let _ = images.index_copy_(0, &rows, &proposed.index_select(0, &accepted));
            let _ = margins.index_copy_(0, &rows, &at_proposed.index_select(0, &accepted));
            standing = still_standing(&standing, &margins);
        }
        Ok((images, margins))
    }

    /// Side of the square whose area is this query's share of the image, to the nearest pixel.
    /// Queries count from 0.
    fn scheduled_side(&self, query: usize, channels: i64, height: i64, width: i64) -> i64 {
        let Options { queries, p_init, rescale_schedule, .. } = self.options;
        let query =
            if rescale_schedule { (query as f64 / queries as f64 * 10_000.0) as usize } else { query };
        let halvings = HALVINGS.iter().filter(|last| query > **last).count();
        let share = p_init / f64::from(1 << halvings);
        // The order of operations is that of the reference: it decides the rounding at half a
        // pixel.
        let area = share * (channels * height * width) as f64 / channels as f64;
        area.sqrt().round_ties_even() as i64
    }
}

/// The parts of the search that differ between the norms. Tensors have a row for each point.
trait Ball {
    /// A random start for each natural example.
    fn start(&self, natural: &Tensor, threat: &ThreatModel, random: &Random) -> Result<Tensor>;

    /// The number of random numbers of a proposal.
    fn numbers_per_query(&self, channels: i64) -> i64;

    /// Side of the square, given the side of the schedule.
    fn side(&self, scheduled: i64) -> i64;

    /// The rows of the M points that have a new image (`[R]`, i64), and these images
    /// (`[R, C, H, W]`), inside ball and domain. A point whose image would not change may be left
    /// out.
    fn propose(&self, query: &Query) -> (Tensor, Tensor);
}

/// The inputs of the proposals of one query, for the M points that are not fooled.
struct Query<'a> {
    /// The natural examples, `[M, C, H, W]`.
    natural: &'a Tensor,
    /// The best images so far, likewise.
    current: &'a Tensor,
    /// Numbers uniform on [0, 1), `[M, numbers_per_query]`.
    numbers: &'a Tensor,
    /// Side of the square, at most that of the image.
    side: i64,
    threat: &'a ThreatModel,
}

impl Query<'_> {
    /// The pixels of a square in each image, as indices into a channel's pixels:
    /// `[M, C, side * side]`. Its place is given by the two columns of the numbers from
    /// `first_column` on.
    ///
    /// As in the reference, a square never covers the last row or column.
    fn square(&self, first_column: i64) -> Tensor {
        let (size, side) = (self.natural.size(), self.side);
        let place = |column, room: i64| (self.numbers.select(1, column) * room).to_kind(Kind::Int64);
        let (top, left) = (place(first_column, size[2] - side), place(first_column + 1, size[3] - side));
        let offsets = Tensor::arange(side, (Kind::Int64, self.natural.device()));
        let offsets = (offsets.unsqueeze(1) * size[3] + offsets).reshape([1, 1, -1]);
        ((top * size[3] + left).reshape([-1, 1, 1]) + offsets).expand([-1, size[1], -1], false)
    }
}

/// A sign for each of these uniform numbers.
fn signs(numbers: &Tensor) -> Tensor {
    numbers.ge(0.5).to_kind(numbers.kind()) * 2.0 - 1.0
}

/// Whether each margin falls (`[M]`, bool). NaN counts as a fall: such an image is not classified
/// correctly.
fn falls(margins: &Tensor, before: &Tensor) -> Tensor {
    margins.less_tensor(before).logical_or(&margins.isnan())
}

/// The rows among `standing` whose margin is positive.
fn still_standing(standing: &Tensor, margins: &Tensor) -> Tensor {
    standing.index_select(0, &rows_where(&margins.index_select(0, standing).gt(0.0)))
}

/// The indices at which `chosen` (`[N]`, bool) is true, i64.
fn rows_where(chosen: &Tensor) -> Tensor {
    chosen.nonzero().squeeze_dim(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Device;

    fn attack(options: Options) -> Square {
        Square { options }
    }

    /// The scheduled side for 1x28x28 images.
    fn side(attack: &Square, query: usize) -> i64 {
        attack.scheduled_side(query, 1, 28, 28)
    }

    #[test]
    fn squares_shrink_after_the_same_queries_as_in_the_reference() {
        let attack = attack(Options::default());
        // The root of 0.8 * 784 / 2^k, to the nearest pixel.
        let sides = [25, 18, 13, 9, 6, 4, 3, 2];
        let last = [10, 50, 200, 500, 1000, 2000, 4000, 4999];
        for (stage, (expected, last)) in sides.into_iter().zip(last).enumerate() {
            assert_eq!(side(&attack, last), expected, "at query {last}");
            if stage + 1 < sides.len() {
                assert_eq!(side(&attack, last + 1), sides[stage + 1], "after query {last}");
            }
        }
        assert_eq!(side(&attack, 0), 25);
    }

    #[test]
    fn the_rescaled_schedule_ends_with_the_queries() {
        let attack = attack(Options { queries: 100, rescale_schedule: true, ..Options::default() });
        // Query 1 counts as 100, query 80 as 8,000 and query 81 as 8,100 of 10,000.
        let sides = [0, 1, 80, 81, 99].map(|query| side(&attack, query));
        assert_eq!(sides, [25, 13, 2, 1, 1]);
    }

    #[test]
    fn sides_are_at_least_one_in_linf_and_odd_in_l2() {
        assert_eq!([0, 1, 2, 18].map(|scheduled| Linf.side(scheduled)), [1, 1, 2, 18]);
        // In l2 the side is odd, so that the square has a centre.
        assert_eq!([0, 3, 4, 18].map(|scheduled| L2.side(scheduled)), [3, 3, 5, 19]);
    }

    #[test]
    fn a_square_lies_at_the_place_given_by_its_numbers() {
        // In a 3x5 image, 0.5 * (3 - 2) is row 0 and 0.7 * (5 - 2) = 2.1 is column 2.
        let image = Tensor::zeros([1, 2, 3, 5], (Kind::Double, Device::Cpu));
        let numbers = Tensor::from_slice(&[0.9, 0.5, 0.7]).reshape([1, 3]);
        let threat = &ThreatModel::default();
        let query = Query { natural: &image, current: &image, numbers: &numbers, side: 2, threat };
        let pixels = Vec::<i64>::try_from(query.square(1).flatten(0, -1)).expect("indices");
        assert_eq!(pixels, [2, 3, 7, 8, 2, 3, 7, 8]);
    }

    #[test]
    fn an_equal_margin_does_not_fall_and_nan_does() {
        let before = Tensor::from_slice(&[0.5, 0.5, 0.5]);
        let falls = falls(&Tensor::from_slice(&[0.25, 0.5, f64::NAN]), &before);
        assert_eq!(falls, Tensor::from_slice(&[true, false, true]));
    }

    #[test]
    fn the_budget_is_the_natural_example_and_each_start_with_its_queries() {
        assert_eq!(attack(Options::default()).query_budget(), Some(5002));
        let attack = attack(Options { queries: 10, restarts: 3, ..Options::default() });
        assert_eq!(attack.query_budget(), Some(34));
    }

    #[test]
    fn a_task_with_one_class_is_refused() {
        let task = |classes| Task { channels: 1, height: 28, width: 28, classes };
        let attack = attack(Options::default());
        assert!(attack.supports_task(&task(2)).is_ok());
        let message = attack.supports_task(&task(1)).expect_err("refused").to_string();
        assert_eq!(message, "the margin needs two classes or more; the task has 1");
    }
}
