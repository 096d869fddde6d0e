//! The tables of a diagnosis.

use crate::diagnosis::record::{Chain, Diagnosis, Exact, LawAt, Level, MixingOfPoints, Transfer};
use crate::law::dual::Dual;
use crate::law::effective::Effective;
use crate::law::faces::{Coordinates, Places};
use crate::report::table::{Cell, Column, Notes, Table, empty, number, share, text};
use crate::util::number::{counted, short_number};
use std::collections::BTreeSet;

/// Decimals of a loss.
const LOSS: usize = 4;

/// The tables of a diagnosis; those of parts that were not measured are left out.
pub(in crate::report) fn diagnosis(found: &Diagnosis, name: &str) -> Vec<Table> {
    let tables = [
        particles(found, name),
        losses(found, name),
        law(found, name),
        chains(found, name),
        game(found, name),
    ];
    tables.into_iter().flatten().chain(transfer(found, name)).collect()
}

fn optional(value: Option<f64>, decimals: usize) -> Cell {
    value.map_or_else(empty, |value| number(value, decimals))
}

fn particles(found: &Diagnosis, name: &str) -> Option<Table> {
    let particles = found.particles.as_ref()?;
    type Item<'a> = (&'a str, &'a Places);
    let of_coordinates = |header: &'static str, value: fn(&Coordinates) -> f64| {
        Column::plain(header, move |(_, places): &Item| {
            places.coordinates.as_ref().map_or_else(empty, |coordinates| share(value(coordinates)))
        })
    };
    let columns: [Column<Item>; 7] = [
        Column::plain("particles", |(name, _)| text(name)),
        Column::plain("mean distance", |(_, places): &Item| number(places.mean, LOSS)),
        Column::plain("largest distance", |(_, places): &Item| number(places.largest, LOSS)),
        of_coordinates("pixels on faces", |coordinates| coordinates.on_faces),
        of_coordinates("on faces of the domain", |coordinates| coordinates.on_domain),
        of_coordinates("pixels in the interior", |coordinates| coordinates.interior),
        of_coordinates("particles at corners", |coordinates| coordinates.at_corners),
    ];
    let caption = format!(
        "Where the particles of all training points are in the {} ball of radius {}, cut to the domain. A face is \
         where the projection ends; uniform draws were rounded as the particles are stored, so that their share on \
         faces comes from rounding alone. Shares in per cent.",
        found.settings.threat.norm, found.settings.threat.epsilon
    );
    let beside = found.beside.iter().map(|beside| (beside.sampler.as_str(), &beside.places));
    let rows = [("stored", &particles.places), ("uniform draws", &particles.uniform)];
    let rows: Vec<_> = rows.into_iter().chain(beside).collect();
    Some(Table::new(&format!("{name}-diagnosis-particles"), &caption, &columns, rows))
}

fn losses(found: &Diagnosis, name: &str) -> Option<Table> {
    struct Item<'a> {
        name: &'a str,
        mean: f64,
        error: f64,
        accuracy: Option<f64>,
        effective: Option<Effective>,
    }
    let losses = found.losses.as_ref()?;
    let of_level = |name, level: &Level, effective| Item {
        name,
        mean: level.mean,
        error: level.error,
        accuracy: Some(level.accuracy),
        effective,
    };
    let chain = found.chain.as_ref().map(|chain| Item {
        name: "the run's own chain",
        mean: chain.mean,
        error: chain.error,
        accuracy: None,
        effective: found.effective_of_chain,
    });
    let rows = [
        of_level("natural examples", &losses.natural, None),
        of_level("uniform draws", &losses.uniform, None),
        of_level("stored particles", &losses.stored, found.effective_of_stored),
    ]
    .into_iter()
    .chain(chain)
    .chain(found.beside.iter().map(|beside| Item {
        name: &beside.sampler,
        mean: beside.chain.mean,
        error: beside.chain.error,
        accuracy: None,
        effective: beside.effective,
    }))
    .chain([of_level("the largest loss found", &losses.maximum, None)]);
    let columns: [Column<Item>; 5] = [
        Column::plain("distribution", |item: &Item| text(item.name)),
        Column::plain("mean loss", |item: &Item| number(item.mean, LOSS)),
        Column::plain("standard error", |item: &Item| number(item.error, LOSS)),
        Column::plain("accuracy", |item: &Item| item.accuracy.map_or_else(empty, share)),
        Column::plain("effective lambda", |item: &Item| item.effective.as_ref().map_or_else(empty, text)),
    ];
    let caption = format!(
        "How adversarial distributions are at the weights of update {}: mean cross-entropy over {} training points. \
         The effective lambda is that of the law with the same mean loss, with its interval. Accuracies in per \
         cent.",
        found.settings.update,
        found.settings.points.len()
    );
    Some(Table::new(&format!("{name}-diagnosis-losses"), &caption, &columns, rows))
}

fn law(found: &Diagnosis, name: &str) -> Option<Table> {
    type Item<'a> = (usize, &'a LawAt);
    let of_end = |header: &'static str, end: fn(&LawAt) -> Option<&Chain>| {
        Column::plain(header, move |(_, law): &Item| optional(end(law).map(|chain| chain.mean), LOSS))
    };
    let of_exact = |header: &'static str, value: fn(&Exact) -> f64| {
        Column::plain(header, move |(_, law): &Item| optional(law.exact.as_ref().map(value), LOSS))
    };
    let of_dual = |header: &'static str, value: fn(&Dual) -> f64| {
        Column::plain(header, move |(place, _): &Item| optional(found.dual.get(*place).map(value), LOSS))
    };
    let mut columns: Vec<Column<Item>> = vec![
        Column::plain("lambda", |(_, law): &Item| number(law.lambda, LOSS)),
        of_end("mean loss, from uniform draws", |law| law.from_uniform.as_ref()),
        of_end("mean loss, from the maximum", |law| law.from_maximum.as_ref()),
        of_dual("g", |dual| dual.g),
        of_dual("g, standard error", |dual| dual.error),
        of_dual("g, lower bound", |dual| dual.lower),
        of_dual("g, upper bound", |dual| dual.upper),
        Column::new("order holds", |notes: &mut Notes, (place, _): &Item| {
            let Some(order) = found.order.get(*place) else { return empty() };
            let pairs = [
                ("E_uniform <= g", order.uniform_and_g),
                ("g <= E_q", order.g_and_mean),
                ("E_q <= max", order.mean_and_largest),
            ];
            let broken = pairs.into_iter().filter(|(_, pair)| !pair.holds).map(|(what, pair)| {
                notes.number(&format!(
                    "{what} fails at lambda {}: {:.4} and {:.4}, tolerance {:.4}.",
                    short_number(order.lambda),
                    pair.smaller,
                    pair.larger,
                    pair.tolerance
                ))
            });
            let broken: Vec<_> = broken.collect();
            Cell { notes: broken.clone(), ..text(if broken.is_empty() { "yes" } else { "no" }) }
        }),
    ];
    if found.laws.iter().any(|law| law.exact.is_some()) {
        columns.push(of_exact("mean loss, exact", |exact| exact.mean));
        columns.push(of_exact("g, exact", |exact| exact.g));
    }
    let caption = "The law of each lambda: its mean loss by chains from both ends, its dual value g by thermodynamic \
                   integration, and whether E_uniform <= g <= E_q <= max holds within two standard errors.";
    let rows: Vec<_> = found.laws.iter().enumerate().collect();
    (!rows.is_empty()).then(|| Table::new(&format!("{name}-diagnosis-law"), caption, &columns, rows))
}

fn chains(found: &Diagnosis, name: &str) -> Option<Table> {
    struct Item<'a> {
        name: String,
        chain: Option<&'a Chain>,
        mixing: Option<&'a MixingOfPoints>,
    }
    fn of_chain(name: String, chain: &Option<Chain>) -> Option<Item<'_>> {
        chain.as_ref().map(|chain| Item { name, chain: Some(chain), mixing: chain.mixing.as_ref() })
    }
    let own = of_chain("the run's own chain".to_owned(), &found.chain);
    let of_laws = found.laws.iter().flat_map(|law| {
        let name = |which: &str| format!("lambda {}, {which}", short_number(law.lambda));
        let both = law.mixing.as_ref();
        let both =
            both.map(|mixing| Item { name: name("both ends together"), chain: None, mixing: Some(mixing) });
        [
            of_chain(name("from uniform draws"), &law.from_uniform),
            of_chain(name("from the maximum"), &law.from_maximum),
            both,
        ]
        .into_iter()
        .flatten()
    });
    let beside = found.beside.iter().map(|beside| Item {
        name: beside.sampler.clone(),
        chain: Some(&beside.chain),
        mixing: beside.chain.mixing.as_ref(),
    });
    let rows: Vec<Item> = own.into_iter().chain(beside).chain(of_laws).collect();
    let figures: BTreeSet<&String> =
        rows.iter().filter_map(|item| item.chain).flat_map(|chain| chain.figures.keys()).collect();
    let of_mixing = |header: &'static str, decimals, value: fn(&MixingOfPoints) -> Option<f64>| {
        Column::plain(header, move |item: &Item| optional(item.mixing.and_then(value), decimals))
    };
    let mut columns: Vec<Column<Item>> = vec![
        Column::plain("chains", |item: &Item| text(&item.name)),
        Column::plain("mean loss", |item: &Item| optional(item.chain.map(|chain| chain.mean), LOSS)),
        Column::plain("standard error", |item: &Item| optional(item.chain.map(|chain| chain.error), LOSS)),
        of_mixing("draws of a point", 0, |mixing| Some(mixing.draws as f64)),
        of_mixing("autocorrelation time, steps", 1, |mixing| {
            Some(mixing.autocorrelation_time * mixing.steps_per_draw as f64)
        }),
        of_mixing("effective draws", 1, |mixing| Some(mixing.effective)),
        of_mixing("R-hat", 3, |mixing| mixing.r_hat),
        of_mixing("largest R-hat", 3, |mixing| mixing.largest_r_hat),
        of_mixing("points that do not mix", 0, |mixing| Some(mixing.unmixed_points as f64)),
    ];
    columns.extend(figures.into_iter().map(|figure| {
        Column::plain(figure, move |item: &Item| {
            optional(item.chain.and_then(|chain| chain.figures.get(figure).copied()), 3)
        })
    }));
    let caption = "How chains at fixed weights mix, in their second half: medians over the points. R-hat near 1 (below \
                   1.05) and many effective draws mean that the chains have forgotten where they began; no R-hat means \
                   that they never moved. The last columns have the sampler's own figures.";
    (!rows.is_empty()).then(|| Table::new(&format!("{name}-diagnosis-chains"), caption, &columns, rows))
}

fn game(found: &Diagnosis, name: &str) -> Option<Table> {
    let game = found.game.as_ref()?;
    type Item<'a> = (&'a str, String, f64);
    let columns: [Column<Item>; 3] = [
        Column::plain("player", |(player, ..): &Item| text(player)),
        Column::plain("could play", |(_, plays, _): &Item| text(plays)),
        Column::plain("and gain, in mean loss", |(.., gain): &Item| number(*gain, LOSS)),
    ];
    let rows = [
        ("adversary", game.adversary.clone(), game.adversary_gains),
        (
            "classifier",
            format!(
                "weights trained anew for {}: loss {:.4} at the stored particles instead of {:.4}",
                counted(game.epochs, "epoch"),
                game.loss_of_anew,
                game.loss_of_run
            ),
            game.classifier_gains,
        ),
    ];
    let caption = "What either player could gain while the other stays (exploitability). At an equilibrium, neither gains \
                   anything; these are lower bounds, from the best reply that was found.";
    Some(Table::new(&format!("{name}-diagnosis-game"), caption, &columns, rows))
}

fn transfer(found: &Diagnosis, name: &str) -> Option<Table> {
    let of_level = |header: [&'static str; 2], level: fn(&Transfer) -> &Level| {
        let [loss, accuracy] = header;
        [
            Column::plain(loss, move |transfer: &&Transfer| number(level(transfer).mean, LOSS)),
            Column::plain(accuracy, move |transfer: &&Transfer| share(level(transfer).accuracy)),
        ]
    };
    let run = Column::plain("run", |transfer: &&Transfer| text(&transfer.run));
    let columns: Vec<Column<&Transfer>> = std::iter::once(run)
        .chain(of_level(["loss, natural", "accuracy, natural"], |transfer| &transfer.natural))
        .chain(of_level(["loss, particles", "accuracy, particles"], |transfer| &transfer.particles))
        .collect();
    let caption = "The stored particles against other runs. A loss near that of natural examples means that the \
                   particles are adversarial to their own run alone. Accuracies in per cent.";
    let rows = &found.transfer;
    (!rows.is_empty()).then(|| Table::new(&format!("{name}-diagnosis-transfer"), caption, &columns, rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::fuzz::corpus;

    fn found() -> Diagnosis {
        serde_json::from_slice(&corpus("diagnosis.json")).expect("a diagnosis")
    }

    fn lines(tables: &[Table], part: &str) -> Vec<String> {
        let name = format!("run-a-diagnosis-{part}");
        let table = tables.iter().find(|table| table.name == name).unwrap_or_else(|| panic!("no {name}"));
        table.csv().lines().map(str::to_owned).collect()
    }

    #[test]
    fn tables_have_the_numbers_of_the_diagnosis() {
        let tables = diagnosis(&found(), "run-a");
        let losses = lines(&tables, "losses");
        assert_eq!(losses[0], "distribution,mean loss,standard error,accuracy,effective lambda");
        assert_eq!(losses[3], "stored particles,2.19,0,0.25,above 100 (above 100 to above 100)");
        assert_eq!(losses[4], "the run's own chain,0.7,0.01,,31.6 (12.5 to above 100)");
        let particles = lines(&tables, "particles");
        assert!(particles[1].starts_with("stored,0.29,0.3,0.79,0.4,") && particles[1].ends_with(",0.05"));
        assert_eq!(particles[2], "uniform draws,0.2995,0.3,0.004,0.002,0.996,0");
        let chains = lines(&tables, "chains");
        // Two steps for each draw; a chain from either end, and both together.
        assert_eq!(chains[1], "the run's own chain,0.7,0.01,400,4,200,1,1.03,0,0.5");
        assert_eq!(chains[2], "\"lambda 0, from uniform draws\",0.4402,0.0004,,,,,,,1");
        assert_eq!(chains[11], "\"lambda 100, both ends together\",,,400,160,5,1.9,,2,");
        assert_eq!(chains.len(), 12);
        assert_eq!(lines(&tables, "transfer")[1], "runs/other,0.2,0.9,0.6,0.5");
        assert!(lines(&tables, "game")[2].ends_with(",0.05"));
    }

    #[test]
    fn an_order_that_does_not_hold_is_a_footnote() {
        let law = lines(&diagnosis(&found(), "run-a"), "law");
        assert!(law[0].ends_with("order holds,\"mean loss, exact\",\"g, exact\",notes"), "{}", law[0]);
        assert_eq!(law[2], "1,0.4425,0.4431,0.4415,0.0005,0.44,0.443,yes,0.4428,0.4414,");
        let note = "g <= E_q fails at lambda 10: 0.4562 and 0.4500, tolerance 0.0020.";
        assert!(law[3].starts_with("10,0.46,0.48,0.4562,") && law[3].contains(",no,"), "{}", law[3]);
        assert!(law[3].contains(note), "{}", law[3]);
    }

    #[test]
    fn parts_that_were_not_measured_are_left_out() {
        let mut found = found();
        found.laws.iter_mut().for_each(|law| law.exact = None);
        assert!(!lines(&diagnosis(&found, "run-a"), "law")[0].contains("exact"));
        (found.particles, found.losses, found.chain, found.game) = (None, None, None, None);
        (found.laws, found.transfer) = (Vec::new(), Vec::new());
        assert!(diagnosis(&found, "run-a").is_empty());
    }
}
