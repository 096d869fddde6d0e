use super::arguments::{Network, PredictArguments, style};
use super::eval::print_caveats;
use super::refuse_taken;
use super::signals::stop_on_signals;
use crate::Result;
use crate::error::absolute;
use crate::evaluation::prediction::{Predicted, of_network, of_run};
use crate::util::console::{Style, begin, say};
use serde_json::json;

/// `host predict`
pub fn run(arguments: &PredictArguments) -> Result<u8> {
    // Nothing is kept of an unfinished prediction: a stop ends it at once.
    stop_on_signals(&arguments.stop)?;
    begin(style(arguments.json));
    let out = absolute(&arguments.out);
    refuse_taken(&out, "choose another name with --out")?;
    let options = &arguments.options;
    let predicted = match arguments.foreign.network(&arguments.runs)? {
        Network::Run(path) => of_run(path, options)?,
        Network::Foreign { model, data, init } => of_network(model, data, &init, options)?,
    };
    predicted.write(&out)?;
    let Predicted { count, classes, accuracy, ref caveats, .. } = predicted;
    let path = arguments.out.display();
    match style(arguments.json) {
        Style::Json => say(json!({
            "out": arguments.out, "points": count, "classes": classes, "accuracy": accuracy,
            "weights_sha256": predicted.weights_sha256, "caveats": caveats,
        })),
        Style::Human => say(format_args!(
            "{:.2} % of {count} {} are classified correctly; logits, predictions, labels and points: {path}",
            100.0 * accuracy,
            predicted.points_name
        )),
    }
    print_caveats(caveats);
    Ok(0)
}
