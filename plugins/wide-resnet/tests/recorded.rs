//! Logits and running moments are those of the paper's network, written down once more in PyTorch
//! (tests/parity/record_networks.py).

use plugin_api::Result;
use replay::assert_computes_as_recorded;
use wide_resnet::{Options, WideResNet};

#[test]
fn narrow_and_wide_networks_compute_what_the_papers_do() -> Result<()> {
    for width in [1, 2] {
        let options = Options { depth: 16, width, ..Options::default() };
        assert_computes_as_recorded::<WideResNet>(
            options,
            &format!("wide-resnet-16-{width}.safetensors"),
            ["block1.layer.0.bn1", "bn1"],
        )?;
    }
    Ok(())
}
