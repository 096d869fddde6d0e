use crate::torch::random::MOST_STEPS;
use crate::util::number::fraction;
use crate::util::written::{parts, quoted_if_necessary};
use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The spec of a plugin: its file and options, written as `FILE[,option=value]…`. A value may be a
/// list: `[1,2,3]`. A file whose name has a comma is written in quotes, as a string of JSON.
#[derive(Debug, Clone)]
pub struct PluginSpec {
    /// The file of the library, as written.
    pub file: String,
    /// The name of the plugin (`plugin=NAME`), needed if the library has several.
    pub name: Option<String>,
    /// The number of steps (`steps=N`). For a sampler it is an option of the host, for an attack an
    /// option of the plugin.
    steps: Option<usize>,
    /// The other options, for the plugin.
    options: Map<String, Value>,
    written: String,
    /// Its place in a file, if it was read from one: "demo.toml, line 3".
    pub origin: Option<String>,
    /// Whether the record of a run names it, and not the user: such a library must be trusted.
    pub is_recorded: bool,
}

impl PluginSpec {
    /// The options of an attack as a JSON object, with `steps`.
    pub fn attack_options(&self) -> String {
        let mut options = self.options.clone();
        if let Some(steps) = self.steps {
            options.insert("steps".to_owned(), steps.into());
        }
        Value::Object(options).to_string()
    }

    /// The options of a sampler or model as a JSON object, without `steps`.
    pub fn options(&self) -> String {
        Value::Object(self.options.clone()).to_string()
    }

    /// Whether it names this plugin: by `plugin=NAME`, or else by its file.
    pub fn is_called(&self, name: &str) -> bool {
        let stem = Path::new(&self.file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        self.name.as_deref().unwrap_or(stem.strip_prefix("lib").unwrap_or(stem)) == name
    }

    /// Whether it gives the plugin no options.
    pub fn has_no_options(&self) -> bool {
        self.options.is_empty() && self.steps.is_none()
    }

    /// The option `steps`, from 1 to 65534, if given.
    pub fn steps(&self) -> Option<usize> {
        self.steps
    }

    /// Makes the path of the file absolute if it contains a folder. A bare file name stays, since
    /// plugins are searched by name.
    pub fn make_absolute(&mut self) {
        let path = Path::new(&self.file);
        if path.parent().is_none_or(|folder| folder.as_os_str().is_empty()) {
            return;
        }
        if let Ok(absolute) = std::path::absolute(path) {
            let options = parts(&self.written).map(|(_, options)| options).unwrap_or_default();
            self.file = absolute.display().to_string();
            let file = quoted_if_necessary(&self.file);
            self.written = std::iter::once(&*file).chain(options).collect::<Vec<_>>().join(",");
        }
    }

    /// The same plugin with this option, in place of any other value that it has.
    pub fn with(mut self, option: &str, value: Value) -> Self {
        self.options.insert(option.to_owned(), value);
        self.rewrite()
    }

    /// The same plugin with so many steps.
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = Some(steps);
        self.rewrite()
    }

    /// Writes the spec as its fields say.
    fn rewrite(mut self) -> Self {
        let plugin = self.name.iter().map(|name| format!("plugin={name}"));
        let steps = self.steps.iter().map(|steps| format!("steps={steps}"));
        let option = |(key, value): (&String, &Value)| match value {
            Value::String(text) => format!("{key}={text}"),
            value => format!("{key}={value}"),
        };
        let parts = std::iter::once(quoted_if_necessary(&self.file)).chain(plugin).chain(steps);
        self.written = parts.chain(self.options.iter().map(option)).collect::<Vec<_>>().join(",");
        self
    }

    /// An error about this plugin, with the spec and its place in a file.
    pub fn error(&self, message: impl fmt::Display) -> Error {
        let error = Error::new(message).note("plugin", &self.written);
        match &self.origin {
            Some(origin) => error.note("in", origin),
            None => error,
        }
    }
}

impl FromStr for PluginSpec {
    type Err = String;

    fn from_str(written: &str) -> std::result::Result<Self, String> {
        let (file, options) = parts(written)?;
        if file.is_empty() {
            return Err(format!("expected FILE[,option=value]…, got `{written}`"));
        }
        let mut spec = Self {
            file: file.clone(),
            name: None,
            steps: None,
            options: Map::new(),
            written: written.to_owned(),
            origin: None,
            is_recorded: false,
        };
        for part in options {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("expected option=value after `{file}`, got `{part}`"))?;
            let (key, value) = (key.trim(), value.trim());
            let repeated = match key {
                "plugin" => spec.name.replace(value.to_owned()).is_some(),
                "steps" => {
                    let steps = value.parse().ok().filter(|steps| (1..=MOST_STEPS).contains(steps));
                    let steps = steps.ok_or_else(|| {
                        format!("option `steps` of `{file}`: expected 1 to {MOST_STEPS}, got `{value}`")
                    })?;
                    spec.steps.replace(steps).is_some()
                }
                _ => spec.options.insert(key.to_owned(), typed(value)).is_some(),
            };
            if repeated {
                return Err(format!("option `{key}` of `{file}` is given twice"));
            }
        }
        Ok(spec)
    }
}

/// A value as JSON: true, false, a number (a fraction such as 8/255 too), a list of values, or
/// otherwise text.
fn typed(value: &str) -> Value {
    match serde_json::from_str(value) {
        Ok(Value::Bool(value)) => value.into(),
        Ok(Value::Number(value)) => value.into(),
        Ok(Value::Array(values)) => values.into(),
        _ => number(value).or_else(|| numbers(value)).unwrap_or_else(|| value.into()),
    }
}

/// A number that JSON does not know: ".5", "+1", "8/255".
fn number(value: &str) -> Option<Value> {
    let number = value.trim().parse().ok().or_else(|| fraction(value))?;
    serde_json::Number::from_f64(number).map(Value::Number)
}

/// A list of such numbers.
fn numbers(value: &str) -> Option<Value> {
    let items = value.strip_prefix('[')?.strip_suffix(']')?;
    items.split(',').map(number).collect()
}

impl fmt::Display for PluginSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.written)
    }
}

impl Serialize for PluginSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.written)
    }
}

impl<'de> Deserialize<'de> for PluginSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Parses a spec.
///
/// # Errors
/// If it is not valid.
pub fn parse(written: &str) -> Result<PluginSpec> {
    written.parse().map_err(Error::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_type() {
        let spec = parse("a.so,x=0.2,n=3,on=true,arch=B,e=1e-3,h=.5,i=inf").expect("valid");
        let options: Value = serde_json::from_str(&spec.options()).expect("JSON");
        assert_eq!(
            options,
            serde_json::json!({"x": 0.2, "n": 3, "on": true, "arch": "B", "e": 0.001, "h": 0.5, "i": "inf"})
        );
    }

    #[test]
    fn a_number_may_be_a_fraction_and_a_path_is_none() {
        let spec = parse("a.so,step_size=2/255,file=a/b,half=1/0,date=1/2/3").expect("valid");
        let options: Value = serde_json::from_str(&spec.options()).expect("JSON");
        let expected = serde_json::json!(
            {"step_size": 2.0 / 255.0, "file": "a/b", "half": "1/0", "date": "1/2/3"}
        );
        assert_eq!(options, expected);
        assert_eq!(spec.to_string(), "a.so,step_size=2/255,file=a/b,half=1/0,date=1/2/3");
    }

    #[test]
    fn a_value_may_be_a_list() {
        let spec = parse("a.so,mean=[63.75/255, .5],std=[1/2]").expect("valid");
        let options: Value = serde_json::from_str(&spec.options()).expect("JSON");
        assert_eq!(options, serde_json::json!({"mean": [0.25, 0.5], "std": [0.5]}));
        let spec = parse("a.so,mean=[0.5, 1],std=[],x=1").expect("valid");
        let options: Value = serde_json::from_str(&spec.options()).expect("JSON");
        assert_eq!(options, serde_json::json!({"mean": [0.5, 1], "std": [], "x": 1}));
    }

    #[test]
    fn steps_are_an_option_of_the_host_for_samplers_and_of_the_plugin_for_attacks() {
        let spec = parse("pgd.so,steps=40,step_size=0.01").expect("valid");
        assert_eq!(spec.steps(), Some(40));
        assert_eq!(spec.options(), r#"{"step_size":0.01}"#);
        assert_eq!(spec.attack_options(), r#"{"step_size":0.01,"steps":40}"#);
    }

    #[test]
    fn the_options_stay_whatever_the_path_is() {
        for folder in [
            "a,b", "a[b", "a]b", "a[1,2]b", "a=b", "x=1,y=2", "a b ", " a", "\"a", "a\"b,", "it's", "a\\,b",
            "ä,€",
        ] {
            let file = format!("/{folder}/a.so");
            let mut spec = parse(&format!("{},mean=[0.5,1],x=b", quoted_if_necessary(&file))).expect("valid");
            assert_eq!(spec.file, file);
            let options = spec.options();
            assert_eq!(options, r#"{"mean":[0.5,1],"x":"b"}"#);
            for _ in 0..2 {
                spec.make_absolute();
                let again = parse(&spec.to_string()).expect("valid");
                assert_eq!((&again.file, again.options()), (&file, options.clone()), "{spec}");
            }
            let alone = parse(&quoted_if_necessary(folder)).expect("valid");
            assert_eq!((alone.file.as_str(), &*alone.options()), (folder, "{}"));
        }
        let spec = parse("x[y/a.so,mean=[0.5,1]").expect("valid");
        assert_eq!((&*spec.file, &*spec.options()), ("x[y/a.so", r#"{"mean":[0.5,1]}"#));
    }

    #[test]
    fn the_error_names_the_invalid_part() {
        let refusal = |written: &str| parse(written).expect_err("refused").to_string();
        assert!(refusal("a.so,x").contains("expected option=value after `a.so`, got `x`"));
        assert!(refusal("a.so,x=1,x=2").contains("`x` of `a.so` is given twice"));
        assert!(refusal("a.so,steps=0").contains("expected 1 to 65534, got `0`"));
        assert!(refusal(",x=1").contains("expected FILE"));
        assert!(refusal("\"a.so,x=1").contains("expected \"FILE\""));
        assert!(refusal("\"a\".so").contains("expected \"FILE\""));
    }

    #[test]
    fn fuzz_specs_come_back_as_they_were_written() {
        use crate::util::fuzz::for_cases;
        use proptest::prelude::*;
        let written = prop_oneof![
            any::<String>(),
            "[a-z./\\[\\],= é]{0,24}",
            "[a-z]{1,4}\\.so(,[a-z]{1,3}=(-?[0-9]{1,3}|[0-9]\\.[0-9]e[0-9]|\\[[0-9],[0-9]\\]|[a-z,\\[\\]]{0,4})){0,3}",
        ];
        for_cases(&written, |written| {
            let Ok(spec) = written.parse::<PluginSpec>() else { return Ok(()) };
            prop_assert_eq!(spec.to_string(), written);
            let json = serde_json::to_string(&spec).expect("JSON");
            let mut read: PluginSpec = serde_json::from_str(&json).expect("valid");
            prop_assert_eq!(read.attack_options(), spec.attack_options());
            // A spec with an absolute path names the same options, wherever it is read.
            read.make_absolute();
            let again: PluginSpec = read.to_string().parse().map_err(TestCaseError::fail)?;
            prop_assert_eq!((again.file, again.name, again.steps), (read.file, spec.name, spec.steps));
            prop_assert_eq!(again.options, spec.options);
            Ok(())
        });
    }
}
