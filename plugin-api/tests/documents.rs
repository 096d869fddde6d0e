//! Sources shown in the documents are the compiled ones.

fn assert_shows(document: &str, text: &str, file: &str, source: &str) {
    assert!(text.contains(source.trim_end()), "{document} differs from {file}");
}

#[test]
fn documents_show_files_whole() {
    let readme = include_str!("../../README.md");
    assert_shows("README.md", readme, "my-sampler", include_str!("../../examples/my-sampler/src/lib.rs"));
    let guide = include_str!("../../docs/writing-plugins.md");
    assert_shows("the guide", guide, "langevin", include_str!("../../plugins/langevin/src/lib.rs"));
    assert_shows("the guide", guide, "my-attack", include_str!("../../examples/my-attack/src/lib.rs"));
    assert_shows("the guide", guide, "my-model", include_str!("../../examples/my-model/src/lib.rs"));
}
