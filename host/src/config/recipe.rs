//! Recipes: experiments that are part of the program, from the files in `examples/`.

use super::Experiment;
use crate::{Error, Result};

/// The recipes: name, file and text.
const RECIPES: [(&str, &str, &str); 5] = [
    (DEFAULT_RECIPE, "examples/mnist-demo.toml", include_str!("../../../examples/mnist-demo.toml")),
    (
        "algorithm-1",
        "examples/mnist-algorithm-1.toml",
        include_str!("../../../examples/mnist-algorithm-1.toml"),
    ),
    ("pgd", "examples/mnist-pgd.toml", include_str!("../../../examples/mnist-pgd.toml")),
    (
        "cifar-10-resnet",
        "examples/cifar-10-resnet.toml",
        include_str!("../../../examples/cifar-10-resnet.toml"),
    ),
    ("cifar-10-pgd", "examples/cifar-10-pgd.toml", include_str!("../../../examples/cifar-10-pgd.toml")),
];

/// The recipe of `host train` without `--config` and `--recipe`.
pub const DEFAULT_RECIPE: &str = "demo";

/// The recipe of this name.
///
/// # Errors
/// If there is no such recipe.
pub fn recipe(name: &str) -> Result<Experiment> {
    let Some((_, _, text)) = RECIPES.iter().find(|(known, ..)| *known == name) else {
        let known: Vec<_> = RECIPES.iter().map(|(name, ..)| *name).collect();
        return Err(Error::new(format!("--recipe: there is no recipe `{name}`"))
            .note("recipes", known.join(", "))
            .fix("choose one of these, or give an experiment file with --config"));
    };
    Experiment::parse(text, &format!("recipe `{name}`"))
}

/// All recipes: name and description, which is the first comment of the file.
pub fn recipes() -> impl Iterator<Item = (&'static str, String)> {
    RECIPES.iter().map(|(name, file, text)| {
        let comment = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
        (*name, format!("{} ({file})", comment.collect::<Vec<_>>().join(" ")))
    })
}
