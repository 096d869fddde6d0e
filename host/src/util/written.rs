//! The written form `PLACE[,option=value]…` of plugins and of data sets.

use serde_json::Value;

/// The place and the options, as they are written. A value may be a list, in brackets. A place that
/// has a comma is written in quotes, as a string of JSON.
///
/// # Errors
/// If a quoted place has no end.
pub(crate) fn parts(written: &str) -> std::result::Result<(String, Vec<&str>), String> {
    let (file, options) = if written.trim_start().starts_with('"') {
        let mut strings = serde_json::Deserializer::from_str(written).into_iter::<String>();
        let file = strings.next().and_then(|string| string.ok());
        let rest = written.get(strings.byte_offset()..).unwrap_or_default().trim_start();
        let options = if rest.is_empty() { Some(None) } else { rest.strip_prefix(',').map(Some) };
        file.zip(options).ok_or_else(|| format!("expected \"FILE\"[,option=value]…, got `{written}`"))?
    } else {
        let (file, options) =
            written.split_once(',').map_or((written, None), |(file, options)| (file, Some(options)));
        (file.trim().to_owned(), options)
    };
    let mut inside_list = false;
    let between_options = |letter| {
        inside_list = letter == '[' || (inside_list && letter != ']');
        letter == ',' && !inside_list
    };
    Ok((file, options.map(|options| options.split(between_options).collect()).unwrap_or_default()))
}

/// A place as it is written.
pub(crate) fn quoted_if_necessary(place: &str) -> String {
    match parts(place) {
        Ok((read, options)) if read == place && options.is_empty() => place.to_owned(),
        _ => Value::from(place).to_string(),
    }
}
