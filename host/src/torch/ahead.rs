//! Random numbers that are drawn ahead, on other threads, while the device works.
//!
//! A draw depends on its key alone: it is the same whoever makes it, and when. An update of training
//! asks for the draws of the update before it, at other points; so these are drawn for the next update
//! while this one is computed. What was drawn ahead is used only where its whole key is asked for. A
//! wrong expectation costs time, and never another number.

use crate::torch::random::Key;
use std::cell::RefCell;
use std::sync::mpsc::{Receiver, channel};
use tch::Device;

/// The variable of the environment that draws ahead on a CPU, too (1), or nowhere (0).
const SWITCH: &str = "DRO_DRAW_AHEAD";

/// What was asked for, and what is drawn ahead.
#[derive(Default)]
pub(crate) struct Ahead(RefCell<State>);

#[derive(Default)]
struct State {
    /// The keys that the present update has asked for, in order.
    asked: Vec<Key>,
    /// The points of the rows of the update after the one that begins next.
    expected: Option<Vec<i64>>,
    /// What is drawn for the present update.
    present: Option<Drawing>,
    /// What is drawn for the next one.
    next: Option<Drawing>,
}

/// Draws under way at the rows of some points.
struct Drawing {
    points: Vec<i64>,
    /// The keys in the order in which the numbers arrive.
    keys: std::vec::IntoIter<Key>,
    numbers: Receiver<Vec<f32>>,
}

impl Drawing {
    fn begin(keys: Vec<Key>, points: Vec<i64>) -> Self {
        let (sender, numbers) = channel();
        let (their_keys, rows) = (keys.clone(), points.clone());
        rayon::spawn(move || {
            // Nobody listens any more if the training has ended.
            let _ = their_keys.iter().try_for_each(|key| sender.send(key.draw(&rows)));
        });
        Self { points, keys: keys.into_iter(), numbers }
    }
}

impl Ahead {
    /// Draws ahead where that saves time: on a GPU, which computes while the processor draws. The
    /// threads of a CPU are busy with the networks.
    pub(crate) fn for_device(device: Device) -> Option<Self> {
        let is_wanted = match std::env::var(SWITCH).as_deref() {
            Ok("0") => false,
            Ok("1") => true,
            _ => matches!(device, Device::Cuda(_)),
        };
        is_wanted.then(Self::default)
    }

    /// The update that begins next is followed by one with rows of these points.
    pub(crate) fn expect(&self, points: Option<Vec<i64>>) {
        self.0.borrow_mut().expected = points;
    }

    /// Update number `update` begins.
    pub(crate) fn begin_update(&self, update: u64) {
        let mut state = self.0.borrow_mut();
        state.present = state.next.take();
        let keys: Vec<_> = state.asked.drain(..).map(|key| key.at_step(update + 1)).collect();
        let expected = state.expected.take().filter(|_| !keys.is_empty());
        state.next = expected.map(|points| Drawing::begin(keys, points));
    }

    /// The numbers of this key at the rows of these points, if they were drawn ahead.
    pub(super) fn take(&self, key: &Key, points: &[i64]) -> Option<Vec<f32>> {
        let mut state = self.0.borrow_mut();
        state.asked.push(key.clone());
        let drawing = state.present.as_mut()?;
        if drawing.points == points && drawing.keys.next().as_ref() == Some(key) {
            return drawing.numbers.recv().ok();
        }
        // This update does not ask as the one before it did: nothing more of it is used.
        state.present = None;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::random::{Draws, Purpose};
    use plugin_api::{Distribution, RandomSource};
    use tch::{Kind, Tensor};

    /// What an update asks for: two draws of a step, one of the next.
    fn drawn(update: u64, points: &[i64], width: i64, ahead: Option<&Ahead>) -> Vec<Tensor> {
        let like = Tensor::zeros([points.len() as i64, width], (Kind::Float, Device::Cpu));
        let draws = Draws::new(3, Purpose::Training, update, points, 1).drawn_ahead(ahead);
        let (first, second) = (draws.step(1), draws.step(2));
        [(&first, Distribution::Normal), (&first, Distribution::Uniform), (&second, Distribution::Normal)]
            .map(|(draws, law)| draws.draw(law, &like).expect("numbers"))
            .into()
    }

    /// Whether all that an update asked for was drawn ahead.
    fn was_ahead(ahead: &Ahead) -> bool {
        ahead.0.borrow().present.as_ref().is_some_and(|drawing| drawing.keys.as_slice().is_empty())
    }

    #[test]
    fn numbers_that_are_drawn_ahead_are_those_that_are_drawn_in_time() {
        let ahead = Ahead::default();
        let points = |update: u64| vec![update as i64, 7, 2 * update as i64];
        for update in 0..5 {
            ahead.expect(Some(points(update + 1)));
            ahead.begin_update(update);
            let got = drawn(update, &points(update), 11, Some(&ahead));
            assert_eq!(got, drawn(update, &points(update), 11, None), "update {update}");
            // Nothing is known before the first update, and nothing was begun before the second.
            assert_eq!(was_ahead(&ahead), update >= 2, "update {update}");
        }
    }

    #[test]
    fn a_wrong_expectation_changes_no_number() {
        let ahead = Ahead::default();
        let points = |update: u64| vec![update as i64, 7];
        let (mut widths, mut expected) = ([11; 9], [true; 9]);
        // Other images in update 3, so that update 5 is expected to have such, too; other points in
        // update 6 than expected.
        (widths[3], expected[6]) = (5, false);
        for update in 0..8 {
            let next = points(if expected[update as usize + 1] { update + 1 } else { 40 });
            ahead.expect(Some(next));
            ahead.begin_update(update);
            let width = widths[update as usize];
            let got = drawn(update, &points(update), width, Some(&ahead));
            assert_eq!(got, drawn(update, &points(update), width, None), "update {update}");
            assert_eq!(was_ahead(&ahead), [2, 4, 7].contains(&update), "update {update}");
        }
        ahead.begin_update(8);
        assert!(ahead.0.borrow().next.is_none(), "the last update has no next one");
    }
}
