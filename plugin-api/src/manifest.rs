//! The manifest of a plugin library: a link section that can be read without running the library.

use crate::LIBTORCH;

/// The number of the contract between host and plugins. It changes only when earlier plugins are no
/// longer compatible.
pub const CONTRACT: u32 = 1;

/// The link section that holds one manifest per plugin, each a JSON object and a line feed.
pub const SECTION: &str = ".dro.manifest";

/// The pieces of one plugin's manifest: `{"kind": …, "name": …, "version": …, "contract": …,
/// "libtorch": …}`. Names and versions need no escapes: export macros take Rust literals.
const fn pieces<'a>(kind: &'a str, name: &'a str, version: &'a str) -> [&'a str; 9] {
    [
        "{\"kind\":\"",
        kind,
        "\",\"name\":\"",
        name,
        "\",\"version\":\"",
        version,
        "\",\"contract\":1,\"libtorch\":\"",
        LIBTORCH,
        "\"}\n",
    ]
}

const _: () = assert!(CONTRACT == 1, "the manifest's text spells the contract number out");

/// Length in bytes of one plugin's manifest.
#[doc(hidden)]
pub const fn length(kind: &str, name: &str, version: &str) -> usize {
    let pieces = pieces(kind, name, version);
    let (mut total, mut piece) = (0, 0);
    while piece < pieces.len() {
        total += pieces[piece].len();
        piece += 1;
    }
    total
}

/// One plugin's manifest as bytes, made while compiling.
#[doc(hidden)]
pub const fn text<const LENGTH: usize>(kind: &str, name: &str, version: &str) -> [u8; LENGTH] {
    let pieces = pieces(kind, name, version);
    let mut text = [0; LENGTH];
    let (mut at, mut piece) = (0, 0);
    while piece < pieces.len() {
        let bytes = pieces[piece].as_bytes();
        let mut byte = 0;
        while byte < bytes.len() {
            text[at] = bytes[byte];
            at += 1;
            byte += 1;
        }
        piece += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_manifest_is_one_line_of_json() {
        const TEXT: [u8; super::length("sampler", "langevin", "1.2.3")] =
            super::text("sampler", "langevin", "1.2.3");
        let manifest: serde_json::Value = serde_json::from_slice(&TEXT).expect("JSON");
        assert_eq!(TEXT.last(), Some(&b'\n'));
        assert_eq!(manifest["kind"], "sampler");
        assert_eq!(manifest["version"], "1.2.3");
        assert_eq!(manifest["contract"], super::CONTRACT);
        assert_eq!(manifest["libtorch"], crate::LIBTORCH);
    }
}
