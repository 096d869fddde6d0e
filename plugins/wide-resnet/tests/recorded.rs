//! Logits and running statistics equal those of a PyTorch implementation of the paper's network
//! (tests/parity/record_networks.py).

use plugin_api::Result;
use replay::assert_computes_as_recorded;
use wide_resnet::{Options, WideResNet};

#[test]
fn narrow_and_wide_networks_equal_those_of_the_paper() -> Result<()> {
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
