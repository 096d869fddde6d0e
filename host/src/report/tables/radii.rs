//! The table of robust accuracy over the radius of the ball.

use super::measures::{Curve, curves};
use crate::report::collect::Run;
use crate::report::method::ball;
use crate::report::table::{Column, Content, Table, text};

/// A radius of a curve.
struct Item<'a> {
    curve: &'a Curve,
    epsilon: f64,
    robust: f64,
}

/// A row for each radius of each curve of a run; none if it has no curve.
pub(in crate::report) fn radii(run: &Run, name: &str) -> Option<Table> {
    type Of<'a> = Column<'a, Item<'a>>;
    let curves = curves(run);
    let items = curves.iter().flat_map(|curve| {
        let points = curve.points.iter().copied();
        points.map(move |(epsilon, robust)| Item { curve, epsilon, robust })
    });
    let columns = [
        Of::plain("attack", |item| text(&item.curve.name)),
        Of::plain("ball", |item| {
            text(ball(item.curve.norm, item.epsilon, item.curve.channel_scale.as_deref()))
        }),
        Of::plain("robust", |item| Content::Share(item.robust, Some(item.curve.count)).into()),
        Of::plain("clean", |item| Content::Share(item.curve.clean, Some(item.curve.count)).into()),
    ];
    let caption = "Robust accuracy over the radius of the ball, at the newest evaluated weights.";
    (!curves.is_empty()).then(|| Table::new(&format!("{name}-radii"), caption, &columns, items))
}
