//! What the README shows is what is compiled and run.

#[test]
fn the_readme_shows_the_example_sampler_whole() {
    let readme = include_str!("../../README.md");
    let sampler = include_str!("../../examples/my-sampler/src/lib.rs");
    assert!(readme.contains(sampler.trim_end()), "README.md differs from examples/my-sampler/src/lib.rs");
}
