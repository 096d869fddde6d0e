//! The figures of a diagnosis.

use super::Figure;
use super::chart::*;
use crate::Result;
use crate::diagnosis::record::{Chain, Diagnosis, LawAt, Particles};
use crate::law::effective::{Effective, Place};
use crate::util::number::short_number;
use plotters::coord::Shift;
use plotters::prelude::*;
use plugin_api::ThreatModel;

/// The figures of a diagnosis: where the particles are, how adversarial the law is, the dual value.
pub(in crate::report) fn diagnosis(found: &Diagnosis, name: &str) -> Result<Vec<Figure>> {
    let places = found.particles.as_ref().map(|particles| places(particles, &found.settings.threat, name));
    let figures = places.into_iter().chain(losses(found, name)).chain(dual(found, name));
    figures.collect()
}

/// Where the stored particles are, beside uniform draws.
fn places(particles: &Particles, threat: &ThreatModel, name: &str) -> Result<Figure> {
    let Particles { places, uniform, .. } = particles;
    let both = |shares: [&'_ Vec<f64>; 2]| -> Vec<(String, Vec<f64>)> {
        ["stored particles", "uniform draws"]
            .map(str::to_owned)
            .into_iter()
            .zip(shares.map(Vec::clone))
            .collect()
    };
    let of_coordinates = places.coordinates.as_ref().zip(uniform.coordinates.as_ref());
    let mut panels =
        vec![("distance / epsilon", "particles, %", both([&places.distances, &uniform.distances]))];
    panels.extend(of_coordinates.map(|(stored, uniform)| {
        ("change of a pixel / epsilon", "pixels, %", both([&stored.changes, &uniform.changes]))
    }));
    let histograms: Vec<_> = panels
        .iter()
        .map(|(x, y, series)| Histogram {
            x,
            y,
            series: series.iter().map(|(name, shares)| (name.clone(), shares.as_slice())).collect(),
        })
        .collect();
    let faces = of_coordinates.map_or(String::new(), |(stored, uniform)| {
        format!(
            " Exactly on a face of the box are {:.1} % of the pixels, and {:.1} % of those of uniform draws.",
            100.0 * stored.on_faces,
            100.0 * uniform.on_faces
        )
    });
    Ok(Figure {
        name: format!("{name}-diagnosis-places"),
        title: "Where the particles are".to_owned(),
        alternative: format!(
            "Histograms of the distances of {} particles and of uniform draws from their natural examples: the mean \
             distance of the particles is {:.4}, that of uniform draws {:.4}, epsilon {}.{faces}",
            places.particles, places.mean, uniform.mean, threat.epsilon
        ),
        caption: format!(
            "Distances ({}) of {} stored particles from their natural examples, and changes of their pixels, beside \
             uniform draws from the same balls. How to read it: a law with a density has no pixel exactly on a face \
             of the box, so a last bar beyond that of uniform draws shows a sampler that projects, or a law close to \
             the maximum.{faces}",
            threat.norm, places.particles
        ),
        svg: draw_histograms(&histograms)?,
    })
}

/// The mean loss of the law against lambda, with the losses of other distributions; none without a
/// rung above 0.
fn losses(found: &Diagnosis, name: &str) -> Option<Result<Figure>> {
    let of_end = |end: &Option<Chain>| end.as_ref().map(|chain| chain.mean);
    let band: Vec<Rung> = found
        .laws
        .iter()
        .filter_map(|law| {
            let ends = [of_end(&law.from_uniform), of_end(&law.from_maximum)];
            Rung::new(law.lambda, ends[0].or(ends[1])?, ends[1].or(ends[0])?)
        })
        .collect();
    let exact = exact(&found.laws, |exact| exact.mean);
    let mut levels = Vec::new();
    let mut level = |name: &str, value: Option<f64>, effective: Option<Effective>| {
        levels.extend(value.map(|value| Level { name: name.to_owned(), value, effective }));
    };
    let losses = found.losses.as_ref();
    level("stored particles", losses.map(|losses| losses.stored.mean), found.effective_of_stored);
    level("the run's own chain", found.chain.as_ref().map(|chain| chain.mean), found.effective_of_chain);
    level("natural examples", losses.map(|losses| losses.natural.mean), None);
    level("uniform draws", losses.map(|losses| losses.uniform.mean), None);
    level("the largest loss found", losses.map(|losses| losses.maximum.mean), None);
    let (first, last) = (*band.first()?, *band.last()?);
    let effective = levels
        .iter()
        .filter_map(|level| Some(format!("{}: {}", level.name, level.effective?)))
        .collect::<Vec<_>>()
        .join("; ");
    let effective =
        if effective.is_empty() { effective } else { format!(" Effective lambda of {effective}.") };
    let chart =
        OverLambda { y: "mean loss", name: "the law, between chains from both ends", band, exact, levels };
    Some(chart.draw().map(|svg| Figure {
        name: format!("{name}-diagnosis-lambda"),
        title: "How adversarial the law is".to_owned(),
        alternative: format!(
            "Mean loss of the law against lambda, on a logarithmic axis: between {:.4} and {:.4} at {}, between {:.4} \
             and {:.4} at {}.{effective}",
            first.low, first.high, short_number(first.lambda), last.low, last.high, short_number(last.lambda)
        ),
        caption: format!(
            "Mean loss over {} points under the law of lambda: the band reaches from chains that began at uniform \
             draws to chains that began at the largest loss found; open circles are exact values. How to read it: where \
             the band is narrow, the chains mix, and its height is the mean loss of the law; where it is wide, the \
             mean lies inside. A level that crosses the band at some lambda is as adversarial as that law: the thick \
             mark is the interval of its effective lambda (the dot), and reaches the edge where the ladder ends before.{effective}",
            found.settings.points.len()
        ),
        svg,
    }))
}

/// The dual value against lambda, with its bounds; none without a rung above 0.
fn dual(found: &Diagnosis, name: &str) -> Option<Result<Figure>> {
    let band: Vec<Rung> = found
        .dual
        .iter()
        .filter_map(|dual| Some(Rung { middle: dual.g, ..Rung::new(dual.lambda, dual.lower, dual.upper)? }))
        .collect();
    let losses = found.losses.as_ref();
    let level = |name: &str, value: f64| Level { name: name.to_owned(), value, effective: None };
    let levels = losses.map_or(Vec::new(), |losses| {
        vec![
            level("uniform draws", losses.uniform.mean),
            level("the largest loss found", losses.maximum.mean),
        ]
    });
    let last = *band.last()?;
    let gap = losses.map_or(String::new(), |losses| {
        format!(
            " The largest loss found is {:.4}, {:.4} above it.",
            losses.maximum.mean,
            losses.maximum.mean - last.middle
        )
    });
    let exact = exact(&found.laws, |exact| exact.g);
    let chart = OverLambda { y: "dual value g", name: "g, with its bounds", band, exact, levels };
    Some(chart.draw().map(|svg| Figure {
        name: format!("{name}-diagnosis-dual"),
        title: "The dual value".to_owned(),
        alternative: format!(
            "The dual value g against lambda, on a logarithmic axis: {:.4} at lambda {}, between {:.4} and {:.4}.{gap}",
            last.middle, short_number(last.lambda), last.low, last.high
        ),
        caption: format!(
            "g(lambda), averaged over {} points: the line is the estimate by thermodynamic integration, the band its \
             bounds (mean losses cannot fall with lambda), open circles are exact values. How to read it: g rises from the \
             mean loss of uniform draws to the largest loss (Proposition 3.3); what is missing to the largest loss is \
             the price of the entropy at this lambda.{gap}",
            found.settings.points.len()
        ),
        svg,
    }))
}

/// The exact values at lambdas above 0.
fn exact(laws: &[LawAt], value: impl Fn(&crate::diagnosis::record::Exact) -> f64) -> Vec<(f64, f64)> {
    let exact = laws.iter().filter(|law| law.lambda > 0.0);
    exact.filter_map(|law| Some((law.lambda, value(law.exact.as_ref()?)))).collect()
}

/// A quantity at one lambda.
#[derive(Clone, Copy)]
struct Rung {
    lambda: f64,
    low: f64,
    middle: f64,
    high: f64,
}

impl Rung {
    /// Values at a lambda above 0, which has a place on a logarithmic axis.
    fn new(lambda: f64, one: f64, other: f64) -> Option<Self> {
        let middle = (one + other) / 2.0;
        (lambda > 0.0).then(|| Self { lambda, low: one.min(other), middle, high: one.max(other) })
    }
}

/// A horizontal line, with a mark at its effective lambda.
struct Level {
    name: String,
    value: f64,
    effective: Option<Effective>,
}

/// A quantity against lambda, on a logarithmic axis.
struct OverLambda<'a> {
    y: &'a str,
    name: &'a str,
    band: Vec<Rung>,
    exact: Vec<(f64, f64)>,
    levels: Vec<Level>,
}

impl OverLambda<'_> {
    fn draw(&self) -> Result<String> {
        let names = |chart: &&Self| {
            let levels = chart.levels.iter().map(|level| level.name.clone());
            std::iter::once(chart.name.to_owned()).chain(levels).collect()
        };
        stacked(&[self], names, |area, chart| chart.draw_on(area))
    }

    fn draw_on(&self, area: &DrawingArea<SVGBackend, Shift>) -> Result<()> {
        let Self { y, band, exact, levels, .. } = self;
        let place = |lambda: f64| Scale::Log.place(lambda);
        let across = Scale::Log.extent(band.iter().map(|rung| place(rung.lambda)));
        let of_band = band.iter().flat_map(|rung| [rung.low, rung.high]);
        let of_others = exact.iter().map(|(_, value)| *value).chain(levels.iter().map(|level| level.value));
        let up = Scale::Linear.extent(of_band.chain(of_others));
        let x = Axis { title: "lambda", scale: Scale::Log };
        let mut chart = axes(area, (&x, across.clone()), (&Axis::linear(y), up))?;
        let ink = ink_of_series(0);
        let line = |value: fn(&Rung) -> f64| band.iter().map(move |rung| (place(rung.lambda), value(rung)));
        let outline: Vec<_> = line(|rung| rung.low).chain(line(|rung| rung.high).rev()).collect();
        chart.draw_series([Polygon::new(outline, ink.mix(0.25).filled())]).map_err(defect)?;
        chart.draw_series(LineSeries::new(line(|rung| rung.middle), ink.stroke_width(2))).map_err(defect)?;
        for (number, level) in (1..).zip(levels) {
            let ink = ink_of_series(number);
            let ends = [(across.start, level.value), (across.end, level.value)];
            chart.draw_series(LineSeries::new(ends, ink.stroke_width(2))).map_err(defect)?;
            let Some(Effective { lambda, from, to }) = level.effective else { continue };
            let edge = |end: Place| match end {
                Place::Below(_) => across.start,
                Place::At(lambda) => place(lambda),
                Place::Above(_) => across.end,
            };
            let mark = [(edge(from), level.value), (edge(to), level.value)];
            chart.draw_series(LineSeries::new(mark, ink.stroke_width(7))).map_err(defect)?;
            if let Place::At(lambda) = lambda {
                let centre = Circle::new((place(lambda), level.value), 5, INK.filled());
                chart.draw_series([centre]).map_err(defect)?;
            }
        }
        let exact =
            exact.iter().map(|(lambda, value)| Circle::new((place(*lambda), *value), 5, INK.stroke_width(2)));
        chart.draw_series(exact).map_err(defect)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::fuzz::corpus;

    fn found() -> Diagnosis {
        serde_json::from_slice(&corpus("diagnosis.json")).expect("a diagnosis")
    }

    fn figure(found: &Diagnosis, part: &str) -> Option<Figure> {
        let name = format!("run-a-diagnosis-{part}");
        let figures = diagnosis(found, "run-a").expect("drawn");
        figures.into_iter().find(|figure| figure.name == name)
    }

    /// Circles of this radius: the legend and the axes have others.
    fn marks(figure: &Figure) -> usize {
        figure.svg.matches("r=\"5\"").count()
    }

    #[test]
    fn the_law_has_a_band_levels_exact_values_and_marks() {
        let found = found();
        let losses = figure(&found, "lambda").expect("a figure");
        assert_eq!(losses.svg.matches("<polygon").count(), 1);
        // Exact values at lambda 1 and 10, and the effective lambda of the run's own chain. That of the
        // stored particles is above the ladder: its mark has no centre.
        assert_eq!(marks(&losses), 3);
        assert_eq!(losses.svg.matches("stroke-width=\"7\"").count(), 2);
        for level in ["natural examples", "uniform draws", "stored particles", "own chain", "largest loss"] {
            assert!(losses.svg.contains(level), "{level}");
        }
        for words in ["the run's own chain: 31.6 (12.5 to above 100)", "between 0.9000 and 1.5000 at 100"] {
            assert!(losses.alternative.contains(words), "{words}: {}", losses.alternative);
        }
        let dual = figure(&found, "dual").expect("a figure");
        assert_eq!((dual.svg.matches("<polygon").count(), marks(&dual)), (1, 2));
        assert!(dual.alternative.contains("0.8200 at lambda 100, between 0.4500 and 1.4000"));
        assert!(dual.caption.contains("The largest loss found is 2.6100, 1.7900 above it."));
    }

    #[test]
    fn particles_are_shown_beside_uniform_draws() {
        let mut found = found();
        let places = figure(&found, "places").expect("a figure");
        for words in ["distance / epsilon", "change of a pixel / epsilon", "uniform draws"] {
            assert!(places.svg.contains(words), "{words}");
        }
        assert!(places.caption.contains("79.0 % of the pixels, and 0.4 % of those of uniform draws"));
        // In l2, there are no faces.
        let particles = found.particles.as_mut().expect("measured");
        (particles.places.coordinates, particles.uniform.coordinates) = (None, None);
        let places = figure(&found, "places").expect("a figure");
        assert!(!places.svg.contains("change of a pixel") && !places.caption.contains("Exactly on a face"));
    }

    #[test]
    fn a_diagnosis_under_way_has_the_figures_of_its_parts() {
        let mut found = found();
        (found.particles, found.losses, found.chain) = (None, None, None);
        // Chains from one end alone are a line.
        found.laws.iter_mut().for_each(|law| law.from_maximum = None);
        let losses = figure(&found, "lambda").expect("a figure");
        assert!(losses.alternative.contains("between 0.9000 and 0.9000 at 100"), "{}", losses.alternative);
        found.laws.truncate(1);
        found.dual.truncate(1);
        assert!(diagnosis(&found, "run-a").expect("none").is_empty(), "the uniform law alone");
    }
}
