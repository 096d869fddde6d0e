use super::arguments::{DiagnoseArguments, style};
use super::signals::stop_on_signals;
use crate::Result;
use crate::diagnosis::record::{Chain, Diagnosis, LawAt, Level};
use crate::diagnosis::{FILE, diagnose};
use crate::util::console::{Style, begin, say, warn};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;

/// `host diagnose`
pub fn run(arguments: &DiagnoseArguments) -> Result<u8> {
    let stop = stop_on_signals(&arguments.stop)?;
    let style = style(arguments.json);
    begin(style);
    let diagnosis = diagnose(&arguments.run, &arguments.options, style, &stop)?;
    match style {
        Style::Json => say(json!(diagnosis)),
        Style::Human => {
            show(&diagnosis);
            say(format_args!("all figures: {}", arguments.run.join(FILE).display()));
        }
    }
    Ok(0)
}

fn show(diagnosis: &Diagnosis) {
    show_particles(diagnosis);
    show_losses(diagnosis);
    show_laws(diagnosis);
    for (name, effective) in [
        ("the stored particles", &diagnosis.effective_of_stored),
        ("the run's own chain", &diagnosis.effective_of_chain),
    ] {
        if let Some(effective) = effective {
            say(format_args!("effective lambda of {name}: {effective}"));
        }
    }
    for beside in &diagnosis.beside {
        let faces = beside.places.coordinates.as_ref().map_or(0.0, |coordinates| coordinates.on_faces);
        let (name, effective) = (&beside.sampler, beside.effective.as_ref());
        let effective = effective.map_or_else(|| "unknown".to_owned(), ToString::to_string);
        say(format_args!("effective lambda of {name}: {effective}; {:.1} % on faces", 100.0 * faces));
    }
    let broken: Vec<_> = diagnosis.order.iter().filter(|order| !order.holds()).map(|o| o.lambda).collect();
    say(if broken.is_empty() {
        "E_uniform <= g <= E_q <= max is not broken at any lambda".to_owned()
    } else {
        format!("E_uniform <= g <= E_q <= max is broken beyond the errors at lambda {broken:?}")
    });
    let apart: Vec<_> = diagnosis.laws.iter().filter(|law| !law.ends_meet()).map(|law| law.lambda).collect();
    if !apart.is_empty() {
        warn(format_args!(
            "chains from both ends do not meet at lambda {apart:?}: there, the mean loss lies between both, and g is \
             only known within its bounds"
        ));
    }
    if let Some(game) = &diagnosis.game {
        say(format_args!(
            "exploitability: at these points the adversary could gain at least {:.4} ({}), its own chain with more \
             steps {:.4}",
            game.adversary_gains, game.adversary, game.longer_chain_gains
        ));
        let epochs = game.epochs;
        say(if game.classifier_gains > 0.0 {
            let gain = game.classifier_gains;
            format!(
                "against all particles as they are, a classifier trained anew for {epochs} epochs gains {gain:.4}"
            )
        } else {
            format!(
                "a classifier trained anew for {epochs} epochs does not do better against these particles"
            )
        });
    }
    for transfer in &diagnosis.transfer {
        say(format_args!(
            "{}: loss {:.4} at the natural examples, {:.4} at these particles (accuracy {:.1} %)",
            transfer.run,
            transfer.natural.mean,
            transfer.particles.mean,
            100.0 * transfer.particles.accuracy
        ));
    }
}

fn show_particles(diagnosis: &Diagnosis) {
    let Some(particles) = &diagnosis.particles else { return };
    let (places, threat) = (&particles.places, diagnosis.settings.threat);
    say(format_args!(
        "{} particles: distance {:.4} on average, {:.4} at most (epsilon {}); W_inf {:.4}",
        places.particles, places.mean, places.largest, threat.epsilon, particles.w_infinity
    ));
    say(match particles.close_points {
        0 => "no two training points are within 2 epsilon of each other: Assumption 3.1 holds".to_owned(),
        close => {
            format!("{close} training points are within 2 epsilon of another: Assumption 3.1 does not hold")
        }
    });
    if let (Some(stored), Some(uniform)) = (&places.coordinates, &particles.uniform.coordinates) {
        say(format_args!(
            "{:.1} % of the coordinates are exactly on a face of the box; {:.1} % of uniform draws",
            100.0 * stored.on_faces,
            100.0 * uniform.on_faces
        ));
    }
}

fn show_losses(diagnosis: &Diagnosis) {
    let Some(losses) = &diagnosis.losses else { return };
    let mut table = table(&["mean loss of", "loss", "standard error", "accuracy %"]);
    let mut row = |name: &str, level: &Level| {
        let accuracy = format!("{:.1}", 100.0 * level.accuracy);
        table.add_row([name, &number(level.mean), &number(level.error), &accuracy]);
    };
    row("natural examples", &losses.natural);
    row("uniform draws", &losses.uniform);
    row("stored particles", &losses.stored);
    row(&diagnosis.settings.maximiser.spec, &losses.maximum);
    let own = diagnosis.chain.iter().map(|chain| ("the run's own chain", chain));
    let beside = diagnosis.beside.iter().map(|beside| (beside.sampler.as_str(), &beside.chain));
    for (name, chain) in own.chain(beside) {
        table.add_row([name, &number(chain.mean), &number(chain.error), ""]);
    }
    print(table);
}

fn show_laws(diagnosis: &Diagnosis) {
    let mut table = table(&[
        "lambda",
        "E_q from uniform",
        "from maximum",
        "exact",
        "g",
        "bounds of g",
        "exact g",
        "R-hat",
    ]);
    for (law, dual) in diagnosis.laws.iter().zip(&diagnosis.dual) {
        let LawAt { lambda, from_uniform, from_maximum, mixing, exact } = law;
        let end = |chain: &Option<Chain>| {
            chain.as_ref().map_or_else(String::new, |chain| {
                format!("{} +- {}", number(chain.mean), number(chain.error))
            })
        };
        let exact_mean = exact.as_ref().map(|exact| number(exact.mean));
        let exact_g = exact.as_ref().map(|exact| number(exact.g));
        let r_hat = mixing.as_ref().and_then(|mixing| mixing.r_hat);
        table.add_row([
            format!("{lambda:.4}").trim_end_matches('0').trim_end_matches('.').to_owned(),
            end(from_uniform),
            end(from_maximum),
            exact_mean.unwrap_or_default(),
            number(dual.g),
            format!("{} to {}", number(dual.lower), number(dual.upper)),
            exact_g.unwrap_or_default(),
            r_hat.map_or_else(String::new, |r_hat| format!("{r_hat:.3}")),
        ]);
    }
    print(table);
}

fn number(value: f64) -> String {
    format!("{value:.5}")
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}

fn print(mut table: Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    say(table);
}
