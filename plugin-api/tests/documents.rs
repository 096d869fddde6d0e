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

#[test]
fn the_guide_lists_every_field_of_a_step_and_of_a_target() {
    let guide = include_str!("../../docs/writing-plugins.md");
    for (name, source) in
        [("Step", include_str!("../src/sampler.rs")), ("Target", include_str!("../src/attack.rs"))]
    {
        let begin = format!("pub struct {name}<'a> {{\n");
        let body = source.split_once(&begin).expect("the struct").1.split_once("\n}").expect("its end").0;
        let fields = body.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'));
        let fields: Vec<_> = fields.map(|(field, _)| field).collect();
        assert!(fields.len() >= 7, "{fields:?}");
        let section = guide.split_once(&format!("### The fields of `{name}`")).expect("a section").1;
        let section = section.split("\n#").next().unwrap_or_default();
        let rows: String =
            section.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next()).collect();
        for field in fields {
            assert!(
                rows.contains(&format!("`{field}`")),
                "{name} has a field {field}, which the guide lacks"
            );
        }
    }
}
