use crate::command::arguments::InspectArguments;
use crate::plugin::library::{self, Kind, Manifest};
use crate::plugin::{Objective, parse};
use crate::util::console::say;
use crate::{Error, Result};
use plugin_api::Climbs;
use plugin_api::abi::{Description, ObjectiveDeclaration};
use serde_json::{Value, json};

/// `host inspect`
pub fn run(arguments: &InspectArguments) -> Result<u8> {
    let spec = parse(&arguments.file)?;
    if spec.attack_options() != "{}" {
        return Err(spec.error("host inspect takes FILE or FILE,plugin=NAME, and shows the other options"));
    }
    let mut file = library::inspect(&spec.file)?;
    if let Some(name) = &spec.name {
        let names: Vec<_> = file.manifests.iter().map(|manifest| manifest.name.clone()).collect();
        file.manifests.retain(|manifest| manifest.name == *name);
        if file.manifests.is_empty() {
            return Err(Error::new(format!("{} has no plugin `{name}`", spec.file))
                .fix(format!("choose one of: {}", names.join(", "))));
        }
    }
    let described: Vec<_> = file.manifests.iter().map(|manifest| describe(&spec.file, manifest)).collect();
    if arguments.json {
        let plugins = file.manifests.iter().zip(described).map(|(manifest, description)| match description {
            Ok((description, declaration)) => {
                let mut plugin = json!({"manifest": manifest, "options": description.options});
                if let Some(declaration) = declaration {
                    plugin["declaration"] = json!(declaration);
                }
                plugin
            }
            Err(error) => json!({"manifest": manifest, "error": error.to_string()}),
        });
        let plugins: Vec<_> = plugins.collect();
        say(json!({"path": file.path, "sha256": file.sha256, "plugins": plugins}));
        return Ok(0);
    }
    say(format_args!("{}\n  SHA-256  {}", file.path.display(), file.sha256));
    for (manifest, description) in file.manifests.iter().zip(described) {
        let Manifest { kind, name, version, contract, libtorch } = manifest;
        say(format_args!("\n{name} {version}: {kind:?}, contract {contract}, libtorch {libtorch}"));
        match description {
            Ok((description, declaration)) => {
                declaration.iter().for_each(print_declaration);
                print_options(*kind, &description.options);
            }
            Err(error) => say(format_args!("  cannot be opened: {error}")),
        }
    }
    Ok(0)
}

/// The description of a plugin, and what an objective declares with its default options.
fn describe(file: &str, manifest: &Manifest) -> Result<(Description, Option<ObjectiveDeclaration>)> {
    let spec = parse(&format!("{file},plugin={}", manifest.name))?;
    let description = match manifest.kind {
        Kind::Model => library::open_model(&spec)?.description,
        Kind::Sampler => library::open_sampler(&spec)?.description,
        Kind::Attack => library::open_attack(&spec)?.description,
        Kind::Objective => {
            // One whose options have no usable defaults declares nothing yet.
            let declaration = Objective::make(&spec).ok().map(|objective| *objective.declaration());
            return Ok((library::open_objective(&spec)?.description?, declaration));
        }
        Kind::Unknown => Err(Error::new(
            "this host does not support plugins of this kind; use the newer host that it was built for",
        )),
    };
    Ok((description?, None))
}

fn print_declaration(declaration: &ObjectiveDeclaration) {
    let ObjectiveDeclaration { climbs, uses_natural, couples_points, passes } = *declaration;
    let climbed = match climbs {
        Climbs::CrossEntropy => "the cross-entropy (mode faithful)",
        Climbs::Outer => "the loss that the weights descend on (modes faithful and fused)",
        Climbs::Inner => "a loss of its own (mode faithful)",
    };
    say(format_args!("  the sampler climbs {climbed}"));
    let per_point = passes.per_point + usize::from(uses_natural);
    say(format_args!(
        "  further passes of an update: {per_point} a point, {} a particle",
        passes.per_particle
    ));
    if couples_points {
        say("  the loss of a point depends on others of the minibatch: it trains in one process");
    }
}

fn print_options(kind: Kind, schema: &Value) {
    let properties = schema["properties"].as_object();
    for (name, option) in properties.into_iter().flatten() {
        say(format_args!("  {name}={}  ({})", text(&option["default"]), allowed(option, schema)));
        if let Some(help) = option["description"].as_str() {
            say(format_args!("      {}", help.replace('\n', " ")));
        }
    }
    if kind == Kind::Sampler {
        say(format_args!(
            "  steps=N  (option of the host for samplers)\n      Number of steps of a visit, or of an attack."
        ));
    }
}

/// The type and range of an option, or its choices.
fn allowed(option: &Value, schema: &Value) -> String {
    let reference = option["$ref"].as_str().or_else(|| option["allOf"][0]["$ref"].as_str());
    let definition = reference.and_then(|reference| schema.pointer(reference.trim_start_matches('#')));
    let choices = definition.unwrap_or(option);
    let variants: Vec<_> =
        choices["oneOf"].as_array().into_iter().flatten().map(|one| text(&one["const"])).collect();
    if !variants.is_empty() {
        return variants.join(" | ");
    }
    if let Some(values) = choices["enum"].as_array() {
        return values.iter().map(text).collect::<Vec<_>>().join(" | ");
    }
    let kind = match &option["type"] {
        Value::Array(kinds) => kinds.iter().map(text).collect::<Vec<_>>().join(" or "),
        kind => text(kind),
    };
    let bound =
        |key: &str, sign: &str| option.get(key).map(|bound| format!(", {sign} {bound}")).unwrap_or_default();
    kind + &bound("minimum", "at least") + &bound("exclusiveMinimum", "above") + &bound("maximum", "at most")
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
